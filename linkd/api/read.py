"""Read pages of the log, and the exact bytes of one record."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as TimedOut
from twisted.internet.task import deferLater

from linkd.api.auth import Caller
from linkd.api.call import Call, consumer_of, last_record, number, start_of, wants_stream, whole
from linkd.api.errors import ApiError, refusal_of
from linkd.api.http import Response, answer, record_objects, to_json
from linkd.api.sinks import stream_records
from linkd.errors import Gap, LinkdError
from linkd.log.base import Log
from linkd.node.subscriptions import Start
from linkd.protocol.channels import Patterns
from linkd.protocol.records import Batch, Unreadable, read_records

if TYPE_CHECKING:
    from linkd.api.server import ApiServer

DEFAULT_LIMIT = 100
MAX_LIMIT = 10_000
MAX_PAGE_BYTES = 16 * 1024 * 1024
MAX_SCAN_BYTES = 64 * 1024 * 1024
"""A page whose channel is rare ends after so much of the log; `next` goes on from there."""

MAX_WAIT_SECONDS = 300.0
ANSWERED_SECONDS = 0.6
"""Seconds within which other nodes answer a presence query."""

_READ_BYTES = 1_048_576
_HOLD_BYTES = 65_536
_PLAIN_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+(; ?charset=[A-Za-z0-9-]+)?")


async def read(api: ApiServer, call: Call) -> Response | None:
    """Answer a page, or follow the channel as an event stream."""
    pattern = call.path["channel"]
    call.caller.check_patterns((pattern,))
    if wants_stream(call):
        call.only("from", "consumer")
        stream_records(api, call, pattern)
        return None
    last_record(call, api.node.log)
    limit = call.number("limit", DEFAULT_LIMIT, MAX_LIMIT, 1)
    wait = call.seconds("wait", 0.0, MAX_WAIT_SECONDS)
    consumer = consumer_of(call)
    if consumer is None:
        start = start_of(call.text("from"), "earliest")
        position = _position(api.node.log, start)
    else:
        position = await _consumer_position(
            api, call.caller, pattern, start_of(call.text("from"), "latest"), consumer
        )
    page = Page(api, call, pattern, position, limit)
    deadline = api.reactor.seconds() + wait
    await page.fill()
    while not page.records and page.gap is None:
        left = deadline - api.reactor.seconds()
        if left <= 0:
            break
        await wait_for_records(api, call.caller, pattern, page, left)
        await page.fill()
    return Response(200, page.body())


def _position(log: Log, start: Start) -> int:
    """Return the offset that a start means now."""
    if start == "earliest":
        return log.first
    return log.next if start == "latest" else min(max(1, start), log.next)


class Page:
    """Records of one pattern from a position on, filled until there are enough or the log ends.

    Attributes:
        next: Where the next page starts.
        gap: (first, next) of offsets that were wanted and are gone, or None.
    """

    def __init__(self, api: ApiServer, call: Call, pattern: str, position: int, limit: int) -> None:
        self.next = position
        self.gap: tuple[int, int] | None = None
        self.records: list[bytes] = []
        self._api = api
        self._request = call.request
        self._caller = call.caller.name
        self._log = api.node.log
        self._patterns = Patterns((pattern,))
        self._limit = limit
        self._bytes = 0
        self._held = 0
        self._scanned = 0

    async def fill(self) -> None:
        """Read on until the page is full, the log ends, or enough of it was looked at.

        Raises:
            ApiError: So much is held for the caller that there is no room for one record.
        """
        reads, goes_on = self._api.page_reads(self._caller), True
        while goes_on and not self._full():
            await reads.acquire()
            try:
                goes_on = await self._fill_some()
            finally:
                reads.release()

    async def _fill_some(self) -> bool:
        """Read a piece of the log, and take it in slices; return whether there may be more."""
        api = self._api
        batches = await self._read()
        if batches is None:
            return True
        if api.share.left() <= 0:  # others wait, or came at the same moment from the disk
            await api.share.turn(self._caller)
        clock, until = self._log.clock(), api.share.end()
        for batch in batches:
            self._scanned += len(batch.records)
            for fits in self._take(batch, clock):
                if not fits:
                    return False
                if api.reactor.seconds() >= until:
                    await api.share.turn(self._caller)
                    until = api.share.end()
        return bool(batches)

    def _full(self) -> bool:
        return (
            len(self.records) >= self._limit
            or self._bytes >= MAX_PAGE_BYTES
            or self._scanned >= MAX_SCAN_BYTES
        )

    async def _read(self) -> list[Batch] | None:
        """Return what comes next; None where a gap was stepped over."""
        try:
            found = self._log.read(self.next, _READ_BYTES)
            return found if found is not None else await fetch(self._log, self.next, _READ_BYTES)
        except Gap as gap:
            self._note_gap(gap.first)
            return None

    def _note_gap(self, to: int) -> None:
        first = self.gap[0] if self.gap else self.next
        self.gap, self.next = (first, to), to

    def _take(self, batch: Batch, clock: float) -> Iterator[bool]:
        """Take a batch's records; yield after each step whether there is room for more."""
        if batch.next <= self.next:
            return
        if batch.offset > self.next:
            self._note_gap(batch.offset)
        batch = batch.from_offset(self.next)
        if self._patterns.match(batch.channel) and not batch.expired(clock):
            for offset, encoded in record_objects(batch):
                full = len(self.records) >= self._limit or self._bytes >= MAX_PAGE_BYTES
                if full or not self._hold(len(encoded)):
                    self.next = offset
                    yield False
                    return
                self.records.append(encoded)
                self._bytes += len(encoded)
                yield True
        self.next = batch.next
        yield True

    def _hold(self, size: int) -> bool:
        """Have a record counted; return whether there is room for it, else raise for the first."""
        more = self._bytes + size - self._held
        if more <= 0:
            return True
        try:
            self._request.hold(max(more, _HOLD_BYTES))
        except ApiError:
            if self.records:
                return False
            raise
        self._held += max(more, _HOLD_BYTES)
        return True

    def body(self) -> bytes:
        """Return the page as JSON; its records are let go."""
        gap = None if self.gap is None else {"first": self.gap[0], "next": self.gap[1]}
        pieces = [b'{"records":[']
        for record in self.records:
            pieces += (record, b",")
        if self.records:
            pieces.pop()
        pieces.append(b'],"next":%d,"gap":%b}\n' % (self.next, to_json(gap)))
        self.records = []
        return b"".join(pieces)


def fetch(log: Log, position: int, size: int) -> Deferred[list[Batch]]:
    """Read from disk; fails with Gap or LogDamaged."""
    done: Deferred[list[Batch]] = Deferred()

    def fetched(found: list[Batch] | LinkdError) -> None:
        if done.called:
            return
        if isinstance(found, LinkdError):
            done.errback(found)
        else:
            done.callback(found)

    log.fetch(position, size, fetched)
    return done


class _Arrival:
    """A sink that waits for the first record of a pattern, or a gap, and accepts none.

    Args:
        waits: False: it accepts nothing from the beginning.
    """

    def __init__(self, waits: bool = True) -> None:
        self.came: Deferred[None] = Deferred()
        self.next = 0
        if not waits:
            self._fire()

    def _fire(self) -> None:
        if not self.came.called:
            self.came.callback(None)

    def has_room(self, size: int) -> bool:
        """Go on until there is something."""
        return not self.came.called

    def hold(self, size: int) -> bool:
        """Keep nothing."""
        return size <= 0

    def batch(self, batch: Batch) -> bool:
        """Note the offset of the first record."""
        self.next = batch.offset
        self._fire()
        return False

    def volatile(self, batch: Batch) -> None:
        """Leave out what has no offset."""

    def gap(self, first: int, next: int) -> None:
        """Have the page note it."""
        self._fire()

    def end(self, reason: str) -> None:
        """Wait no longer."""
        self._fire()


async def _consumer_position(
    api: ApiServer, caller: Caller, pattern: str, start: Start, consumer: str
) -> int:
    """Claim a consumer's name for one page; return its position."""
    subscription = api.subscribe(caller, (pattern,), start, _Arrival(waits=False), consumer)
    if subscription.known is not None:
        await subscription.known
        await api.node.reached(subscription.next)
    position = subscription.next
    subscription.close()
    return position


async def wait_for_records(
    api: ApiServer, caller: Caller, pattern: str, page: Page, within: float
) -> None:
    """Wait until something came for a page, or the time is over.

    Only records that the page wants wake it: it follows its pattern.
    """
    arrival = _Arrival()
    subscription = api.subscribe(caller, (pattern,), page.next, arrival)
    arrival.came.addTimeout(within, api.reactor)
    try:
        await arrival.came
    except TimedOut:
        return
    finally:
        subscription.close()
    page.next = max(page.next, arrival.next)


async def present(api: ApiServer, call: Call) -> Response:
    """Answer the members of a channel."""
    channel = call.caller.check_subscribe(call.path["channel"])
    if api.presence.want(channel):
        await deferLater(api.reactor, ANSWERED_SECONDS, lambda: None)
        await api.share.turn(call.caller.name)
    presence = api.presence
    there = {"count": presence.count(channel), "members": presence.members(channel)}
    return answer({"channel": channel, **there})


async def record(api: ApiServer, call: Call) -> Response:
    """Answer the exact bytes of one body, with the content type that it was published with."""
    offset = number(call.path["offset"], "offset")
    log = api.node.log
    batch = await _at(log, offset)
    if not all(patterns.match(batch.channel) for patterns in call.caller.subscribe):
        raise ApiError("channel-refused", f"{call.caller.name} may not read {batch.channel}")
    if batch.expired(log.clock()):
        raise ApiError("not-found", f"the record at {offset} has outlived its ttl")
    one = read_records(batch.records, batch.count)[offset - batch.offset]
    plain = _PLAIN_TYPE.fullmatch(one.content_type)
    about = {f"Linkd-Header-{name}": value for name, value in (one.headers or {}).items()}
    if isinstance(one, Unreadable):
        about["Linkd-Unreadable"] = "true"
    return Response(
        200,
        one.body,
        one.content_type if plain else "application/octet-stream",
        about
        | {
            "Linkd-Channel": batch.channel,
            "Content-Disposition": "attachment",
            "Content-Security-Policy": "sandbox; default-src 'none'",
        },
    )


async def _at(log: Log, offset: int) -> Batch:
    """Return the batch that contains `offset`; raise ApiError where there is none."""
    if not 0 < offset < log.next:
        raise ApiError("not-found", f"there is no record at {offset}: the next is {log.next}")
    try:
        found = log.read(offset, 1)
        if found is None:
            found = await fetch(log, offset, 1)
    except Gap as gap:
        raise ApiError("gap", str(gap)) from None
    except LinkdError as error:
        raise refusal_of(error) from None
    for batch in found:
        if batch.offset <= offset < batch.next:
            return batch
    raise ApiError("gap", f"offset {offset} is no longer in the log")


class AckBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of an ack: everything below `next` is done, in the log with that id."""

    next: int | float
    log: str = ""


async def acknowledge(api: ApiServer, call: Call) -> Response:
    """Set a consumer's cursor; answered once it is on disk."""
    await api.node.refreshed()
    consumer = api.find_consumer(call)
    ack = call.json(AckBody)
    wanted = whole(ack.next, "next")
    if ack.log not in ("", api.node.log.id):
        raise ApiError("gap", "the node has another log than the one of this ack")
    await api.node.reached(wanted)
    await api.node.ack(consumer.key, wanted)
    known = api.node.subscriptions.consumer(consumer.key) or consumer
    return answer({"owner": known.owner, "name": known.name, "next": known.next})
