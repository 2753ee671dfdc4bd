"""One API call: caller, path, query parameters, headers and body."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TypeVar
from urllib.parse import unquote_to_bytes

import msgspec

from linkd.api.auth import Caller
from linkd.api.errors import ApiError
from linkd.api.http import ApiRequest
from linkd.config.settings import CONSUMER_NAME_PATTERN
from linkd.core.session import find_resume_point
from linkd.log.base import Log
from linkd.log.interface import RESUME_PREFIX
from linkd.node.subscriptions import Start
from linkd.protocol.peer import Cursor, EpochEnd

_Struct = TypeVar("_Struct")


class Call:
    """One call under way.

    Args:
        request: The request, complete.
        caller: The caller.
        path: The values of the path parameters, by name.
        names: The valid query parameters; see `query_of`.
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
        """Return a query value that is a whole number within bounds, else raise ApiError."""
        given = self.text(name)
        return default if given is None else number(given, name, most, least)

    def seconds(self, name: str, default: float, most: float) -> float:
        """Return a query value in seconds, cut to `most`, else raise ApiError."""
        given = self.text(name)
        return default if given is None else min(seconds(given, name), most)

    def only(self, *names: str) -> None:
        """Raise ApiError where the query has other names."""
        other = sorted(set(self._query) - set(names) - {"token"})
        if other:
            known = ", ".join(names) or "none"
            raise ApiError("malformed", f"unknown in the query: {other[0][:80]}; known: {known}")

    def json(self, kind: type[_Struct]) -> _Struct:
        """Return the body as a struct, an empty one as `{}`; raise ApiError if it does not fit."""
        try:
            found: _Struct = msgspec.json.decode(self.request.body() or b"{}", type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ApiError("malformed", f"the body: {error}") from None
        return found


def number(given: str, name: str, most: int = 2**62, least: int = 0) -> int:
    """Return a whole number in plain digits within bounds; raise ApiError where it is none."""
    if given.isascii() and given.isdigit() and len(given) <= 19 and least <= int(given) <= most:
        return int(given)
    raise ApiError(
        "malformed", f"{name}: expected a number from {least} to {most}, got {given[:40]!r}"
    )


def whole(value: int | float, name: str) -> int:
    """Return an offset out of JSON, where 5.0 is 5; raise ApiError where it is none."""
    if 0 <= value <= 2**62 and value == int(value):
        return int(value)
    raise ApiError("malformed", f"{name}: expected an offset, got {value}")


def seconds(given: str, name: str) -> float:
    """Return seconds that are finite and not negative; raise ApiError for any other value."""
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    if not (given.isascii() and 0.0 <= value < math.inf and "_" not in given):
        raise ApiError("malformed", f"{name}: expected seconds, got {given[:40]!r}")
    return value


def seconds_between(given: str, name: str, least: float, most: float) -> float:
    """Return seconds within bounds; raise ApiError where it is no such number."""
    value = seconds(given, name)
    if least <= value <= most:
        return value
    expected = f"expected seconds from {least:g} to {most:g}"
    raise ApiError("malformed", f"{name}: {expected}, got {given[:40]!r}")


def query_of(uri: bytes, names: Mapping[str, bool] | None = None) -> dict[str, list[str]]:
    """Return a target's query: the values of each name.

    Args:
        uri: The target.
        names: The names that count, and whether each may come several times; all others are
            ignored, whatever they hold. None: all count, and each may come once.

    Raises:
        ApiError: A name that counts comes twice, or is no UTF-8.
    """
    found: dict[str, list[str]] = {}
    _, _, query = uri.partition(b"?")
    for piece in query.split(b"&"):
        name, _, value = piece.partition(b"=")
        try:
            key = unquoted(name.replace(b"+", b" "))
        except ApiError:
            if names is None:
                raise
            continue
        if not piece or (names is not None and key not in names):
            continue
        if key in found and not (names is not None and names[key]):
            raise ApiError("malformed", f"{key[:80]} occurs twice in the query")
        found.setdefault(key, []).append(unquoted(value.replace(b"+", b" ")))
    return found


def unquoted(piece: bytes) -> str:
    """Return a percent-encoded piece of a target as text; raise ApiError unless it is UTF-8."""
    try:
        return unquote_to_bytes(piece).decode()
    except UnicodeDecodeError:
        raise ApiError("malformed", "expected UTF-8 in path and query") from None


_CONSUMER = re.compile(CONSUMER_NAME_PATTERN)


def wants_stream(call: Call) -> bool:
    """Return whether the caller asks for an event stream."""
    return "text/event-stream" in (call.request.header("Accept") or "").lower()


def last_event(call: Call) -> int | None:
    """Return the number behind which a stream of events resumes, if it does."""
    given = call.request.header("Last-Event-ID")
    return number(given, "Last-Event-ID") if given else None


def last_record(call: Call, log: Log) -> Start | None:
    """Return where a stream of records resumes by the id that it got last, None where it got none.

    The id is OFFSET@EPOCH; a bare offset is taken to be of this log.
    """
    offset, _, epoch = (call.request.header("Last-Event-ID") or "").partition("@")
    if not offset:
        return None
    next_ = number(offset, "Last-Event-ID") + 1
    return resumed(log, (EpochEnd(epoch, next_),)) if epoch else next_


def resumed(log: Log, seen: Sequence[EpochEnd]) -> Start:
    """Return where a reader resumes, from the epoch ends that it has seen, oldest first.

    That is the end of the newest epoch that both know, where the log was put back to an older copy;
    the earliest record where it is another log: a message twice is better than one lost.
    """
    agreed = find_resume_point(log.state.epochs(), log.next, Cursor(log.id, tuple(seen), 0))
    return "earliest" if agreed is None else agreed.next


def consumer_of(call: Call) -> str | None:
    """Return the query's consumer, if it names one; raise ApiError where that is no name."""
    name = call.text("consumer")
    return None if name is None else lasting_consumer(name)


def lasting_consumer(name: str) -> str:
    """Return `name`; raise ApiError where no consumer that lasts can be called so."""
    if name.startswith(RESUME_PREFIX):
        raise ApiError(
            "malformed",
            f"{name[:63]!r} is no consumer's name: those of ?resume= begin with"
            f" {RESUME_PREFIX}, and last some minutes only",
        )
    return check_consumer(name)


def check_consumer(name: str) -> str:
    """Return `name`; raise ApiError where no consumer can be called so."""
    if not _CONSUMER.fullmatch(name):
        raise ApiError(
            "malformed",
            f"{name[:63]!r} is no consumer's name: expected 1 to 63 letters, digits,"
            " `.`, `_` and `-`, beginning with a letter or digit",
        )
    return name


def start_of(given: str | None, default: Start) -> Start:
    """Return where reading starts: `earliest`, `latest` or an offset."""
    if given is None:
        return default
    if given == "earliest":
        return "earliest"
    return "latest" if given == "latest" else number(given, "from")
