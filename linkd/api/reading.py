"""Pages of the log, and the exact bytes of one record."""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as TimedOut

from linkd.api.answer import Answer, answer
from linkd.api.asked import consumer_of, last_event, start_of, wants_stream
from linkd.api.bodies import record_objects, to_json
from linkd.api.call import Call, number, whole
from linkd.api.port import Start
from linkd.api.refusals import Refusal, refusal_of
from linkd.api.service import Service
from linkd.api.sse import stream_records
from linkd.core.batch import Batch, Unreadable, read_records
from linkd.core.channels import Patterns
from linkd.errors import Gap, LinkdError
from linkd.log.engine import Log

DEFAULT_LIMIT = 100
MAX_LIMIT = 10_000
MAX_PAGE_BYTES = 16 * 1024 * 1024
MAX_SCAN_BYTES = 64 * 1024 * 1024
"""A page whose channel is rare ends after so much of the log; `next` goes on from there."""

MAX_WAIT_SECONDS = 300.0
_READ_BYTES = 1_048_576
_PLAIN_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+(; ?charset=[A-Za-z0-9-]+)?")


async def read(api: Service, call: Call) -> Answer | None:
    """Answer a page, or follow the channel as an event stream."""
    pattern = call.caller.check_subscribe(call.path["channel"])
    if wants_stream(call):
        call.only("from", "consumer")
        stream_records(api, call, pattern)
        return None
    call.only("from", "limit", "wait", "consumer")
    last_event(call)
    limit = call.number("limit", DEFAULT_LIMIT, MAX_LIMIT, 1)
    wait = call.seconds("wait", 0.0, MAX_WAIT_SECONDS)
    consumer = consumer_of(call)
    if consumer is None:
        start = start_of(call.text("from"), "earliest")
        position = _position(api.node.log, start)
    else:
        position = api.stand(call.caller, pattern, start_of(call.text("from"), "latest"), consumer)
    page = Page(api, pattern, position, limit)
    deadline = api.reactor.seconds() + wait
    await page.fill()
    while not page.records and page.gap is None:
        left = deadline - api.reactor.seconds()
        if left <= 0 or not await committed(api, page.next, left):
            break
        await page.fill()
    return Answer(200, page.body())


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

    def __init__(self, api: Service, pattern: str, position: int, limit: int) -> None:
        self.next = position
        self.gap: tuple[int, int] | None = None
        self.records: list[bytes] = []
        self._api = api
        self._log = api.node.log
        self._patterns = Patterns((pattern,))
        self._limit = limit
        self._bytes = 0
        self._scanned = 0

    async def fill(self) -> None:
        """Read on until the page is full, the log ends, or enough of it was looked at."""
        while not self._full():
            batches = await self._read()
            if batches is None:
                continue
            if not batches:
                break
            clock = self._log.clock()
            for batch in batches:
                self._scanned += len(batch.records)
                if not self._take(batch, clock):
                    return
            await self._api.pause()

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

    def _take(self, batch: Batch, clock: float) -> bool:
        """Take a batch's records; tell whether there is room for more."""
        if batch.next <= self.next:
            return True
        if batch.offset > self.next:
            self._note_gap(batch.offset)
        batch = batch.from_offset(self.next)
        if self._patterns.match(batch.channel) and not batch.expired(clock):
            for offset, encoded in record_objects(batch):
                if len(self.records) >= self._limit or self._bytes >= MAX_PAGE_BYTES:
                    self.next = offset
                    return False
                self.records.append(encoded)
                self._bytes += len(encoded)
        self.next = batch.next
        return True

    def body(self) -> bytes:
        """Return the page as JSON."""
        gap = None if self.gap is None else {"first": self.gap[0], "next": self.gap[1]}
        return b'{"records":[%b],"next":%d,"gap":%b}' % (
            b",".join(self.records),
            self.next,
            to_json(gap),
        )


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


async def committed(api: Service, position: int, within: float) -> bool:
    """Wait until the log reaches beyond `position`; tell whether it has in time."""
    log = api.node.log
    if log.next > position:
        return True
    moved: Deferred[None] = Deferred()
    told: Callable[[int], None] = lambda _: None if moved.called else moved.callback(None)  # noqa: E731
    log.on_commit.append(told)
    moved.addTimeout(within, api.reactor)
    try:
        await moved
    except TimedOut:
        return False
    finally:
        log.on_commit.remove(told)
    return True


async def record(api: Service, call: Call) -> Answer:
    """Answer the exact bytes of one body, with the content type that it was published with."""
    call.only()
    offset = number(call.path["offset"], "offset")
    log = api.node.log
    batch = await _at(log, offset)
    if not all(patterns.match(batch.channel) for patterns in call.caller.subscribe):
        raise Refusal("channel-refused", f"{call.caller.name} may not read {batch.channel}")
    if batch.expired(log.clock()):
        raise Refusal("not-found", f"the record at {offset} has outlived its ttl")
    one = read_records(batch.records, batch.count)[offset - batch.offset]
    plain = _PLAIN_TYPE.fullmatch(one.content_type)
    about = {f"Linkd-Header-{name}": value for name, value in (one.headers or {}).items()}
    if isinstance(one, Unreadable):
        about["Linkd-Unreadable"] = "true"
    return Answer(
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
    """Return the batch in which `offset` lies; raise Refusal where there is none."""
    if not 0 < offset < log.next:
        raise Refusal("not-found", f"there is no record at {offset}: the next is {log.next}")
    try:
        found = log.read(offset, 1)
        if found is None:
            found = await fetch(log, offset, 1)
    except Gap as gap:
        raise Refusal("gap", str(gap)) from None
    except LinkdError as error:
        raise refusal_of(error) from None
    for batch in found:
        if batch.offset <= offset < batch.next:
            return batch
    raise Refusal("gap", f"offset {offset} is no longer in the log")


class ConsumerAck(msgspec.Struct, forbid_unknown_fields=True):
    """The body of an ack: everything below `next` is done."""

    next: int | float


async def acknowledge(api: Service, call: Call) -> Answer:
    """Set a consumer's cursor; answered once it is on disk."""
    call.only("owner")
    consumer = api.find_consumer(call)
    wanted = whole(call.json(ConsumerAck).next, "next")
    await api.node.ack(consumer.key, wanted)
    known = api.node.consumer(consumer.key) or consumer
    return answer({"owner": known.owner, "name": known.name, "next": known.next})
