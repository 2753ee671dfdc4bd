"""JSON and text for a terminal: what a peer has sent steers none."""

from __future__ import annotations

import json
from types import SimpleNamespace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from linkd.cli.output import json_text, printable
from linkd.cli.streaming import _line


@pytest.mark.parametrize("sign", ["\x9b", "\u202e", "\u2066", "\u2028", "\ufeff", "\U000e0041"])
def test_json_is_escaped_where_it_could_steer_a_terminal(sign: str) -> None:
    text = json_text(msgspec.json.encode({"body": f"größe {sign}31m 🙂"}))
    assert text.isprintable()
    assert sign not in text
    assert "größe" in text
    assert json.loads(text) == {"body": f"größe {sign}31m 🙂"}


def test_a_body_that_is_json_keeps_its_value_on_one_line() -> None:
    body = b'{\r\n\t"a": "x\xc2\x9b31m\x7f",\n"b": [1,\t2]}'
    line = _line(SimpleNamespace(to_json=lambda: b'{"data":%b}' % body), as_json=True)  # type: ignore[arg-type]
    assert line.isprintable()
    assert json.loads(line) == {"data": {"a": "x\x9b31m\x7f", "b": [1, 2]}}


@given(st.text())
def test_the_value_is_the_same(text: str) -> None:
    shown = json_text(msgspec.json.encode([text]))
    assert shown.isprintable()
    assert json.loads(shown) == [text]


def test_plain_text_has_signs_in_place_of_commands() -> None:
    assert printable("a\x1b[2J\x9b\u202e") == "a�[2J��"
