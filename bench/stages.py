"""The stages that a record passes, each alone: made ready once, then run for so many batches."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from twisted.internet.task import Clock
from websockets.protocol import State

from bench.floor import Bench, folder
from linkd.api.http import MemoryBudget
from linkd.api.metrics import Metrics
from linkd.api.stream import StreamSession, StreamSink
from linkd.client.record import RecordContext, pack
from linkd.client.session import DaemonSession as ClientSession
from linkd.client.websocket import WebSocket
from linkd.config import Config, NodeSettings
from linkd.core.session import Handshake, Session
from linkd.core.session_effects import Send, SessionSettings, Store
from linkd.log.interface import Appended
from linkd.net.rate_limit import FairShare
from linkd.net.websocket import put, take
from linkd.protocol import client, peer
from linkd.protocol.channels import Patterns
from linkd.protocol.records import (
    Batch,
    EncodedRecord,
    NewRecords,
    Origin,
    SourcePosition,
    encode_records,
)
from tests.support.memory_log import MemoryLog

Run = Callable[[int], None]
"""Passes so many batches through the stage."""


class Load:
    """What goes through the stages.

    Args:
        count: Records a batch.
        size: Bytes a body.
    """

    def __init__(self, count: int, size: int) -> None:
        self.count = count
        self.bodies = [b"x" * size] * count
        self.records = encode_records([EncodedRecord(body) for body in self.bodies])
        self.origin = Origin("edge", "log", "epoch", 1)

    def draft(self) -> NewRecords:
        """Return a draft of one batch."""
        return NewRecords("bench", self.count, self.records, 0.0)

    def batch(self, offset: int, source: SourcePosition | None = None) -> Batch:
        """Return a batch as the log hands it out."""
        return Batch(
            offset, "bench", self.count, self.records, 0.0, self.origin, "epoch", source=source
        )


class _Socket:
    """A WebSocket of the API that takes all."""

    paused = False
    open = True

    def send(self, payload: bytes, binary: bool, more: tuple[bytes, ...] = ()) -> None:
        """Send."""
        self.sent = payload, more

    def close(self, code: int, reason: str) -> None:
        """Close.

        Raises:
            RuntimeError: Always: no stage ends in a refusal.
        """
        raise RuntimeError(reason)


class _Caller:
    """Who may do all."""

    name = "socket"

    def check_publish(self, channel: str) -> None:
        """Allow it."""


def _stream_session(publish: Callable[[NewRecords, Any], None], clock: Clock) -> StreamSession:
    """Return the daemon's end of a stream, on a node that is not there."""
    config = Config(node=NodeSettings(name="edge"))
    log = MemoryLog("edge")
    node: Any = SimpleNamespace(
        name="edge", log=log, config=config, publish=publish, on_measured=[], on_fell=[], on_rose=[]
    )
    measured = Metrics(node)
    api: Any = SimpleNamespace(
        node=node,
        reactor=clock,
        producers=None,
        metrics=measured,
        budget=MemoryBudget(),
        share=FairShare(clock),
    )
    caller: Any = _Caller()
    session = StreamSession(api, caller, _Socket())
    session.message(client.encode([client.Open(1, "", "bench")]), True)
    clock.advance(0)
    return session


def _ignore(_: object) -> None:
    """Settle nothing."""


def _body(body: bytes, _: str) -> bytes:
    """Leave a body as it is."""
    return body


def _acknowledge(_: object) -> Any:
    """Acknowledge nothing."""


def _publish_nothing(_: NewRecords, __: object) -> None:
    """Publish nothing."""


@contextlib.contextmanager
def client_out(load: Load) -> Iterator[Run]:
    """Client: records made, encoded, numbered, put into a masked WebSocket message; its answer."""
    session = ClientSession("bench")
    session.open = True
    socket = WebSocket("ws://localhost/v1/stream", client.SUBPROTOCOL, {})
    socket.state = State.OPEN  # without a handshake
    socket.to_send()
    number = 0

    def run(times: int) -> None:
        nonlocal number
        for _ in range(times):
            number += 1
            packed = pack([EncodedRecord(body) for body in load.bodies])
            session.flight.add("bench", load.count, packed, _ignore)
            for message in session.take(0.0):
                socket.send_binary(message)
            socket.to_send()
            session.received(client.encode([client.Published(number, 1, load.count)]))

    yield run


@contextlib.contextmanager
def api_in(load: Load) -> Iterator[Run]:
    """API: a message decoded, its records checked, handed on, answered."""
    clock = Clock()

    def publish(draft: NewRecords, settled: Any) -> None:
        settled(Appended(1, draft.count))

    session = _stream_session(publish, clock)
    number = 0

    def run(times: int) -> None:
        nonlocal number
        for _ in range(times):
            number += 1
            publishing = client.Publish(number, "bench", load.count, load.records)
            session.message(client.encode([publishing]), True)
            session.on_read_end()
            clock.advance(0)

    yield run


@contextlib.contextmanager
def log_memory(load: Load) -> Iterator[Run]:
    """Log without its disk: offsets given, a batch made, committed, read back."""
    log = MemoryLog("edge")

    def run(times: int) -> None:
        draft = load.draft()
        for _ in range(times):
            log.append(draft, _ignore)
            log._disk.clear()

    yield run


@contextlib.contextmanager
def log_disk(load: Load) -> Iterator[Run]:
    """Log with its disk: as above, CRC, write, fdatasync; as many batches a commit as wait."""
    with folder() as path:
        bench = Bench(Path(path))

        def run(times: int) -> None:
            draft = load.draft()
            for begin in range(0, times, 64):
                bench.append([draft] * min(64, times - begin))

        yield run
        bench.close()


def _greeted() -> tuple[Session, Session]:
    """Return both ends of a session, greeted."""
    every = Patterns((">",))
    ends = []
    for ours, theirs in (("edge", "hub"), ("hub", "edge")):
        settings = SessionSettings(ours, theirs, every, every)
        ends.append(Session(settings, lambda _: "epoch"))
    hellos = [
        peer.Hello(
            1,
            name,
            "bench",
            peer.Generation("boot", 1),
            f"log-{name}",
            (peer.EpochStart("epoch", 1),),
            1,
            None,
            (">",),
            5.0,
        )
        for name in ("edge", "hub")
    ]
    ends[0].greeted(Handshake(hellos[0], hellos[1], 1, True), 0.0)
    ends[1].greeted(Handshake(hellos[1], hellos[0], 1, True), 0.0)
    return ends[0], ends[1]


@contextlib.contextmanager
def session_and_wire(load: Load) -> Iterator[Run]:
    """Session and wire, both ends: a committed batch encoded; decoded, checked; acknowledged."""
    near, far = _greeted()
    offset = 1

    def run(times: int) -> None:
        nonlocal offset
        for _ in range(times):
            batch = load.batch(offset)
            offset = batch.next
            near.outbound.add_backlog(batch.count, len(batch.records), offset)
            for effect in near.outbound.offer([batch], offset, 0.0, 0.0):
                if type(effect) is not Send:
                    continue
                for taken in far.received(peer.decode(effect.payload), 0.0):
                    if type(taken) is Store:
                        far.inbound.stored(taken.batch.source.next)  # type: ignore[union-attr]
            for answer in far.inbound.ack():
                near.received(peer.decode(answer.payload), 0.0)  # type: ignore[union-attr]

    yield run


@contextlib.contextmanager
def net(load: Load) -> Iterator[Run]:
    """Net: a WebSocket frame made and masked; found and unmasked at the other end."""
    payload = peer.encode(
        peer.BatchMessage(1, 2, "epoch", "bench", load.count, len(load.records), load.records)
    )

    def run(times: int) -> None:
        for _ in range(times):
            take(b"".join(put(0x82, payload, 0x80)), 0, 0x80, peer.MAX_MESSAGE_BYTES)

    yield run


@contextlib.contextmanager
def log_store(load: Load) -> Iterator[Run]:
    """Log at the receiver, without its disk: a received batch judged and stored with its cursor."""
    log = MemoryLog("hub")
    position = 1

    def run(times: int) -> None:
        nonlocal position
        for _ in range(times):
            source = SourcePosition("edge", "log", "epoch", position, position + load.count)
            origin = Origin("edge", "log", "epoch", position, position - 1)
            position += load.count
            log.store(
                Batch(0, "bench", load.count, load.records, 0.0, origin, source=source),
                _ignore,
            )
            log._disk.clear()

    yield run


@contextlib.contextmanager
def consumer_out(load: Load) -> Iterator[Run]:
    """API: a batch handed to a subscriber, put into a message."""
    clock = Clock()
    session = _stream_session(_publish_nothing, clock)
    sink = StreamSink(session, 1, ("bench",), 2**62)
    offset = 1

    def run(times: int) -> None:
        nonlocal offset
        for _ in range(times):
            batch = load.batch(offset)
            offset = batch.next
            sink.batch(batch)
            clock.advance(0)

    yield run


class _Taker:
    """Takes records."""

    def records(self, records: list[Any], size: int) -> None:
        """Take them."""

    def gap(self, gap: object) -> None:
        """Hear of a gap."""

    def dropped(self, count: int) -> None:
        """Hear of drops."""

    def ended(self, error: object) -> None:
        """Hear of the end."""


@contextlib.contextmanager
def client_in(load: Load) -> Iterator[Run]:
    """Client: a delivery decoded into records for the application."""
    session = ClientSession("bench")
    session.open = True
    reader = session.subscribe(["bench"], "latest", window=2**40)
    reader.queue, reader.reading = _Taker(), RecordContext(_body, _acknowledge)
    offset = 1

    def run(times: int) -> None:
        nonlocal offset
        for _ in range(times):
            frame = client.Deliver(
                reader.id, offset, "bench", load.count, load.records, 0.0, "edge", offset
            )
            offset += load.count
            session.received(client.encode([frame]))

    yield run


STAGES: dict[str, Callable[[Load], contextlib.AbstractContextManager[Run]]] = {
    "client-out": client_out,
    "api-in": api_in,
    "log": log_memory,
    "log-disk": log_disk,
    "session-wire": session_and_wire,
    "net": net,
    "log-store": log_store,
    "api-out": consumer_out,
    "client-in": client_in,
}
