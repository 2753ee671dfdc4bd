"""Under which key a body is shown, and how; times as people and programs read them."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from linkd.protocol.json import (
    MAX_JSON_DEPTH,
    body_of,
    check_syntax,
    extras_of,
    media_type,
    nested_deeply,
    render_body,
    rfc3339,
)
from linkd.protocol.records import EncodedRecord, Unreadable


@pytest.mark.parametrize(
    ("body", "content_type", "name", "value"),
    [
        (b'{"a": 1.50}', "application/json", "data", b'{"a": 1.50}'),
        (b" 7", "application/json; charset=utf-8", "data", b" 7"),
        (b'{"a"', "application/json", "text", '{"a"'),
        (b"[1,2]", "", "data", b"[1,2]"),
        (b"[1,2", "", "text", "[1,2"),
        (b"{}", "text/plain", "text", "{}"),
        ("grün".encode(), "text/plain", "text", "grün"),
        (b"7", "", "text", "7"),
        (b"", "", "text", ""),
        (b"\xff\x00", "", "base64", "/wA="),
        (b"{\xff}", "application/json", "base64", "e/99"),
        (b"[" * 100_000, "", "text", "[" * 100_000),
    ],
)
def test_a_body_is_shown_as_what_it_is(
    body: bytes, content_type: str, name: str, value: Any
) -> None:
    found = render_body(body, content_type)
    raw = bytes(found[1]) if isinstance(found[1], msgspec.Raw) else found[1]
    assert (found[0], raw) == (name, value)


def test_kinds_and_times() -> None:
    assert media_type(" Application/JSON ; charset=x") == "application/json"
    assert rfc3339(0.0) == "1970-01-01T00:00:00.000Z"
    assert rfc3339(1_700_000_000.9996) == "2023-11-14T22:13:20.999Z"
    assert rfc3339(-1e300) == "0001-01-01T00:00:00.000Z"
    assert rfc3339(1e300) == "9999-12-31T23:59:59.000Z"


def nested(value: Any, depth: int, text: str) -> Any:
    """Return a value that many arrays and objects deep, with siblings."""
    for level in range(depth):
        value = [text, value, []] if level % 2 else {text: value, "x": {}}
    return value


@pytest.mark.parametrize("depth", [1, 9, MAX_JSON_DEPTH - 1, MAX_JSON_DEPTH])
def test_depth_is_counted_alike_in_few_and_many_brackets(depth: int) -> None:
    unit = b"[" * depth + b"]" * depth
    assert nested_deeply(b"[" + b",".join([unit] * 99) + b"]") == (depth == MAX_JSON_DEPTH)
    assert nested_deeply(unit + b'["' + b'","' * 99 + b'"]') is False


@given(st.integers(1, 130), st.text('[]{}"\\\\ a'), st.booleans())
def test_a_depth_is_counted_by_brackets_outside_of_strings(
    depth: int, text: str, wide: bool
) -> None:
    value = nested([[text]] * 70 if wide else text, depth, text)
    body = json.dumps(value, indent=1).encode()
    assert nested_deeply(body) == (depth + (2 if wide else 1) > MAX_JSON_DEPTH)
    assert render_body(body, "application/json")[0] == ("text" if nested_deeply(body) else "data")


def test_what_is_no_record_is_shown_whole() -> None:
    broken = Unreadable(b"\xc1")
    assert body_of(broken) == ("base64", "wQ==")
    assert extras_of(broken) == {"unreadable": True}
    plain = EncodedRecord(b"7", content_type="application/json", headers={"a": "b"})
    assert (body_of(plain)[0], extras_of(plain)) == ("data", {"headers": {"a": "b"}})
    assert extras_of(EncodedRecord(b"")) == {}


def test_of_a_large_body_of_json_no_value_is_built() -> None:
    body = b"[" + b"[]," * 300_000 + b"[]]"
    tracemalloc.start()
    check_syntax(body)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 3 * len(body), "900 kB of it held the loop for 76 ms, 16 MiB for 3 s"
    for wrong in (body[:-1], body[:-1] + b',"\xff"]', body[:-1] + b',"\\ud83d"]'):
        with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)):
            check_syntax(wrong)


@pytest.mark.parametrize(
    "number",
    ["1e999", "-1E+400", "9" * 5000, "1" + "0" * 400 + ".5", "9e308", "2" + "0" * 300 + "e10"],
)
def test_a_number_that_parsers_refuse_is_no_json_in_a_large_body_either(number: str) -> None:
    small = f'{{"1e999": "1e999", "a": {number}}}'.encode()
    for body in (small, b" " * (1 << 20) + small, b"[" + b"1e100," * 20_000 + small + b"]"):
        with pytest.raises(msgspec.DecodeError):
            check_syntax(body)
        assert render_body(body, "application/json")[0] == "text"


@pytest.mark.parametrize(
    "number", ["1e100", "-1.5E+308", "1e-999", "9" * 4000, "1" + "0" * 400 + "e-200", "0"]
)
def test_a_number_that_parsers_take_is_json_in_a_large_body_too(number: str) -> None:
    small = f'{{"1e999": "\\\\", "\\"1e999": "1e999", "a": [{number},{number}]}}'.encode()
    for body in (small, b" " * (1 << 20) + small, b"[" + b"1e100," * 20_000 + small + b"]"):
        check_syntax(body)
        assert render_body(body, "application/json")[0] == "data"
