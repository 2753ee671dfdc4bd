"""One call of the HTTP API: who asks, and for what."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar
from urllib.parse import unquote_to_bytes

import msgspec

from linkd.api.callers import Caller
from linkd.api.refusals import Refusal
from linkd.api.request import ApiRequest

_Struct = TypeVar("_Struct")


class Call:
    """One call under way.

    Args:
        request: The request, complete.
        caller: Who calls.
        path: The values that stand in the path, by name.
        names: What counts in the query; see `query_of`.
    """

    def __init__(
        self,
        request: ApiRequest,
        caller: Caller,
        path: Mapping[str, str],
        names: Mapping[str, bool] | None = None,
    ) -> None:
        self.request = request
        self.caller = caller
        self.path = path
        self._query = query_of(request.uri, names)

    # what was asked

    def text(self, name: str) -> str | None:
        """Return a query value, None where it is absent."""
        given = self._query.get(name)
        return None if given is None else given[0]

    def texts(self, name: str) -> list[str]:
        """Return all values of a name that may come several times."""
        return self._query.get(name, [])

    def number(self, name: str, default: int, most: int = 2**62, least: int = 0) -> int:
        """Return a query value that is a whole number within bounds, else raise Refusal."""
        given = self.text(name)
        return default if given is None else number(given, name, most, least)

    def seconds(self, name: str, default: float, most: float) -> float:
        """Return a query value in seconds, cut to `most`, else raise Refusal."""
        given = self.text(name)
        return default if given is None else min(seconds(given, name), most)

    def only(self, *names: str) -> None:
        """Raise Refusal where the query has other names."""
        other = sorted(set(self._query) - set(names) - {"token"})
        if other:
            known = ", ".join(names) or "none"
            raise Refusal("malformed", f"unknown in the query: {other[0][:80]}; known: {known}")

    def header(self, name: str) -> str | None:
        """Return a request header in UTF-8, else raise Refusal; None where it is absent."""
        return self.request.header(name)

    def body(self) -> bytes:
        """Return the request's body."""
        return self.request.body()

    def json(self, kind: type[_Struct]) -> _Struct:
        """Return the body as a struct, an empty one as `{}`; raise Refusal if it does not fit."""
        try:
            found: _Struct = msgspec.json.decode(self.body() or b"{}", type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Refusal("malformed", f"the body: {error}") from None
        return found


def number(given: str, name: str, most: int = 2**62, least: int = 0) -> int:
    """Return a whole number in plain digits within bounds; raise Refusal where it is none."""
    if given.isascii() and given.isdigit() and len(given) <= 19 and least <= int(given) <= most:
        return int(given)
    raise Refusal(
        "malformed", f"{name}: expected a number from {least} to {most}, got {given[:40]!r}"
    )


def whole(value: int | float, name: str) -> int:
    """Return an offset out of JSON, where 5.0 is 5; raise Refusal where it is none."""
    if 0 <= value <= 2**62 and value == int(value):
        return int(value)
    raise Refusal("malformed", f"{name}: expected an offset, got {value}")


def seconds(given: str, name: str) -> float:
    """Return seconds that are finite and not negative; raise Refusal where it is no such number."""
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    if not (given.isascii() and 0.0 <= value < math.inf and "_" not in given):
        raise Refusal("malformed", f"{name}: expected seconds, got {given[:40]!r}")
    return value


def seconds_between(given: str, name: str, least: float, most: float) -> float:
    """Return seconds within bounds; raise Refusal where it is no such number."""
    value = seconds(given, name)
    if least <= value <= most:
        return value
    expected = f"expected seconds from {least:g} to {most:g}"
    raise Refusal("malformed", f"{name}: {expected}, got {given[:40]!r}")


def query_of(uri: bytes, names: Mapping[str, bool] | None = None) -> dict[str, list[str]]:
    """Return a target's query: the values of each name.

    Args:
        uri: The target.
        names: The names that count, and whether each may come several times; all others are
            ignored, whatever they hold. None: all count, and each may come once.

    Raises:
        Refusal: A name that counts comes twice, or is no UTF-8.
    """
    found: dict[str, list[str]] = {}
    _, _, query = uri.partition(b"?")
    for piece in query.split(b"&"):
        name, _, value = piece.partition(b"=")
        try:
            key = unquoted(name.replace(b"+", b" "))
        except Refusal:
            if names is None:
                raise
            continue
        if not piece or (names is not None and key not in names):
            continue
        if key in found and not (names is not None and names[key]):
            raise Refusal("malformed", f"{key[:80]} stands twice in the query")
        found.setdefault(key, []).append(unquoted(value.replace(b"+", b" ")))
    return found


def unquoted(piece: bytes) -> str:
    """Return a percent-encoded piece of a target as text; raise Refusal unless it is UTF-8."""
    try:
        return unquote_to_bytes(piece).decode()
    except UnicodeDecodeError:
        raise Refusal("malformed", "expected UTF-8 in path and query") from None
