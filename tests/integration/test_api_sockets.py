"""`/ws` and `/v1/stream` on a fake node, over real sockets, with the `websockets` library."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_twisted
from twisted.internet import threads
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect, unix_connect
from websockets.typing import Subprotocol

from linkd.api import stream as api_stream
from linkd.api import websocket
from linkd.api.auth import Caller
from linkd.api.websocket import MAX_FRAMES
from linkd.protocol import client as stream
from linkd.protocol.channels import Patterns
from linkd.protocol.records import (
    BATCH_OVERHEAD_BYTES,
    EncodedRecord,
    NewRecords,
    decode_records,
    encode_records,
)
from tests.support.api_calls import Served, thread, until
from tests.support.fake_node import KEY, SHOP_KEY

ONE = encode_records([EncodedRecord(b"x" * 100)])


@pytest_twisted.async_yield_fixture  # type: ignore[misc]
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    one = Served(tmp_path)
    yield one
    await one.stop()


def put(served: Served, channel: str, *bodies: bytes) -> None:
    """Store messages."""
    records = [EncodedRecord(body, "", "", "application/json") for body in bodies]
    draft = NewRecords(channel, len(records), encode_records(records), 1_790_000_000.25)
    served.node.log.append(draft, lambda _: None)


class Text:
    """A client of `/ws`; blocks, for a thread."""

    def __init__(self, wire: ClientConnection) -> None:
        self.wire = wire

    def say(self, frame: Any) -> None:
        self.wire.send(frame if isinstance(frame, str) else json.dumps(frame))

    def hear(self) -> Any:
        got = self.wire.recv(timeout=5)
        assert isinstance(got, str)
        try:
            return json.loads(got)
        except ValueError:
            return got

    def silent(self) -> bool:
        try:
            self.wire.recv(timeout=0.2)
        except TimeoutError:
            return True
        return False


@contextmanager
def text(served: Served, query: str = "") -> Iterator[Text]:
    with unix_connect(served.path, f"ws://localhost/ws?{query}") as wire:
        yield Text(wire)


class Stream:
    """A client of `/v1/stream`; blocks, for a thread."""

    def __init__(self, wire: ClientConnection) -> None:
        self.wire = wire
        self.frames: list[Any] = []

    def say(self, *frames: Any) -> None:
        self.wire.send(stream.encode(frames))

    def hear(self, kind: type | None = None) -> Any:
        """Return the next frame, or the next of a kind; others are dropped."""
        while True:
            while not self.frames:
                message = self.wire.recv(timeout=5)
                assert isinstance(message, bytes)
                self.frames = list(stream.decode_from_daemon(message))
            frame = self.frames.pop(0)
            if kind is None or isinstance(frame, kind):
                return frame


@contextmanager
def streaming(
    served: Served, producer: str = "", version: int = stream.VERSION
) -> Iterator[Stream]:
    with unix_connect(
        served.path,
        "ws://localhost/v1/stream",
        subprotocols=[Subprotocol(stream.SUBPROTOCOL)],
        max_size=None,
    ) as wire:
        client = Stream(wire)
        client.say(stream.Open(version, producer, "tests"))
        assert client.hear(stream.Opened).version == min(version, stream.VERSION)
        yield client


def talk(served: Served, query: str, call: Callable[[Text], Any]) -> Any:
    """Run `call` with a client of `/ws` in a thread."""

    def run() -> Any:
        with text(served, query) as client:
            return call(client)

    return thread(run)


def pump(served: Served, call: Callable[[Stream], Any], producer: str = "") -> Any:
    """Run `call` with a client of the stream in a thread."""

    def run() -> Any:
        with streaming(served, producer) as client:
            return call(client)

    return thread(run)


# /ws


@pytest_twisted.ensureDeferred
async def test_who_only_answers_pings_stays(served: Served) -> None:
    """Each answer counted as a frame of a message: a reader was cut after 1,025, in 85 minutes."""

    def run(client: Text) -> bool:
        for _ in range(2 * MAX_FRAMES + 10):
            client.wire.pong(b"here")
        return client.wire.ping().wait(5)

    assert await talk(served, "channel=orders", run)


@pytest_twisted.ensureDeferred
async def test_a_message_in_too_many_frames_ends_the_connection(served: Served) -> None:
    def run(client: Text) -> int | None:
        with suppress(ConnectionClosed):
            client.wire.send(["x"] * (MAX_FRAMES + 10))
            client.wire.recv(timeout=5)
        return client.wire.close_code

    assert await talk(served, "channel=orders", run) == 1008


@pytest.mark.parametrize("query", ["channel=orders", "channel=orders&linkd=1"])
@pytest_twisted.ensureDeferred
async def test_pongs_come_while_a_message_comes_in(
    served: Served, query: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that sent 900 kB at 50 kB/s heard nothing for 18 s, and dropped the connection."""
    monkeypatch.setattr(websocket, "LIFE_SECONDS", 0.1)
    heard: list[bool] = []
    monkeypatch.setattr(websocket.ApiWebSocket, "sendPong", lambda self: heard.append(True))

    def pieces() -> Iterator[str]:
        yield '"'
        for _ in range(8):
            time.sleep(0.05)
            yield "x"
        yield '"'

    def run(client: Text) -> list[Any]:
        client.wire.send(pieces())
        got = [client.hear()]
        if "linkd=1" in query:
            got = [client.hear()]
        while got[-1] != "x" * 8:
            got.append(client.hear())
        return got

    got = await talk(served, query, run)
    assert 2 <= len(heard) <= 5
    assert got[:-1] == ([{"type": "pong"}] * len(heard) if "linkd=1" in query else [])


def subscribe(name: str, pattern: str, **more: Any) -> dict[str, Any]:
    """Return the frame that begins a subscription with a name."""
    data = {"channel": pattern, "subscription": name, **more}
    return {"type": "subscribe", "data": data, "id": name}


@pytest_twisted.ensureDeferred
async def test_each_named_subscription_has_its_own_stream(served: Served) -> None:
    put(served, "a.b", b"1", b"2")

    def run(client: Text) -> None:
        opened = client.hear()
        log = served.node.log
        assert opened["type"] == "opened"
        told = opened["data"]
        assert (told["log"], told["epoch"], told["next"]) == (log.id, log.epoch, 3)
        client.say(subscribe("x", "a.*", **{"from": 2}))
        assert client.hear()["data"] == {"id": "x", "offset": 2, "epoch": log.epoch}
        got = client.hear()
        assert (got["subscription"], got["offset"], got["data"]) == ("x", 2, 2)
        client.say(subscribe("y", "a.*", **{"from": "earliest"}))
        assert client.hear()["data"]["offset"] == 1
        assert [(one["subscription"], one["offset"]) for one in (client.hear(), client.hear())] == [
            ("y", 1),
            ("y", 2),
        ]
        client.say(subscribe("y", "other"))
        assert client.hear()["data"]["error"] == "malformed"
        client.say({"type": "unsubscribe", "data": {"subscription": "y"}, "id": 5})
        assert client.hear()["type"] == "ack"
        client.say({"type": "unsubscribe", "data": {"subscription": "y"}, "id": 6})
        assert client.hear()["data"]["error"] == "not-found"
        client.say({"type": "made", "data": 3, "channel": "a.b", "id": "m"})
        got = [client.hear(), client.hear()]
        assert {
            one["data"]["offset"] if one["type"] == "ack" else one["offset"] for one in got
        } == {3}
        assert client.silent()

    await talk(served, "linkd=1&envelope=1", run)


@pytest_twisted.ensureDeferred
async def test_a_quiet_subscription_is_told_its_position(served: Served) -> None:
    """Each reconnect sent 100,000 messages again that were for others."""

    def run(client: Text) -> None:
        client.hear()
        client.say(subscribe("x", "quiet"))
        assert client.hear()["data"]["offset"] == 1
        client.say({"type": "ping"})
        assert client.hear() == {"type": "pong"}
        for number in range(3):
            client.say({"type": "made", "data": number, "channel": "busy", "id": number})
            client.hear()
        for _ in range(2):
            client.say({"type": "ping"})
            told = client.hear()
            if told["type"] == "position":
                data = {"next": 4, "epoch": served.node.log.epoch, "subscription": "x"}
                assert told["data"] == data
                assert client.hear() == {"type": "pong"}
            else:
                assert told == {"type": "pong"}
        assert client.silent()

    await talk(served, "linkd=1&envelope=1", run)


@pytest.mark.parametrize(
    ("seen", "first"), [([["EPOCH", 3]], 3), ([["EPOCH", 9]], 5), ([["another", 3]], 1)]
)
@pytest_twisted.ensureDeferred
async def test_a_subscription_resumes_in_the_history_that_both_know(
    served: Served, seen: list[list[Any]], first: int
) -> None:
    """After the log was replaced a page was deaf until the offsets had passed its own again."""
    put(served, "a", b"1", b"2", b"3", b"4")
    seen = [[served.node.log.epoch if epoch == "EPOCH" else epoch, next_] for epoch, next_ in seen]

    def run(client: Text) -> Any:
        client.hear()
        client.say(subscribe("x", "a", seen=seen))
        return client.hear()["data"]["offset"]

    assert await talk(served, "linkd=1&envelope=1", run) == first


@pytest_twisted.ensureDeferred
async def test_a_large_message_comes_in_parts_to_who_asked_for_it(served: Served) -> None:
    text = "ü" * 100_000
    put(served, "a", json.dumps(text, ensure_ascii=False).encode(), b"2")

    def run(client: Text) -> None:
        client.hear()
        client.say(subscribe("x", "a", **{"from": 1}))
        client.hear()
        told = client.hear()
        assert told["type"] == "parts"
        whole = b""
        while len(whole) < told["data"]["bytes"]:
            part = client.wire.recv(timeout=5)
            assert isinstance(part, bytes)
            assert len(part) <= 16_388
            assert int.from_bytes(part[:4], "big") == told["data"]["number"]
            whole += part[4:]
        assert json.loads(whole)["data"] == text
        assert client.hear()["data"] == 2

    await talk(served, "linkd=1&envelope=1", run)


@pytest.mark.parametrize(
    ("frame", "id_", "words"),
    [
        ('{"type":"made","data":"cut \\ud83d","channel":"orders","id":"7"}', "7", "can't be read"),
        ('{"type":"made","data":1,"id":7,"headers":{"a":1}}', 7, "object of strings"),
        ('{"type":"made","data":1,"id":7,"headers":{"a b":"1"}}', 7, "letters, digits"),
        ('{"type":"made","data":1,"id":"7","channel":5}', "7", "expected a string"),
        ('{"type":"gap","data":1,"id":"7"}', "7", "reserved"),
        ('{"type":"ack","data":1,"id":"7"}', "7", "ack: expected"),
        ('{"type":"ack","data":{"subscription":"s","next":-1},"id":"7"}', "7", "ack: expected"),
        ('{"type":"ack","data":{"subscription":"s","next":1},"id":"7"}', "7", "no subscription of"),
        (
            '{"type":"subscribe","data":{"channel":"a","consumer":"c"},"id":"7"}',
            "7",
            "consumer: expected it with `subscription`",
        ),
        (
            '{"type":"subscribe","data":{"channel":"a","consumer":"a/b","subscription":1},"id":"7"}',
            "7",
            "no consumer's name",
        ),
        ('{"type":"subscribe","data":1,"id":"7"}', "7", "subscribe: expected"),
        ('{"type":"made","data":1,"id":"7","channel":"a..b"}', "7", "a..b"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_frame_that_cannot_be_taken_is_answered_under_its_id(
    served: Served, frame: str, id_: object, words: str
) -> None:
    """Such a one was stored whole, as text, and never answered: all behind it waited for ever."""

    def run(client: Text) -> None:
        client.say(frame)
        answer = client.hear()
        assert answer["type"] == "error"
        assert answer["data"]["id"] == id_
        assert words in answer["data"]["message"]
        assert client.silent()

    await talk(served, "channel=orders", run)


@pytest_twisted.ensureDeferred
async def test_values_arrive_as_they_were_published(served: Served) -> None:
    frames = [
        '{"action":"join","handler":"room", "n": 1.50}',
        '"a string"',
        "12",
        "null",
        "[1, 2]",
        "plain text",
        '{"type":"no data"}',
        '{"type":5,"data":1}',
        '{"type":"created","data":1,"more":2}',
    ]

    def run(client: Text) -> list[str]:
        heard = []
        for frame in frames:
            client.wire.send(frame)
            heard.append(str(client.wire.recv(timeout=5)))
        return heard

    assert await talk(served, "channel=orders", run) == frames


@pytest_twisted.ensureDeferred
async def test_typed_messages_and_acks(served: Served) -> None:
    def run(client: Text) -> None:
        client.say({"type": "created", "data": {"n": 1}, "id": "c-1"})
        heard = [client.hear(), client.hear()]
        assert {"type": "ack", "data": {"id": "c-1", "offset": 1}} in heard
        assert {
            "type": "created",
            "data": {"n": 1},
            "channel": "orders",
            "offset": 1,
            "origin": "edge-1",
            "origin_offset": 1,
        } in heard
        client.say({"type": "created", "data": {"n": 1}, "id": "c-1"})
        assert client.hear() == {"type": "ack", "data": {"id": "c-1", "offset": 1}}
        client.say({"type": "noted", "data": None, "channel": "other", "id": 7})
        assert client.hear() == {"type": "ack", "data": {"id": 7, "offset": 2}}
        client.say({"type": "ping"})
        assert client.hear() == {"type": "pong"}

    await talk(served, "channel=orders", run)
    assert served.node.log.next == 3


@pytest_twisted.ensureDeferred
async def test_refusals_keep_the_connection(served: Served) -> None:
    def run(client: Text) -> None:
        for frame, error in (
            ({"type": "ack", "data": 1}, "malformed"),
            ({"type": "created", "data": 1, "channel": "or ders", "id": "x"}, "malformed"),
            ({"type": "created", "data": 1, "channel": 5}, "malformed"),
            ({"type": "created", "data": 1, "id": [1]}, "malformed"),
            ({"type": "subscribe", "data": {"channel": "a..b"}, "id": "x"}, "malformed"),
            ({"type": "subscribe", "data": "orders"}, "malformed"),
            ({"type": "subscribe"}, "malformed"),
            ({"type": "unsubscribe", "data": {"channel": "never"}}, "not-found"),
            ("no channel", "malformed"),
        ):
            client.say(frame)
            told = client.hear()
            assert told["type"] == "error", frame
            assert told["data"]["error"] == error, frame
            assert told["data"]["message"]
        client.say({"type": "ping"})
        assert client.hear() == {"type": "pong"}

    await talk(served, "channel=", run)


@pytest_twisted.ensureDeferred
async def test_subscribe_from_an_offset_and_unsubscribe(served: Served) -> None:
    put(served, "orders", b"1", b"2", b"3")

    def run(client: Text) -> None:
        client.say({"type": "subscribe", "data": {"channel": "orders", "from": 2}, "id": "s"})
        assert client.hear() == {"type": "ack", "data": {"id": "s", "offset": 2}}
        heard = [client.hear(), client.hear()]
        assert [(one["data"], one["offset"], one["type"]) for one in heard] == [
            (2, 2, None),
            (3, 3, None),
        ]
        client.say({"type": "unsubscribe", "data": {"channel": "orders"}})
        client.say({"type": "x", "data": 1, "channel": "orders"})
        assert client.silent()

    await talk(served, "envelope=1", run)


@pytest_twisted.ensureDeferred
async def test_status_comes_with_each_change(served: Served) -> None:
    def run() -> Any:
        with text(served, "status=1") as client:
            first = client.hear()
            served_change()
            return first, client.hear()

    def served_change() -> None:
        from tests.support.api_calls import reactor

        reactor.callFromThread(served.node.change, "hub", "waiting", "ping-timeout")

    first, then = await thread(run)
    assert (first["type"], first["data"]["peer"], first["data"]["state"]) == ("status", "hub", "up")
    assert (then["data"]["state"], then["data"]["reason"]) == ("waiting", "ping-timeout")
    await until(lambda: not served.node.events._watchers)


@pytest_twisted.ensureDeferred
async def test_presence(served: Served) -> None:
    def run() -> None:
        with text(served, "channel=room&presence=1") as one:
            with text(served, "channel=room&name=bob"):
                joined = one.hear()
                assert joined["type"] == "joined"
                assert joined["data"].items() >= {"count": 2, "name": "bob"}.items()
                assert joined["data"].items() >= {"key": "socket", "node": "edge-1"}.items()
            left = one.hear()
            assert left["type"] == "left"
            assert left["data"]["id"] == joined["data"]["id"]

    await thread(run)


@pytest_twisted.ensureDeferred
async def test_presence_as_sentences(served: Served) -> None:
    def run() -> None:
        with text(served, "channel=room&presence=text&uid=ab1c2") as one:
            with text(served, "channel=room&uid=xy9z8"):
                assert one.hear() == '"xy9z8" joined'
            assert one.hear() == '"xy9z8" left'

    await thread(run)
    await until(lambda: not served.api.presence._channels)


@pytest_twisted.ensureDeferred
async def test_who_subscribes_with_presence_is_there_until_it_unsubscribes(served: Served) -> None:
    follow = {"type": "subscribe", "data": {"channel": "room"}, "id": "s"}

    def run() -> None:
        with (
            text(served, "channel=&presence=1&name=ann") as one,
            text(served, "channel=&presence=1&name=bob") as two,
        ):
            one.say(follow)
            assert one.hear()["type"] == "ack"
            two.say(follow)
            assert two.hear()["type"] == "ack"
            assert one.hear()["data"]["name"] == "bob"
            answer = served.fetch("GET", "/v1/presence/room").json()
            assert [each["name"] for each in answer["members"]] == ["ann", "bob"]
            two.say({"type": "unsubscribe", "data": {"channel": "room"}})
            assert one.hear()["type"] == "left"

    await thread(run)


@pytest_twisted.ensureDeferred
async def test_who_loses_the_right_to_a_channel_leaves_it(served: Served) -> None:
    follow = {"type": "subscribe", "data": {"channel": "room"}, "id": "s"}
    present: list[list[str]] = []

    def allow(*channels: str) -> None:
        rights = (Patterns(channels),)
        for socket in served.api.websockets.sockets():
            socket.allow(Caller("shop", rights, rights))
        listed = (served.api.presence.members(name) for name in ("room", "open"))
        present.extend([each["name"] for each in members] for members in listed)

    def run() -> None:
        with (
            text(served, "channel=room&channel=open&presence=1&name=ann") as one,
            text(served, "channel=") as two,
        ):
            two.say({"type": "ping"})
            two.hear()
            in_reactor(allow, "open")
            assert one.hear()["data"]["error"] == "channel-refused"
            in_reactor(allow, "room", "open")
            one.say(follow)
            assert one.hear()["type"] == "ack"
            with text(served, "channel=room&name=bob"):
                assert one.hear()["data"]["name"] == "bob"

    await thread(run)
    assert present == [[], ["ann"], [], ["ann"]]


@pytest_twisted.ensureDeferred
async def test_where_the_node_ends_a_subscription_its_client_leaves(served: Served) -> None:
    def end() -> None:
        session: Any = served.api.websockets.sockets()[0].session
        for sink in list(session._subscriptions.values()):
            sink.end("the log was damaged")

    def run() -> None:
        with text(served, "channel=room&presence=1&name=ann") as one:
            one.say({"type": "ping"})
            assert one.hear()["type"] == "pong"
            in_reactor(end)
            assert one.hear()["data"]["error"] == "internal"
            assert served.fetch("GET", "/v1/presence/room").json()["members"] == []

    await thread(run)


@pytest_twisted.ensureDeferred
async def test_one_that_does_not_read_hears_how_many_are_there_later(served: Served) -> None:
    def pause(paused: bool) -> None:
        socket: Any = next(s for s in served.api.websockets.sockets() if s.session._presence)
        socket.paused = paused
        if not paused:
            socket.session.on_writable()

    def run() -> None:
        with text(served, "channel=room&presence=1&name=ann") as one:
            one.say({"type": "ping"})
            assert one.hear()["type"] == "pong"
            in_reactor(pause, True)
            with text(served, "channel=room&name=bob") as bob, text(served, "channel=room"):
                bob.say({"type": "ping"})
                bob.hear()
                time.sleep(0.1)
                in_reactor(pause, False)
                told = one.hear()
                assert told == {"type": "present", "data": {"channel": "room", "count": 3}}

    await thread(run)


def in_reactor(call: Callable[..., object], *arguments: object) -> None:
    """Call in the reactor's thread, and wait for it."""
    from tests.support.api_calls import reactor

    threads.blockingCallFromThread(reactor, call, *arguments)


@pytest_twisted.ensureDeferred
async def test_only_who_may_read_a_channel_hears_who_is_there(served: Served) -> None:
    answer = await served.keyed("GET", "/v1/presence/orders", key=SHOP_KEY)
    assert answer.json() == {"channel": "orders", "count": 0, "members": []}
    answer = await served.keyed("GET", "/v1/presence/secret", key=SHOP_KEY)
    assert (answer.status, answer.json()["error"]) == (403, "channel-refused")
    for query in ("presence=2", "name=" + "x" * 65, "name=%07"):
        with pytest.raises(InvalidStatus):
            await thread(lambda q=query: talk_to(served, q))


def talk_to(served: Served, query: str) -> None:
    with text(served, f"channel=room&{query}"):
        pass


@pytest_twisted.ensureDeferred
async def test_tokens_open_one_websocket(served: Served) -> None:
    body = b'{"channel":"orders"}'
    made = await served.keyed("POST", "/v1/token", body, key=SHOP_KEY)
    token = made.json()["token"]

    def attempt(query: str, **headers: str) -> int:
        try:
            with connect(
                f"ws://127.0.0.1:{served.port}/ws?{query}", additional_headers=headers
            ) as wire:
                wire.send('{"type":"created","data":1,"channel":"other","id":"x"}')
                told = json.loads(wire.recv(timeout=5))
                assert told["data"]["error"] == "channel-refused"
                return 101
        except InvalidStatus as error:
            told = json.loads(error.response.body or b"{}")
            return error.response.status_code if told["error"] else 0

    assert await thread(lambda: attempt(f"ws_token={token}&channel=orders")) == 101
    assert await thread(lambda: attempt(f"ws_token={token}&channel=orders")) == 401
    assert await thread(lambda: attempt("channel=orders")) == 401
    assert await thread(lambda: attempt("ws_token=forged&channel=orders")) == 401
    bearer = {"Authorization": f"Bearer {SHOP_KEY}"}
    assert await thread(lambda: attempt("channel=orders", **bearer)) == 101
    assert await thread(lambda: attempt("channel=news", **bearer)) == 403
    narrowed = (await served.keyed("POST", "/v1/token", body, key=SHOP_KEY)).json()["token"]
    assert await thread(lambda: attempt(f"ws_token={narrowed}&channel=news.a")) == 403


@pytest_twisted.ensureDeferred
async def test_an_upgrade_is_needed(served: Served) -> None:
    for target in ("/ws", "/v1/stream"):
        answer = await served.call("GET", target)
        assert (answer.status, answer.json()["error"]) == (400, "malformed")


@pytest_twisted.ensureDeferred
async def test_subscriptions_are_bounded(served: Served) -> None:
    def run(client: Text) -> int:
        for number in range(300):
            client.say({"type": "subscribe", "data": {"channel": f"c.{number}"}, "id": number})
        kinds = [client.hear()["type"] for _ in range(300)]
        return kinds.count("ack")

    assert await talk(served, "channel=", run) == 256


@pytest_twisted.ensureDeferred
async def test_a_slow_reader_is_bounded_and_misses_nothing(served: Served) -> None:
    """40 MB for a client that doesn't read: the node's follower stops; then all of it comes."""
    body = b'"' + b"x" * 19_998 + b'"'

    def run() -> int:
        with text(served, "channel=big") as client:
            client.say({"type": "ping"})
            assert client.hear() == {"type": "pong"}
            publish()
            time.sleep(0.5)
            queued = sum(len(s.transport._tempDataBuffer) for s in served.api.websockets._open)
            assert queued < 400
            heard = 0
            while heard < 2000:
                got = client.wire.recv(timeout=10)
                assert len(got) == 20_000
                heard += 1
            return heard

    def publish() -> None:
        from tests.support.api_calls import reactor

        def all_of_it() -> None:
            for _ in range(2000):
                put(served, "big", body)

        reactor.callFromThread(all_of_it)

    assert await thread(run) == 2000


# /v1/stream


@pytest_twisted.ensureDeferred
async def test_publishes_are_settled_in_order(served: Served) -> None:
    def run(client: Stream) -> list[tuple[int, int]]:
        count = 10_000
        for first in range(1, count + 1, 100):
            client.say(*[stream.Publish(first + n, "orders", 1, ONE) for n in range(100)])
        settled: list[tuple[int, int]] = []
        while len(settled) < count:
            frame = client.hear()
            if isinstance(frame, stream.PublishedRun):
                settled += [(frame.sequence + n, frame.offset + n) for n in range(frame.count)]
            else:
                assert isinstance(frame, stream.Published), frame
                assert frame.count == 1
                settled.append((frame.sequence, frame.offset))
        return settled

    settled = await pump(served, run, "producer-1")
    assert settled == [(n, n) for n in range(1, 10_001)]
    assert served.node.log.next == 10_001


@pytest_twisted.ensureDeferred
async def test_a_producer_that_repeats_stores_once(served: Served) -> None:
    """Whatever the repeated publishes share a message with, each number is stored once."""

    def publish(client: Stream, first: int, last: int) -> list[Any]:
        client.say(*[stream.Publish(n, "orders", 1, ONE) for n in range(first, last + 1)])
        settled = 0
        frames = []
        while settled < last + 1 - first:
            frame = client.hear()
            frames.append(frame)
            settled += frame.count if isinstance(frame, stream.PublishedRun) else 1
        return frames

    await pump(served, lambda client: publish(client, 1, 20), "p")
    await pump(served, lambda client: publish(client, 11, 40), "p")
    assert served.node.log.next == 41

    def twice(client: Stream) -> list[Any]:
        publish(client, 41, 50)
        publish(client, 51, 60)
        return publish(client, 45, 70)

    frames = await pump(served, twice, "p")
    assert served.node.log.next == 71
    assert all(frame.duplicate for frame in frames if frame.sequence <= 60)


@pytest_twisted.ensureDeferred
async def test_a_new_daemon_knows_what_was_stored(tmp_path: Path) -> None:
    """After a crash, old and new numbers of a producer must not share an append."""
    served = Served(tmp_path)

    def publish(client: Stream, first: int, last: int) -> None:
        client.say(*[stream.Publish(n, "orders", 1, ONE) for n in range(first, last + 1)])
        settled = 0
        while settled < last + 1 - first:
            frame = client.hear()
            settled += frame.count if isinstance(frame, stream.PublishedRun) else 1

    try:
        await pump(served, lambda client: publish(client, 1, 20), "p")
        served.api.producers._states.clear()
        await pump(served, lambda client: publish(client, 11, 40), "p")
        assert served.node.log.next == 41
    finally:
        await served.stop()


@pytest_twisted.ensureDeferred
async def test_after_log_full_a_producer_opens_again(served: Served) -> None:
    def run(client: Stream) -> None:
        from tests.support.api_calls import reactor

        client.say(stream.Publish(1, "orders", 1, ONE))
        assert client.hear() == stream.Published(1, 1, 1)
        reactor.callFromThread(served.node.log.fill, "no room")
        time.sleep(0.1)
        client.say(stream.Publish(2, "orders", 1, ONE))
        assert client.hear().error == "log-full"
        reactor.callFromThread(served.node.log.drain)
        time.sleep(0.1)
        client.say(stream.Publish(3, "orders", 1, ONE))
        assert client.hear().error == "log-full"
        client.say(stream.Open(1, "p"), *[stream.Publish(n, "orders", 1, ONE) for n in (2, 3)])
        assert isinstance(client.hear(), stream.Opened)
        settled = [client.hear(stream.Published) for _ in range(2)]
        assert settled == [stream.Published(2, 2, 1), stream.Published(3, 3, 1)]

    await pump(served, run, "p")
    assert served.node.log.next == 4


@pytest_twisted.ensureDeferred
async def test_repeats_are_answered_before_any_refusal(served: Served) -> None:
    """Their publisher would take a refusal for "nothing is stored", and publish them again."""
    ids = encode_records([EncodedRecord(b"x", "", "i-1")])
    publishes = (
        stream.Publish(1, "orders", 1, ONE),
        stream.Publish(2, "orders", 1, ids, None, ("i-1",)),
        stream.Publish(3, "orders", 1, ONE),
    )

    def first(client: Stream) -> None:
        client.say(*publishes)
        for number in (1, 2, 3):
            assert client.hear() == stream.Published(number, number, 1)

    def again(client: Stream) -> None:
        client.say(*publishes, stream.Publish(4, "orders", 1, ONE), *publishes)
        told = [client.hear() for _ in range(7)]
        assert told.pop(3).error == "log-full"
        numbers = (1, 2, 3, 1, 2, 3)
        assert told == [stream.Published(number, number, 0, True) for number in numbers]

    await pump(served, first, "p")
    served.node.log.fill("no room")
    await pump(served, again, "p")


@pytest_twisted.ensureDeferred
async def test_another_record_under_a_stored_number_is_checked_and_goes_nowhere(
    served: Served,
) -> None:
    """Nothing of it was checked: it reached subscribers of volatile channels, and ended links."""

    def run(client: Stream) -> list[Any]:
        client.say(stream.Publish(1, "orders", 1, ONE))
        assert client.hear() == stream.Published(1, 1, 1)
        published = len(served.node.published)
        client.say(stream.Publish(1, "orders", 7, b"\xff\xff\xff"))
        client.say(stream.Publish(1, "no channel", 1, ONE))
        client.say(stream.Publish(2, "orders", 7, b"\xff\xff\xff"))
        told = [client.hear() for _ in range(3)]
        assert len(served.node.published) == published
        return told

    *repeats, refused = await pump(served, run, "p")
    assert repeats == [stream.Published(1, 1, 0, True)] * 2
    assert isinstance(refused, stream.PublishFailed)
    assert served.node.log.next == 2


@pytest.mark.parametrize("is_stored", [True, False])
@pytest_twisted.ensureDeferred
async def test_what_is_under_way_is_answered_on_the_next_connection(
    served: Served, is_stored: bool
) -> None:
    log = served.node.log
    log._delayed = True
    publishes = [stream.Publish(number, "orders", 1, ONE) for number in (1, 2, 3)]

    def first(client: Stream) -> None:
        client.say(*publishes)
        time.sleep(0.1)

    def again(client: Stream) -> None:
        from tests.support.api_calls import reactor

        client.say(*publishes, stream.Publish(4, "orders", 1, ONE))
        time.sleep(0.1)
        reactor.callFromThread(log.commit if is_stored else lambda: log.fill("the disk failed"))
        told = [client.hear()] if is_stored else [client.hear().error for _ in range(4)]
        if is_stored:
            assert [*told, client.hear()] == [
                stream.PublishedRun(1, 1, 3),
                stream.Published(4, 4, 1),
            ]
        else:
            assert told == ["log-full"] * 4

    await pump(served, first, "p")
    await pump(served, again, "p")
    assert log.next == (5 if is_stored else 1)


@pytest_twisted.ensureDeferred
async def test_after_too_many_a_producer_opens_again_and_none_is_taken_for_a_repeat(
    served: Served,
) -> None:
    log = served.node.log
    over = 2 + 131_072 // (BATCH_OVERHEAD_BYTES + len(ONE))
    limits = msgspec.structs.replace(served.node.config.limits, publish_pending_bytes=65_536)
    served.node.config = msgspec.structs.replace(served.node.config, limits=limits)

    def run(client: Stream) -> None:
        from tests.support.api_calls import reactor

        client.say(stream.Publish(1, "orders", 1, ONE))
        assert client.hear() == stream.Published(1, 1, 1)
        log._delayed = True
        client.say(*[stream.Publish(n, "ab"[n % 2], 1, ONE) for n in range(2, 202)])
        failed = [client.hear(stream.PublishFailed) for _ in range(over, 202)]
        assert {frame.error for frame in failed} == {"too-many"}
        assert [frame.sequence for frame in failed] == list(range(over, 202))
        reactor.callFromThread(log.commit)
        assert [client.hear().sequence for _ in range(2, over)] == list(range(2, over))
        client.say(stream.Publish(202, "orders", 1, ONE))
        assert client.hear().error == "too-many"
        log._delayed = False
        client.say(stream.Open(1, "p"), *[stream.Publish(n, "a", 1, ONE) for n in range(over, 203)])
        assert isinstance(client.hear(), stream.Opened)
        assert client.hear() == stream.PublishedRun(over, over, 203 - over)

    await pump(served, run, "p")
    assert log.next == 203


@pytest_twisted.ensureDeferred
async def test_none_above_a_refused_number_is_taken_before_it_comes_again(served: Served) -> None:
    """What was under way failed when the producer had opened again for what came behind it."""
    log = served.node.log
    limits = msgspec.structs.replace(served.node.config.limits, publish_pending_bytes=65_536)
    served.node.config = msgspec.structs.replace(served.node.config, limits=limits)
    over = 1 + 131_072 // (BATCH_OVERHEAD_BYTES + len(ONE))

    def publishes(first: int, end: int) -> list[stream.Publish]:
        return [stream.Publish(number, "ab"[number % 2], 1, ONE) for number in range(first, end)]

    def refused(client: Stream, first: int, end: int, error: str) -> None:
        failed = [client.hear(stream.PublishFailed) for _ in range(first, end)]
        assert [frame.sequence for frame in failed] == list(range(first, end))
        assert {frame.error for frame in failed} == {error}

    def run(client: Stream) -> None:
        from tests.support.api_calls import reactor

        log._delayed = True
        client.say(*publishes(1, over + 10))
        refused(client, over, over + 10, "too-many")
        reactor.callFromThread(log.fill, "the disk failed")
        refused(client, 1, over, "log-full")
        reactor.callFromThread(log.drain)
        log._delayed = False
        client.say(stream.Open(1, "p"), *publishes(over, over + 10))
        refused(client, over, over + 10, "log-full")
        client.say(stream.Open(1, "p"), *publishes(1, over + 10))
        for number in range(1, over + 10):
            assert client.hear(stream.Published) == stream.Published(number, number, 1)
        client.say(*publishes(over + 10, over + 12))
        assert client.hear(stream.Published).offset == over + 10

    await pump(served, run, "p")
    assert log.next == over + 12


@pytest_twisted.ensureDeferred
async def test_who_gives_refused_numbers_up_goes_on_with_higher_ones(served: Served) -> None:
    def run(client: Stream) -> None:
        from tests.support.api_calls import reactor

        reactor.callFromThread(served.node.log.fill, "no room")
        time.sleep(0.1)
        client.say(*[stream.Publish(number, "orders", 1, ONE) for number in (5, 6)])
        assert [client.hear().error for _ in range(2)] == ["log-full"] * 2
        reactor.callFromThread(served.node.log.drain)
        time.sleep(0.1)
        client.say(stream.Open(1, "p"), stream.Publish(7, "orders", 1, ONE))
        assert isinstance(client.hear(), stream.Opened)
        assert client.hear() == stream.Published(7, 1, 1)

    await pump(served, run, "p")


@pytest_twisted.ensureDeferred
async def test_a_run_of_many_is_bounded_as_each_of_them(served: Served) -> None:
    limits = msgspec.structs.replace(served.node.config.limits, publish_pending_bytes=65_536)
    served.node.config = msgspec.structs.replace(served.node.config, limits=limits)

    def run(client: Stream) -> None:
        served.node.log._delayed = True
        client.say(*[stream.Publish(n, "orders", 1, ONE) for n in range(1, 1001)])
        failed = [client.hear(stream.PublishFailed).sequence for _ in range(880)]
        assert failed[0] > 100
        assert failed[-1] > 980

    await pump(served, run)


@pytest_twisted.ensureDeferred
async def test_one_publish_alone_is_always_taken(served: Served) -> None:
    limits = msgspec.structs.replace(served.node.config.limits, publish_pending_bytes=65_536)
    served.node.config = msgspec.structs.replace(served.node.config, limits=limits)
    large = encode_records([EncodedRecord(bytes(900_000))])

    def run(client: Stream) -> None:
        client.say(stream.Publish(1, "orders", 1, large))
        assert client.hear() == stream.Published(1, 1, 1)

    await pump(served, run)


@pytest_twisted.ensureDeferred
async def test_what_comes_while_the_node_stops_is_unavailable_and_not_refused(
    served: Served,
) -> None:
    def run(client: Stream) -> None:
        from tests.support.api_calls import reactor

        client.say(stream.Publish(1, "orders", 1, ONE))
        assert client.hear() == stream.Published(1, 1, 1)
        reactor.callFromThread(served.node.log.close, lambda: None)
        time.sleep(0.1)
        client.say(*[stream.Publish(number, "orders", 1, ONE) for number in (2, 3)])
        failed = [client.hear(stream.PublishFailed) for _ in range(2)]
        assert [(frame.sequence, frame.error) for frame in failed] == [
            (2, "unavailable"),
            (3, "unavailable"),
        ]

    await pump(served, run, "p")


@pytest_twisted.ensureDeferred
async def test_malformed_publishes_are_refused_alone(served: Served) -> None:
    big = encode_records([EncodedRecord(b"x" * 1_060_000)])
    ids = encode_records([EncodedRecord(b"x", "", "i-1")])

    def run(client: Stream) -> list[Any]:
        client.say(
            stream.Publish(1, "orders", 1, ONE),
            stream.Publish(2, "orders", 2, ONE),
            stream.Publish(3, "or ders", 1, ONE),
            stream.Publish(4, "orders", 1, b"\xc1"),
            stream.Publish(5, "orders", 1, big),
            stream.Publish(6, "orders", 1, ids, None, ("other",)),
            stream.Publish(7, "orders", 1, ids, None, ("i-1",)),
            stream.Publish(8, "orders", 1, ids, None, ("i-1",)),
            stream.Publish(9, "orders", 4_000_000_000, ONE),
            stream.Publish(10, "orders", 1, ONE),
        )
        return [client.hear() for _ in range(10)]

    frames = await pump(served, run)
    by_sequence = {frame.sequence: frame for frame in frames}
    errors = {n: f.error for n, f in by_sequence.items() if isinstance(f, stream.PublishFailed)}
    assert errors == {
        2: "malformed",
        3: "malformed",
        4: "malformed",
        5: "body-too-large",
        6: "malformed",
        9: "malformed",
    }
    assert by_sequence[8].duplicate
    assert by_sequence[8].offset == by_sequence[7].offset
    assert served.node.log.next == 4


@pytest_twisted.ensureDeferred
async def test_deliveries_cost_credit(served: Served) -> None:
    put(served, "orders", *[b"%d" % n for n in range(1000)])
    put(served, "other", b"1")
    for _ in range(10):
        put(served, "orders", b"2")

    def run(client: Stream) -> list[int]:
        client.say(stream.Subscribe(5, ("orders",), 2, "", 1))
        assert client.hear() == stream.Subscribed(5, 2)
        first = client.hear()
        assert (first.offset, first.count, first.channel) == (2, 999, "orders")
        assert decode_records(first.records, 999)[0].body == b"1"
        with pytest.raises(TimeoutError):
            client.wire.recv(timeout=0.2)
        client.say(stream.Credit(5, 1_000_000))
        got = [client.hear(stream.Deliver).offset for _ in range(10)]
        client.say(stream.Unsubscribe(5))
        assert client.hear() == stream.Ended(5, "unsubscribed")
        return got

    assert await pump(served, run) == list(range(1002, 1012))
    assert not served.node.subscriptions._followers


@pytest_twisted.ensureDeferred
async def test_a_name_of_visits_is_no_lasting_consumers(served: Served) -> None:
    """It would be forgotten after ten minutes, with its position."""

    def run(client: Stream) -> Any:
        client.say(stream.Subscribe(1, ("orders",), "earliest", "resume.tab", 1000))
        return client.hear()

    refused = await pump(served, run)
    assert (refused.id, refused.error) == (1, "malformed")


@pytest_twisted.ensureDeferred
async def test_consumers_acks_and_takeover(served: Served) -> None:
    put(served, "orders", b"1")
    put(served, "orders", b"2")
    wanted = stream.Subscribe(1, ("orders",), "earliest", "billing", 1_000_000)

    def run() -> None:
        with streaming(served) as one:
            one.say(wanted)
            assert one.hear(stream.Deliver).offset == 1
            one.say(stream.ConsumerAck(1, 2))
            assert one.hear(stream.ConsumerAcked) == stream.ConsumerAcked(1, 2)
            with streaming(served) as two:
                two.say(wanted)
                assert two.hear(stream.Deliver).offset == 2
                assert one.hear(stream.Ended) == stream.Ended(1, "replaced")

    await thread(run)
    assert served.node.subscriptions.consumers()[0].next == 2


@pytest_twisted.ensureDeferred
async def test_gaps_volatile_and_status(served: Served) -> None:
    for n in range(4):
        put(served, "orders", b"%d" % n)
    served.node.log.trim(3)

    def run(client: Stream) -> None:
        from tests.support.api_calls import reactor

        client.say(stream.Subscribe(1, ("orders", "telemetry.>"), 1, "", 1_000_000))
        assert client.hear(stream.SubscriptionGap) == stream.SubscriptionGap(1, 1, 3)
        assert client.hear(stream.Deliver).offset == 3
        client.say(stream.Publish(1, "telemetry.a", 1, ONE))
        frames = [client.hear(), client.hear(), client.hear()]
        assert stream.Published(1, 0, 1) in frames
        assert any(isinstance(frame, stream.DeliverVolatile) for frame in frames)
        client.say(stream.WatchStatus())
        assert client.hear(stream.StatusChanged).links[0].state == "up"
        reactor.callFromThread(served.node.change, "hub", "waiting", "silence")
        told = client.hear(stream.StatusChanged)
        assert (told.event, told.links[0].reason) == ("link.waiting", "silence")

    await pump(served, run)


@pytest_twisted.ensureDeferred
async def test_waits_for_peers(served: Served) -> None:
    def run(client: Stream) -> None:
        from tests.support.api_calls import reactor

        client.say(
            stream.WaitForPeer(1, "hub", "orders", 5, 10.0),
            stream.WaitForPeer(2, "x", "orders", 5, 1.0),
        )
        assert client.hear(stream.WaitResult).error == "not-found"
        client.say(
            stream.WaitForPeer(3, "hub", "private", 5, 1.0),
            stream.WaitForPeer(4, "hub", "a", 99, 0.1),
        )
        assert client.hear(stream.WaitResult).error == "not-sent"
        assert client.hear(stream.WaitResult).error == "timeout"
        reactor.callFromThread(served.node.reach, "hub", 5)
        assert client.hear(stream.WaitResult) == stream.WaitResult(1)
        client.say(stream.WaitForPeer(5, "hub", "orders", 99, 10.0))
        time.sleep(0.1)
        reactor.callFromThread(served.node.remove, "hub")
        assert client.hear(stream.WaitResult).error == "not-found"

    await pump(served, run)


@pytest.mark.parametrize("message", [b"", b"\xc1", b"\x91\x91\x63", b"\x90\x90", "text"])
@pytest_twisted.ensureDeferred
async def test_what_is_no_frame_ends_the_stream(served: Served, message: bytes | str) -> None:
    def run(client: Stream) -> int:
        client.wire.send(message)
        assert client.hear().error == "malformed"
        with pytest.raises(ConnectionClosed) as caught:
            client.wire.recv(timeout=5)
        assert caught.value.rcvd is not None
        return caught.value.rcvd.code

    assert await pump(served, run) == 1008


@pytest_twisted.ensureDeferred
async def test_keys_bound_the_stream(served: Served) -> None:
    def run() -> None:
        with connect(
            f"ws://127.0.0.1:{served.port}/v1/stream",
            subprotocols=[Subprotocol(stream.SUBPROTOCOL)],
            additional_headers={"Authorization": f"Bearer {SHOP_KEY}"},
        ) as wire:
            client = Stream(wire)
            client.say(
                stream.Open(1),
                stream.Publish(1, "other", 1, ONE),
                stream.Subscribe(1, (">",), "latest", "", 1),
                stream.Publish(2, "orders", 1, ONE),
            )
            assert client.hear(stream.PublishFailed).error == "channel-refused"
            assert client.hear(stream.Failed).error == "channel-refused"
            assert client.hear(stream.Published).sequence == 2

    await thread(run)


@pytest_twisted.ensureDeferred
async def test_stopping_says_goodbye(tmp_path: Path) -> None:
    served = Served(tmp_path)

    def run() -> int:
        with streaming(served) as client:
            stopping()
            with pytest.raises(ConnectionClosed) as caught:
                client.wire.recv(timeout=5)
            assert caught.value.rcvd is not None
            return caught.value.rcvd.code

    stopped: list[Any] = []

    def stopping() -> None:
        from tests.support.api_calls import reactor

        reactor.callFromThread(lambda: served.stop().addBoth(stopped.append))

    assert await thread(run) == 1001
    await until(lambda: stopped == [None])


def test_keys_differ() -> None:
    assert KEY != SHOP_KEY


async def test_a_page_is_told_over_how_many_seconds_all_are_to_come_back(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its opening, and with each pong: others may have come since."""

    def run(client: Text) -> list[Any]:
        got = [client.hear()["data"]["return_spread"]]
        for rate in (0.1, 0.01, 1e9):
            monkeypatch.setattr(websocket, "RETURNS_PER_SECOND", rate)
            client.say({"type": "ping"})
            got.append(client.hear().get("data"))
        return got

    got = await talk(served, "linkd=1", run)
    assert got == [0.0, {"return_spread": 10.0}, {"return_spread": 30.0}, None]


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest_twisted.ensureDeferred
async def test_a_client_gets_only_frames_of_the_version_that_it_speaks(
    served: Served, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_stream, "POSITION_SECONDS", 0.05)

    def run() -> list[type]:
        with streaming(served, "", version) as client:
            client.say(stream.Subscribe(1, ("quiet",), 1, "", 10_000))
            client.hear(stream.Subscribed)
            client.say(stream.Publish(1, "orders", 1, ONE))
            client.hear(stream.Published)
            client.say(stream.ConsumerAck(9, 1))
            time.sleep(0.3)
            client.say(stream.Unsubscribe(1))
            heard: list[type] = []
            while stream.Ended not in heard:
                heard.append(type(client.hear()))
            return heard

    heard = await thread(run)
    expected = [stream.AckFailed, stream.Position] if version > 1 else []
    assert heard == [*expected, stream.Ended]
