"""Text frames of `/ws` that are JSON by their form and yet can't be read; found by fuzzing."""

from __future__ import annotations

import pytest

from linkd.api.refusals import Refusal
from linkd.api.textframes import parse


@pytest.mark.parametrize("number", [b"1e999", b"9" * 5000])
def test_an_id_out_of_range_is_refused(number: bytes) -> None:
    with pytest.raises(Refusal, match="id: expected a string or a whole number"):
        parse(b'{"type":"made","data":1,"id":' + number + b"}", binary=False)


@pytest.mark.parametrize("number", [b"1e999", b"9" * 5000])
def test_a_type_out_of_range_makes_it_a_value(number: bytes) -> None:
    payload = b'{"type":' + number + b',"data":1}'
    frame = parse(payload, binary=False)
    assert (frame.kind, frame.type, frame.body) == ("publish", "", payload)
