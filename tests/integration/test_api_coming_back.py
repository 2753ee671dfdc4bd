"""`/ws` for plain programs that were away: consumers without acks, and private channels."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.sync.client import ClientConnection, connect

from tests.support.api_calls import Served, reactor, thread
from tests.support.fake_node import KEY, SHOP_KEY

ADMIN = {"Authorization": f"Bearer {KEY}"}
SHOP = {"Authorization": f"Bearer {SHOP_KEY}"}


@pytest_twisted.async_yield_fixture  # type: ignore[misc]
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    one = Served(tmp_path)
    yield one
    await one.stop()


def dial(served: Served, query: str, headers: Mapping[str, str] = ADMIN) -> ClientConnection:
    return connect(f"ws://127.0.0.1:{served.port}/ws?{query}", additional_headers=headers)


def hear(wire: ClientConnection) -> Any:
    return json.loads(wire.recv(timeout=5))


def publish(served: Served, *values: int, channel: str = "orders") -> None:
    for value in values:
        answer = served.fetch(
            "POST", f"/v1/channels/{channel}", b"%d" % value, {"Content-Type": "application/json"}
        )
        assert answer.status == 201


def next_of(served: Served, name: str, owner: str = "admin") -> int:
    consumer = served.node.subscriptions.consumer((owner, name))
    return 0 if consumer is None else consumer.next


def confirmed(served: Served, name: str, next: int) -> None:
    """Wait until a consumer's cursor is there; blocks."""
    wait(lambda: next_of(served, name) == next)


def hold_pongs(wire: ClientConnection) -> list[bytes]:
    """Let a client answer no ping; return the payloads of those that come."""
    pings: list[bytes] = []
    send = wire.protocol.send_frame

    def hold(frame: Frame) -> None:
        if frame.opcode is Opcode.PONG:
            pings.append(bytes(frame.data))
        else:
            send(frame)

    wire.protocol.send_frame = hold  # type: ignore[method-assign]
    return pings


def wait(there: Callable[[], bool]) -> None:
    """Wait until something is there; blocks."""
    until = time.monotonic() + 2.0
    while not there():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize(("query", "name"), [("consumer=p1", "p1"), ("resume=p1", "resume.p1")])
@pytest_twisted.ensureDeferred
async def test_what_came_while_it_was_away_comes_once_it_is_back(
    served: Served, query: str, name: str
) -> None:
    def first() -> list[int]:
        with dial(served, f"channel=orders&channel=news&{query}") as wire:
            publish(served, 1, 2)
            publish(served, 3, channel="news")
            heard = [hear(wire) for _ in range(3)]
            confirmed(served, name, 4)
            return heard

    assert await thread(first) == [1, 2, 3]

    def away() -> list[int]:
        publish(served, 4)
        publish(served, 5, channel="other")
        publish(served, 6, channel="news")
        with dial(served, f"channel=orders&channel=news&{query}") as wire:
            publish(served, 7)
            return [hear(wire) for _ in range(3)]

    assert await thread(away) == [4, 6, 7]


@pytest_twisted.ensureDeferred
async def test_the_cursor_moves_by_what_was_received_not_by_what_was_sent(served: Served) -> None:
    def deaf() -> None:
        with dial(served, "channel=orders&consumer=p1") as wire:
            pings = hold_pongs(wire)
            publish(served, 1, 2)
            assert [hear(wire), hear(wire)] == [1, 2]
            wait(lambda: len(pings) == 1)
            wire.socket.close()

    await thread(deaf)
    assert next_of(served, "p1") == 1

    def again() -> list[int]:
        with dial(served, "channel=orders&consumer=p1") as wire:
            heard = [hear(wire), hear(wire)]
            publish(served, 3)
            return [*heard, hear(wire)]

    assert await thread(again) == [1, 2, 3]


@pytest_twisted.ensureDeferred
async def test_the_cursor_follows_soon(served: Served) -> None:
    def run() -> None:
        with dial(served, "channel=orders&resume=tab-7") as wire:
            for value in range(1, 4):
                publish(served, value)
                assert hear(wire) == value
                confirmed(served, "resume.tab-7", value + 1)

    await thread(run)


@pytest_twisted.ensureDeferred
async def test_a_client_may_answer_only_the_newest_ping(served: Served) -> None:
    """RFC 6455 5.5.3 allows that."""

    def run() -> list[int]:
        with dial(served, "channel=orders&consumer=p1") as wire:
            pings = hold_pongs(wire)
            publish(served, 1)
            assert hear(wire) == 1
            wait(lambda: len(pings) == 1)
            (ours,) = served.api.websockets.sockets()
            reactor.callFromThread(ours.sendPing, b"newest")
            wait(lambda: len(pings) == 2)
            assert next_of(served, "p1") == 1
            vars(wire.protocol).pop("send_frame")
            wire.pong(pings[-1])
            confirmed(served, "p1", 2)
            publish(served, 2)
            assert hear(wire) == 2
            confirmed(served, "p1", 3)
        with dial(served, "channel=orders&consumer=p1") as wire:
            publish(served, 3)
            return [hear(wire)]

    assert await thread(run) == [3]


@pytest_twisted.ensureDeferred
async def test_a_second_client_replaces_the_first_readably(served: Served) -> None:
    def run() -> tuple[int, str]:
        with dial(served, "channel=orders&consumer=p1") as one:
            with dial(served, "channel=orders&consumer=p1") as two:
                publish(served, 1)
                assert hear(two) == 1
            with pytest.raises(ConnectionClosed) as closed:
                one.recv(timeout=5)
            assert closed.value.rcvd is not None
            return closed.value.rcvd.code, closed.value.rcvd.reason

    assert await thread(run) == (4409, "another client opened with this consumer's name")


@pytest_twisted.ensureDeferred
async def test_consumers_keep_their_owner_and_rights(served: Served) -> None:
    def run() -> None:
        with dial(served, "channel=secret&consumer=p1"):
            pass
        with dial(served, "channel=orders&consumer=p1", SHOP) as wire:
            publish(served, 1, channel="secret")
            publish(served, 2)
            assert hear(wire) == 2
        narrowed = served.fetch(
            "POST", "/v1/token", b'{"channel":"orders"}', SHOP, local=False
        ).json()["token"]
        with dial(served, "channel=orders&channel=news.a&consumer=wide", SHOP):
            pass
        with (
            pytest.raises(ConnectionClosed) as closed,
            dial(served, f"channel=orders&consumer=wide&ws_token={narrowed}", {}) as wire,
        ):
            wire.recv(timeout=5)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4403
        for query in (
            "channel=orders&consumer=a&resume=b",
            "channel=orders&consumer=a/b",
            "channel=orders&resume=" + "x" * 57,
            "channel=orders&consumer=resume.b",
        ):
            with pytest.raises(InvalidStatus), dial(served, query):
                pass

    await thread(run)
    assert next_of(served, "p1") == 1
    assert next_of(served, "p1", "shop") > 0


def follow(wire: ClientConnection, channel: str = "orders", **more: object) -> Any:
    """Follow a channel under the name "s"; return the data of the ack."""
    data = {"channel": channel, "subscription": "s", "consumer": "w1", **more}
    wire.send(json.dumps({"type": "subscribe", "data": data, "id": "i"}))
    answer = hear(wire)
    assert answer["type"] == "ack", answer
    return answer["data"]


def acknowledge(wire: ClientConnection, next: int) -> Any:
    frame = {"type": "ack", "data": {"subscription": "s", "next": next}, "id": "a"}
    wire.send(json.dumps(frame))
    return hear(wire)


@pytest_twisted.ensureDeferred
async def test_a_subscription_is_a_consumers_that_moves_by_acks_alone(served: Served) -> None:
    def run() -> None:
        publish(served, 1, 2, 3)
        with dial(served, "linkd=1") as wire:
            assert hear(wire)["type"] == "opened"
            assert follow(wire, **{"from": "earliest"})["offset"] == 1
            assert [hear(wire)["data"] for _ in range(3)] == [1, 2, 3]
            time.sleep(0.1)
            assert next_of(served, "w1") == 1
            assert acknowledge(wire, 3)["data"] == {"id": "a", "offset": 3}
            assert next_of(served, "w1") == 3
        with dial(served, "linkd=1") as wire:
            hear(wire)
            assert follow(wire, **{"from": "earliest"})["offset"] == 3
            assert hear(wire)["data"] == 3

    await thread(run)


@pytest_twisted.ensureDeferred
async def test_no_more_is_sent_ahead_of_the_acks_than_a_window(served: Served) -> None:
    """Twenty batches of 60 kB: five of them, then one for each ack."""

    def heard(wire: ClientConnection) -> list[int]:
        found: list[int] = []
        with suppress(TimeoutError):
            while True:
                message = json.loads(wire.recv(timeout=0.5))
                if message["type"] != "position":
                    found.append(message["offset"])
        return found

    def run() -> None:
        for _ in range(20):
            served.fetch("POST", "/v1/channels/orders", b"x" * 60_000)
        with dial(served, "envelope=1&channel=") as wire:
            follow(wire, **{"from": 1})
            assert heard(wire) == [1, 2, 3, 4, 5]
            wire.send('{"type":"ack","data":{"subscription":"s","next":2}}')
            assert heard(wire) == [6]
            wire.send('{"type":"ack","data":{"subscription":"s","next":7}}')
            assert heard(wire) == [7, 8, 9, 10, 11]

    await thread(run)


@pytest_twisted.ensureDeferred
async def test_a_replaced_consumer_ends_alone_and_an_ack_that_is_refused_ends_nothing(
    served: Served,
) -> None:
    def run() -> None:
        with dial(served, "linkd=1") as one, dial(served, "linkd=1") as two:
            hear(one), hear(two)
            follow(one)
            refused = acknowledge(two, 1)
            assert refused["data"]["error"] == "not-found"
            assert "subscription" not in refused["data"]
            follow(two)
            ended = hear(one)
            assert ended["type"] == "error"
            assert (ended["data"]["error"], ended["data"]["subscription"]) == ("in-use", "s")
            publish(served, 1)
            assert hear(two)["data"] == 1
            one.send('{"type":"message","data":2,"channel":"orders","id":"p"}')
            assert hear(one)["data"]["id"] == "p"

    await thread(run)


@pytest_twisted.ensureDeferred
async def test_each_connection_has_a_private_channel_for_answers(served: Served) -> None:
    def run() -> None:
        with (
            dial(served, "channel=orders&private=1", SHOP) as page,
            dial(served, "channel=orders&private=1", SHOP) as other,
            dial(served, "channel=orders") as service,
        ):
            opened = hear(page)
            assert opened["type"] == "opened"
            mine, others = opened["data"]["private"], hear(other)["data"]["private"]
            assert mine != others
            page.send(json.dumps({"type": "ask", "data": {"n": 1, "reply": mine}}))
            asked = hear(service)
            answer = {"type": "answer", "data": 2, "channel": asked["data"]["reply"]}
            service.send(json.dumps(answer))
            assert [hear(page)["type"], hear(page)["type"]] == ["ask", "answer"]
            assert hear(other)["type"] == "ask"
            with pytest.raises(TimeoutError):
                other.recv(timeout=0.3)
            other.send(json.dumps({"type": "subscribe", "data": {"channel": mine}}))
            assert hear(other)["data"]["error"] == "channel-refused"
            other.send(json.dumps({"type": "answer", "data": 3, "channel": mine}))
            assert hear(other)["data"]["error"] == "channel-refused"

    await thread(run)
