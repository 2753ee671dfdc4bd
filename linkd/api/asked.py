"""What a call that reads asks for: where from, under whose name, as a page or as a stream."""

from __future__ import annotations

import re
from collections.abc import Sequence

from linkd.api.call import Call, number
from linkd.api.port import Start
from linkd.api.refusals import Refusal
from linkd.config.settings import CONSUMER_NAME_PATTERN
from linkd.core.resume import agree
from linkd.core.wire import Cursor, EpochEnd
from linkd.log.engine import RESUME_PREFIX, Log

_CONSUMER = re.compile(CONSUMER_NAME_PATTERN)


def wants_stream(call: Call) -> bool:
    """Tell whether the caller asks for an event stream."""
    return "text/event-stream" in (call.header("Accept") or "").lower()


def last_event(call: Call) -> int | None:
    """Return the number behind which a stream of events resumes, if it does."""
    given = call.header("Last-Event-ID")
    return number(given, "Last-Event-ID") if given else None


def last_record(call: Call, log: Log) -> Start | None:
    """Return where a stream of records resumes by the id that it got last, None where it got none.

    The id is OFFSET@EPOCH; a bare offset is taken to be of this log.
    """
    offset, _, epoch = (call.header("Last-Event-ID") or "").partition("@")
    if not offset:
        return None
    next_ = number(offset, "Last-Event-ID") + 1
    return resumed(log, (EpochEnd(epoch, next_),)) if epoch else next_


def resumed(log: Log, seen: Sequence[EpochEnd]) -> Start:
    """Return where a reader goes on that has a log as far as it says, by epochs, oldest first.

    That is the end of the newest epoch that both know, where the log was put back to an older copy;
    the earliest record where it is another log: a message twice is better than one lost.
    """
    agreed = agree(log.epochs(), log.next, Cursor(log.id, tuple(seen), 0))
    return "earliest" if agreed is None else agreed.next


def consumer_of(call: Call) -> str | None:
    """Return the query's consumer, if it names one; raise Refusal where that is no name."""
    name = call.text("consumer")
    return None if name is None else lasting_consumer(name)


def lasting_consumer(name: str) -> str:
    """Return `name`; raise Refusal where no consumer that lasts can be called so."""
    if name.startswith(RESUME_PREFIX):
        raise Refusal(
            "malformed",
            f"{name[:63]!r} is no consumer's name: those of ?resume= begin with"
            f" {RESUME_PREFIX}, and last some minutes only",
        )
    return check_consumer(name)


def check_consumer(name: str) -> str:
    """Return `name`; raise Refusal where no consumer can be called so."""
    if not _CONSUMER.fullmatch(name):
        raise Refusal(
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
