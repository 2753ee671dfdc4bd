"""The asyncio client against a daemon that comes and goes."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import linkd.client
from linkd.client.errors import ClientError, Closed, NoDaemon, Refused
from linkd.errors import BadRecord, ChannelRefused, LogFull, PublishError
from tests.support.stream_daemon import StreamDaemon


def run(test: Coroutine[Any, Any, None], loop: str = "asyncio") -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await test

    factory = pytest.importorskip("uvloop").new_event_loop if loop == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(bounded())


LOOPS = pytest.mark.parametrize("loop", ["asyncio", "uvloop"])


@asynccontextmanager
async def daemon(path: Path) -> AsyncIterator[StreamDaemon]:
    fake = StreamDaemon(path / "d.sock")
    await fake.start()
    try:
        yield fake
    finally:
        await fake.stop()


@LOOPS
def test_publish_and_subscribe(tmp_path: Path, loop: str) -> None:
    async def check() -> None:
        async with daemon(tmp_path) as fake, linkd.client.connect(fake.path) as node:
            records = node.subscribe("orders", start="earliest")
            assert await node.publish("orders", {"total": 12}, type="created", wait="hub") == 1
            assert await node.publish("orders", "text") == 2
            assert await node.publish("orders", b"\xff") == 3
            got = [await anext(records) for _ in range(3)]
            assert [(record.offset, record.type, record.data) for record in got] == [
                (1, "created", {"total": 12}),
                (2, "", "text"),
                (3, "", b"\xff"),
            ]
            assert node.name == "edge-1"
            assert node.status.value.links == {"hub": "up"}

    run(check(), loop)


@LOOPS
def test_ten_thousand_in_flight_over_a_kill(tmp_path: Path, loop: str) -> None:
    async def check() -> None:
        async with daemon(tmp_path) as fake, linkd.client.connect(fake.path) as node:
            fake.die_after = 3
            numbers = [
                asyncio.create_task(node.publish("orders", f"{index}".encode() * 30, id=""))
                for index in range(10_000)
            ]
            while fake.die_after is not None:
                await asyncio.sleep(0.001)
            await fake.stop()
            await asyncio.sleep(0.05)
            await fake.start()
            offsets = await asyncio.gather(*numbers)
            assert offsets == list(range(1, 10_001))
            expected = [f"{index}".encode() * 30 for index in range(10_000)]
            assert fake.bodies("orders") == expected

    run(check(), loop)


@LOOPS
def test_subscriptions_are_restored_once(tmp_path: Path, loop: str) -> None:
    async def check() -> None:
        async with (
            daemon(tmp_path) as fake,
            linkd.client.connect(fake.path, min_delay=0.01) as node,
        ):
            heard: list[str] = []
            node.on("created", lambda record: heard.append(record.text), channel="orders")
            node.on("created", (other := lambda record: heard.append("other")), channel="orders")
            node.off("created", other)
            records = node.subscribe("orders")
            await node.opened(5)
            for index in range(3):
                await node.publish("orders", f"{index}", type="created")
                assert (await anext(records)).data == f"{index}"
                await fake.stop()
                await fake.start()
            await node.publish("orders", "end", type="created")
            assert (await anext(records)).data == "end"
            while len(heard) < 4:
                await asyncio.sleep(0.001)
            assert heard == ["0", "1", "2", "end"]
            assert fake.subscribed["orders",] == 2 * fake.opened

    run(check(), loop)


def test_a_consumer_gets_again_only_what_it_had_not_acknowledged(tmp_path: Path) -> None:
    async def check() -> None:
        async with daemon(tmp_path) as fake:
            async with linkd.client.connect(fake.path) as node:
                billing = node.subscribe("orders", consumer="billing", start="earliest")
                await node.publish_many("orders", [f"{index}" for index in range(10)])
                for _ in range(4):
                    record = await anext(billing)
                await record.ack()
                await anext(billing)
            async with linkd.client.connect(fake.path) as node:
                again = node.subscribe("orders", consumer="billing")
                assert [(await anext(again)).data for _ in range(6)] == list("456789")

    run(check())


def test_a_slow_reader_bounds_what_is_sent_ahead(tmp_path: Path) -> None:
    async def check() -> None:
        async with daemon(tmp_path) as fake, linkd.client.connect(fake.path) as node:
            slow = node.subscribe("bulk", window=100_000)
            await node.opened(5)
            stored = await node.publish_many("bulk", [b"x" * 1000] * 2000)
            assert stored.count == 2000
            assert (slow.next or 0) < 400
            assert [(await anext(slow)).offset for _ in range(2000)] == list(
                range(stored.first, stored.last + 1)
            )

    run(check())


def test_gaps_are_told(tmp_path: Path) -> None:
    async def check() -> None:
        async with daemon(tmp_path) as fake, linkd.client.connect(fake.path) as node:
            for index in range(5):
                await node.publish("orders", index)
            await fake.trim(4)
            gaps: list[tuple[int, int]] = []
            records = node.subscribe(
                "orders", start=2, on_gap=lambda gap: gaps.append((gap.wanted, gap.first))
            )
            assert (await anext(records)).offset == 4
            assert gaps == [(2, 4)]

    run(check())


def test_refusals(tmp_path: Path) -> None:
    async def check() -> None:
        async with daemon(tmp_path) as fake, linkd.client.connect(fake.path) as node:
            with pytest.raises(LogFull):
                await node.publish("refused", 1)
            with pytest.raises(ChannelRefused):
                await node.publish("no channel", 1)
            with pytest.raises(Refused, match="not-found"):
                await node.publish("orders", 1, wait="nobody")
            fake.deaf = True
            waiting = asyncio.create_task(node.publish("orders", 2))
            await asyncio.sleep(0.05)
        with pytest.raises(Closed):
            await waiting

    run(check())


def test_without_a_daemon(tmp_path: Path) -> None:
    async def check() -> None:
        path = tmp_path / "none.sock"
        async with linkd.client.connect(path, when_down="fail") as node:
            with pytest.raises(NoDaemon):
                await node.publish("orders", 1)
            with pytest.raises(NoDaemon):
                await node.opened(0.05)
        async with linkd.client.connect(path, max_attempts=2, min_delay=0.001) as node:
            with pytest.raises(NoDaemon):
                await node.publish("orders", 1)
            assert node.status.value.state == "stopped"

    run(check())


def test_hooks_and_status(tmp_path: Path) -> None:
    async def check() -> None:
        told: list[object] = []
        node = linkd.client.connect(
            tmp_path / "d.sock",
            min_delay=0.01,
            on_open=lambda: told.append("open"),
            on_close=lambda reason: told.append("close"),
            on_message=lambda record: told.append(record.data),
        )
        async with daemon(tmp_path) as fake, node:
            states: list[str] = []
            node.status.subscribe(lambda status: states.append(status.state))
            records = node.subscribe("orders")
            await node.opened(5)
            await node.publish("orders", 7)
            await anext(records)
            await fake.stop()
            await fake.start()
            while told.count("open") < 2:
                await asyncio.sleep(0.001)
        assert told[:4] == ["open", 7, "close", "open"]
        changes = [state for state, before in pairwise([*states, ""]) if state != before]
        assert changes[:5] == ["stopped", "connecting", "up", "waiting", "connecting"]
        assert states[-1] == "stopped"

    run(check())


def test_a_subscription_of_which_nobody_holds_a_record_ends(tmp_path: Path) -> None:
    async def check() -> None:
        async with daemon(tmp_path) as fake, linkd.client.connect(fake.path) as node:
            await node.publish_many("orders", [1, 2, 3])
            async for record in node.subscribe("orders", consumer="billing", start="earliest"):
                if record.offset == 2:
                    break
            async with asyncio.timeout(5):
                await asyncio.sleep(0.01)
                await record.ack()
                assert fake.consumers == {"billing": 3}
                del record
                await _until(lambda: not any(fake._connections.values()))

    run(check())


@pytest.mark.parametrize("is_open", [True, False])
def test_a_node_of_another_loop_is_refused(tmp_path: Path, is_open: bool) -> None:
    node = linkd.client.connect(tmp_path / "nobody.sock")

    async def first() -> None:
        node.start()
        if not is_open:
            await node.close()

    async def second() -> None:
        calls = [
            lambda: node.publish("a", 1),
            lambda: node.publish_many("a", [1]),
            lambda: node.wait_for("hub", "a", 1),
            lambda: anext(node.subscribe("a")),
            lambda: node.opened(0.1),
        ]
        for call in calls:
            with pytest.raises(ClientError, match="another event loop" if is_open else "closed"):
                await call()
        with pytest.raises(ClientError, match="another event loop"):
            await node.close()

    run(first())
    run(second())


def test_a_full_window_that_nobody_reads_is_reported_to_who_waits_for_on_message(
    tmp_path: Path,
) -> None:
    async def check() -> None:
        heard: list[int] = []
        failed: list[Exception] = []
        async with (
            daemon(tmp_path) as fake,
            linkd.client.connect(
                fake.path,
                on_message=lambda record: heard.append(record.offset),
                on_error=failed.append,
            ) as node,
        ):
            await node.publish_many("orders", [bytes(1000)] * 300)
            unread = node.subscribe("orders", start="earliest", window=100_000)
            await _until(lambda: bool(failed))
            assert len(heard) < 300
            assert "its window is full" in str(failed[0])
            async for record in unread:
                if record.offset == 300:
                    break
            read = node.subscribe("orders", start="earliest", window=1000)
            async for record in read:
                if record.offset == 300:
                    break
            assert heard == [*range(1, 301)] * 2
            assert len(failed) == 1

    run(check())


async def _until(true: Callable[[], bool]) -> None:
    while not true():
        await asyncio.sleep(0.001)


WRONG: list[Callable[[Any], Any]] = [
    lambda node: node.publish("a", "x", ttl="5"),
    lambda node: node.publish("a", "x", ttl=float("inf")),
    lambda node: node.publish("a", "x", ttl=object()),
    lambda node: node.publish("a", "x", type="\ud800"),
    lambda node: node.publish("a", "x", type=None),
    lambda node: node.publish("a", "x", id="f\udce9"),
    lambda node: node.publish("a", "x\ud800"),
    lambda node: node.publish("a", "x", headers={"a": "\ud800"}),
    lambda node: node.publish("a", "x", wait=5),
    lambda node: node.publish("a", "x", wait="hub", timeout=float("inf")),
    lambda node: node.publish("a", bytes(2**24 + 1)),
    lambda node: node.publish_many("a", [bytes(2**24 + 1)]),
    lambda node: node.publish_many("a", ["x"], ttl="5"),
    lambda node: node.wait_for("hub", "a", 2**70),
    lambda node: node.wait_for("hub", 5, 1),
    lambda node: anext(node.subscribe("a", start="latst")),
    lambda node: anext(node.subscribe("a", start=None)),
    lambda node: anext(node.subscribe("a", consumer=None)),
    lambda node: anext(node.subscribe("a", window=0)),
    lambda node: anext(node.subscribe(*[f"p{index}" for index in range(5000)])),
    lambda node: node.subscribe("a", consumer="c").ack(2**70),
]


@pytest.mark.parametrize("connected", [True, False])
def test_a_wrong_argument_costs_its_own_call_only(tmp_path: Path, connected: bool) -> None:
    async def attempt(node: Any, wrong: Callable[[Any], Any]) -> str:
        try:
            await wrong(node)
        except (TypeError, ValueError, PublishError) as error:
            return type(error).__name__
        return "ok"

    async def check() -> None:
        async with daemon(tmp_path) as fake, linkd.client.connect(fake.path) as node:
            if connected:
                await node.opened()
            before = asyncio.ensure_future(node.publish("a", "before"))
            outcomes = await asyncio.gather(*(attempt(node, wrong) for wrong in WRONG))
            assert "ok" not in outcomes
            assert await before
            assert await node.publish("a", "behind")
            assert fake.bodies("a") == [b"before", b"behind"]
            assert fake.opened == 1

    run(check())


def test_a_channel_keeps_the_order_of_the_calls(tmp_path: Path) -> None:
    async def check() -> None:
        async with daemon(tmp_path) as fake, linkd.client.connect(fake.path) as node:
            calls = [
                node.publish("a", str(index), **({"ttl": 60} if index % 3 == 0 else {}))
                for index in range(9)
            ]
            offsets = await asyncio.gather(*calls)
            assert offsets == sorted(offsets)
            assert fake.bodies("a") == [b"%d" % index for index in range(9)]

    run(check())


HOOKS = ["key", "on_open", "on_message", "on_close", "on_error", "on_gap", "observer", "on"]


def is_reported(hook: str, kind: str, errors: list[Exception]) -> bool:
    """Return whether a hook's mistake was reported; only of `key` is it one to hang."""
    if hook == "on_error" or (kind == "hangs" and hook != "key"):
        return True
    words = {"raises": "label", "is cancelled": "cancelled", "hangs": "no answer in 1 s"}
    return any(words[kind] in str(error) for error in errors)


def misbehave(kind: str) -> Any:
    """Do what a hook does by mistake."""
    if kind == "raises":
        raise RuntimeError("my label is gone")
    if kind == "is cancelled":
        raise asyncio.CancelledError
    return asyncio.get_running_loop().create_future()


@pytest.mark.parametrize("kind", ["raises", "is cancelled", "hangs"])
@pytest.mark.parametrize("hook", HOOKS)
def test_a_mistake_in_a_hook_costs_that_call_only(tmp_path: Path, hook: str, kind: str) -> None:
    """In every state: later publishes settle, and the mistake is reported."""

    async def check() -> None:
        errors: list[Exception] = []
        called: list[str] = []
        gap: Any = {}

        def wrong(*_: object) -> Any:
            called.append(hook)
            return "a key" if hook == "key" and len(called) > 1 else misbehave(kind)

        options: dict[str, Any] = {"on_error": errors.append, "min_delay": 0.01, "max_delay": 0.01}
        if hook == "on_gap":
            gap["on_gap"] = wrong
        elif hook not in ("observer", "on"):
            options |= {hook: wrong, "connect_timeout": 1.0}  # of a busy machine
        async with daemon(tmp_path) as fake:
            fake.refusals = 1
            node = linkd.client.connect(fake.path, **options)
            states: list[str] = []
            node.status.subscribe(lambda status: states.append(status.state))
            if hook == "observer":
                node.status._observers.append(wrong)  # it fails in each state, not at once
            async with node:
                if hook == "on":
                    node.on("*", wrong, channel="a")
                records = node.subscribe("a", start=1, **gap)
                await node.publish("a", "1")
                await fake.trim(2)
                await fake.stop()
                while node.status.value.state != "waiting":
                    await asyncio.sleep(0.005)
                await fake.start()
                assert await node.publish("a", "2") == 2
                late = node.subscribe("b", "a", start=1, **gap)
                assert (await anext(late)).text == "2"
                assert (await anext(records)).offset in (1, 2)
                assert called
                assert is_reported(hook, kind, errors)
            assert set(states) == {"stopped", "connecting", "rejected", "up", "waiting"}

    run(check())


@pytest.mark.parametrize("kind", ["raises", "is cancelled", "hangs"])
@pytest.mark.parametrize("state", ["up", "rejected", "full"])
def test_a_mistake_in_encode_is_an_error_of_that_call(
    tmp_path: Path, state: str, kind: str
) -> None:
    """Encoding is synchronous: a coroutine that would hang is a TypeError."""

    async def check() -> None:
        def encode(value: Any) -> Any:
            return misbehave(kind) if value == "wrong" else (value.encode(), "text/plain")

        options: dict[str, Any] = {"encode": encode, "min_delay": 0.01, "max_delay": 0.01}
        async with daemon(tmp_path) as fake:
            fake.refusals = 0 if state == "up" else 1
            fake.deaf = state == "full"
            async with linkd.client.connect(fake.path, max_in_flight_bytes=1, **options) as node:
                before = asyncio.ensure_future(node.publish_many("a", ["before"]))
                await _until(lambda: bool(fake.batches) or state == "rejected")
                calls = [node.publish("a", value) for value in ("wrong", "after")]
                many = node.publish_many("b", ["right", "wrong"])
                later = asyncio.gather(*calls, many, return_exceptions=True)
                await asyncio.sleep(0.01)
                fake.deaf = False
                if state == "full":
                    await fake.stop()
                    await fake.start()
                outcomes = await later
                assert (await before).count == 1
                raised = {"raises": RuntimeError, "is cancelled": asyncio.CancelledError}
                assert isinstance(outcomes[0], raised.get(kind, TypeError))
                assert isinstance(outcomes[1], int)
                assert isinstance(outcomes[2], raised.get(kind, TypeError))
                assert fake.bodies("a") == [b"before", b"after"]

    run(check())


@pytest.mark.parametrize("kind", ["raises", "is cancelled"])
def test_a_mistake_in_decode_is_an_error_of_that_record(tmp_path: Path, kind: str) -> None:
    async def check() -> None:
        def decode(body: bytes, _: str) -> Any:
            return misbehave(kind) if body == b"wrong" else body

        async with daemon(tmp_path) as fake, linkd.client.connect(fake.path, decode=decode) as node:
            records = node.subscribe("a")
            await node.publish_many("a", ["wrong", "right"])
            with pytest.raises(RuntimeError if kind == "raises" else asyncio.CancelledError):
                _ = (await anext(records)).data
            assert (await anext(records)).data == b"right"
            assert await node.publish("a", "after") == 3

    run(check())


def test_a_function_may_take_itself_away_and_close_the_node(tmp_path: Path) -> None:
    async def check() -> None:
        async with daemon(tmp_path) as fake:
            node = linkd.client.connect(fake.path)
            node.start()
            finished: list[str] = []
            done = asyncio.Event()

            async def once(_: Any) -> None:
                node.off("*", once)
                await asyncio.sleep(0.01)
                finished.append("once")

            async def bye(_: Any) -> None:
                await node.close()
                finished.append("bye")
                done.set()

            await node.opened()
            node.on("*", once, channel="a")
            await asyncio.sleep(0)
            await node.publish("a", "x")
            while not finished:
                await asyncio.sleep(0.005)
            node.on("*", bye, channel="a")
            await node.publish("a", "y")
            await done.wait()
            assert finished == ["once", "bye"]
            assert node.status.value.state == "stopped"

    run(check())


def test_a_daemon_that_is_away_is_reported_once_a_minute(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def check() -> None:
        errors: list[Exception] = []
        options: Any = {"on_error": errors.append, "min_delay": 0.001, "max_delay": 0.001}
        async with linkd.client.connect(tmp_path / "none.sock", **options) as node:
            while node.status.value.attempts < 5:
                await asyncio.sleep(0.005)
        assert [type(error) for error in errors] == [NoDaemon]

    run(check())
    assert ["none.sock" in record.getMessage() for record in caplog.records] == [True]


def test_many_small_values_are_encoded_over_several_turns_of_the_loop(tmp_path: Path) -> None:
    """100,000 whole numbers held the loop for 62 ms of processor time."""

    async def check() -> None:
        taken: list[int] = []
        turns = 0

        async def count_turns() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        def values() -> Iterator[int]:
            for value in range(30_000):
                taken.append(turns)
                yield value

        async with daemon(tmp_path) as fake, linkd.client.connect(fake.path) as node:
            await node.opened()
            counting = asyncio.create_task(count_turns())
            assert (await node.publish_many("a", values())).count == 30_000
            counting.cancel()
        assert max(Counter(taken).values()) <= 6000

    run(check())


def test_publishes_that_wait_for_room_keep_the_order_of_their_calls(tmp_path: Path) -> None:
    async def check() -> None:
        options: Any = {"max_in_flight_bytes": 16_384}
        async with daemon(tmp_path) as fake, linkd.client.connect(fake.path, **options) as node:
            offsets: list[asyncio.Task[int]] = []
            cancelled: list[asyncio.Task[int]] = []
            for index in range(3000):
                body = b"%06d" % index * 20
                offsets.append(asyncio.create_task(node.publish("a", body)))
                if index % 7 == 0:
                    cancelled.append(asyncio.create_task(node.publish("b", body)))
                if index % 50 == 0:
                    await asyncio.sleep(0)
                    cancelled[-1].cancel()
            numbers = await asyncio.gather(*offsets)
            await asyncio.gather(*cancelled, return_exceptions=True)
            assert numbers == sorted(numbers)
            assert fake.bodies("a") == [b"%06d" % index * 20 for index in range(3000)]

    run(check())


def test_without_a_connection_a_publish_that_must_not_wait_fails_in_a_full_window(
    tmp_path: Path,
) -> None:
    async def check() -> None:
        options: Any = {"max_in_flight_bytes": 1000, "when_down": "fail"}
        async with daemon(tmp_path) as fake, linkd.client.connect(fake.path, **options) as node:
            await node.opened()
            fake.deaf = True
            first = asyncio.create_task(node.publish("a", b"x" * 2000))
            second = asyncio.create_task(node.publish("a", b"x", id="1"))
            third = asyncio.create_task(node.publish("a", b"x"))
            while not fake.batches:
                await asyncio.sleep(0.005)
            await asyncio.sleep(0)
            await fake.stop()
            with pytest.raises(NoDaemon):
                await third
            assert not first.done()
            assert not second.done()
            first.cancel()
            second.cancel()

    run(check())


async def _step(calls: list[Coroutine[Any, Any, Any]]) -> tuple[int, list[asyncio.Task[Any]]]:
    """Start coroutines and return how many objects of the garbage collector that adds."""
    gc.collect()
    before = len(gc.get_objects())
    tasks = [asyncio.ensure_future(call) for call in calls]
    await asyncio.sleep(0)
    return len(gc.get_objects()) - before, tasks


def test_a_publish_that_waits_for_room_costs_little_more_than_an_empty_coroutine(
    tmp_path: Path,
) -> None:
    """asyncio takes the first step of all coroutines of a `gather` in one iteration.

    Most of what 10^5 publishes cost that iteration is the collection of their objects.
    """

    async def check() -> None:
        async def empty(promise: asyncio.Future[None]) -> None:
            await promise

        loop = asyncio.get_running_loop()
        async with linkd.client.connect(tmp_path / "nobody", max_in_flight_bytes=1) as node:
            tasks = [asyncio.ensure_future(node.publish_many("orders", ["first"]))]
            await asyncio.sleep(0.01)
            idle, empties = await _step([empty(loop.create_future()) for _ in range(1000)])
            ours, publishes = await _step([node.publish("orders", "x") for _ in range(1000)])
        await asyncio.gather(*tasks, *publishes, return_exceptions=True)
        for task in empties:
            task.cancel()
        assert (ours - idle) / 1000 < 3

    run(check())


def test_one_iteration_encodes_a_bounded_part_of_many_publishes(tmp_path: Path) -> None:
    async def check() -> None:
        encoded = 0

        def encode(value: Any) -> tuple[bytes, str]:
            nonlocal encoded
            encoded += 1
            return b"x", ""

        async with daemon(tmp_path) as fake, linkd.client.connect(fake.path, encode=encode) as node:
            calls = asyncio.gather(*(node.publish("orders", number) for number in range(10_000)))
            most = 0
            while not calls.done():
                before = encoded
                await asyncio.sleep(0)
                most = max(most, encoded - before)
            assert await calls == list(range(1, 10_001))
        assert encoded == 10_000
        assert most < 2200

    run(check())


def test_a_publish_cancelled_while_it_waits_for_room_is_not_stored(tmp_path: Path) -> None:
    async def check() -> None:
        async with linkd.client.connect(tmp_path / "d.sock", max_in_flight_bytes=1) as node:
            many = asyncio.ensure_future(node.publish_many("a", ["first"]))
            await asyncio.sleep(0.01)
            tasks = [asyncio.ensure_future(node.publish("a", f"{each}")) for each in range(4)]
            wrong = asyncio.ensure_future(node.publish("a", object()))
            await asyncio.sleep(0.01)
            tasks[2].cancel()
            async with daemon(tmp_path) as fake:
                assert await asyncio.gather(*tasks[:2], tasks[3]) == [2, 3, 4]
                assert (await many).count == 1
                with pytest.raises(BadRecord):
                    await wrong
                assert fake.bodies("a") == [b"first", b"0", b"1", b"3"]

    run(check())
