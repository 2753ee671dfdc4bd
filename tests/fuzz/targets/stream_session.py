"""`/v1/stream`: a client's messages, given to a session on a node in memory."""

from __future__ import annotations

from linkd.api.auth import SOCKET, Caller
from linkd.api.stream import StreamSession
from linkd.protocol import client
from linkd.protocol.channels import Patterns
from linkd.protocol.records import EncodedRecord, encode_records
from tests.fuzz.reading import Input
from tests.fuzz.serving import Bench, Socket

BENCH = Bench()
_NARROW = Caller("shop", (Patterns(("orders",)),), (Patterns(("orders", "news.*")),), False)
_CHANNELS = ("orders", "news.a", "telemetry.x", ">", "*.a", "", "a..b", "n" * 255)
_STARTS: tuple[client.Start, ...] = ("earliest", "latest", 0, 1, 5, 2**62)
_PRODUCERS = ("", "p1", "p2", "p" * 128)
_RECORDS = tuple(encode_records([EncodedRecord(b"x" * size, "", name)] * count)
                 for size, name, count in
                 ((0, "", 1), (3, "a", 2), (700, "", 3), (66_000, "b", 1)))  # fmt: skip


def one(content: bytes) -> None:
    """Play a session of at most 48 messages."""
    _play(Input(content))
    BENCH.finish()


def _play(given: Input) -> None:
    socket = Socket()
    caller = _NARROW if given.byte() & 1 else SOCKET
    session = StreamSession(BENCH.api, caller, socket)
    session.opened()
    if given.byte() % 4:
        session.message(client.encode([client.Open(1, given.choice(_PRODUCERS))]), True)
    for _ in range(48):
        if not given or not socket.open:
            break
        what = given.byte() % 8
        if what == 0:
            session.message(given.piece(), bool(given.byte() % 16))
        elif what == 1:
            socket.paused = not socket.paused
            if not socket.paused:
                session.on_writable()
        elif what == 2:
            BENCH.node.change("hub", given.choice(("up", "connecting")))
            BENCH.clock.advance(0.0)
        elif what == 3:
            BENCH.node.reach("hub", given.byte())
            BENCH.clock.advance(given.byte())
        else:
            frames = [_frame(given) for _ in range(1 + given.byte() % 3)]
            session.message(client.encode(frames), True)
        session.on_read_end()
        for _ in range(100):
            if not session.busy:
                break
            session.go_on()
    for payload, _ in socket.sent:
        client.decode_from_daemon(payload)
    session.closed()


def _frame(given: Input) -> client.FromClient:
    """Return a frame that is near to what a client says."""
    what, number = given.byte() % 9, given.byte() % 4
    if what == 0:
        return client.Open(given.byte() % 3, given.choice(_PRODUCERS))
    if what == 1:
        return client.WaitForPeer(
            number, given.choice(("hub", "nobody")), given.choice(_CHANNELS),
            abs(given.signed()), float(given.byte()),
        )  # fmt: skip
    if what == 2:
        start: client.Start = given.choice(_STARTS)
        names = tuple(given.choice(_CHANNELS) for _ in range(1 + given.byte() % 2))
        name = given.choice(("", "", "c1", "C/", "c" * 63))
        return client.Subscribe(number, names, start, name, given.choice((0, 1, 500, 2**62)))
    if what == 3:
        return client.Unsubscribe(number)
    if what == 4:
        return client.Credit(number, given.choice((0, 1, 500, 2**62)))
    if what == 5:
        return client.ConsumerAck(number, abs(given.signed()))
    if what == 6:
        return client.WatchStatus()
    ids = given.choice(((), (), ("a", "a"), ("b",), ("",)))
    count = given.choice((1, 1, 2, 3, 2**32, 2**62))
    ttl = given.choice((None, None, 0.0, 1.0, 1e10))
    records = given.choice(_RECORDS) if given.byte() % 4 else given.piece()
    return client.Publish(1 + given.byte(), given.choice(_CHANNELS), count, records, ttl, ids)
