"""What a call that reads asks for: where from, under whose name, as a page or as a stream."""

from __future__ import annotations

import re

from linkd.api.call import Call, number
from linkd.api.port import Start
from linkd.api.refusals import Refusal
from linkd.config.settings import CONSUMER_NAME_PATTERN

_CONSUMER = re.compile(CONSUMER_NAME_PATTERN)


def wants_stream(call: Call) -> bool:
    """Tell whether the caller asks for an event stream."""
    return "text/event-stream" in (call.header("Accept") or "").lower()


def last_event(call: Call) -> int | None:
    """Return the id behind which an event stream resumes, if it does."""
    given = call.header("Last-Event-ID")
    return number(given, "Last-Event-ID") if given else None


def consumer_of(call: Call) -> str | None:
    """Return the query's consumer, if it names one; raise Refusal where that is no name."""
    name = call.text("consumer")
    return None if name is None else check_consumer(name)


def check_consumer(name: str) -> str:
    """Return `name`; raise Refusal where no consumer can be called so."""
    if not _CONSUMER.fullmatch(name):
        raise Refusal("malformed", f"{name[:63]!r} is no consumer's name: {CONSUMER_NAME_PATTERN}")
    return name


def start_of(given: str | None, default: Start) -> Start:
    """Return where reading starts: `earliest`, `latest` or an offset."""
    if given is None:
        return default
    if given == "earliest":
        return "earliest"
    return "latest" if given == "latest" else number(given, "from")
