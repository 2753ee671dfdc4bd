"""The clients against a real daemon that is killed under them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import shutil
import socket
import time
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest

import linkd.client
from linkd.client.errors import ClientError, NoDaemon, Refused, Replaced
from linkd.errors import ChannelRefused, LogFull
from tests.support import figures
from tests.support.daemon import SECRET, Daemon


def run(test: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await test

    asyncio.run(bounded())


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with Daemon("edge-1", "") as running:
        yield running


class MeasuredLoop(asyncio.SelectorEventLoop):
    """Keeps what each iteration takes of the processor, in seconds."""

    taken: list[float]

    def _run_once(self) -> None:
        began = time.thread_time()
        super()._run_once()  # type: ignore[misc]  # asyncio has it without types
        self.taken.append(time.thread_time() - began)


@pytest.mark.timing
def test_fifty_thousand_publishes_at_once_hold_no_later_iteration(daemon: Daemon) -> None:
    """asyncio makes all tasks of a `gather` in one iteration and takes their first step in another.

    There a publish costs little more than an empty coroutine; all further work comes in slices.
    """
    loop = MeasuredLoop()
    loop.taken = []
    count = 50_000

    async def check() -> tuple[list[float], list[float]]:
        async def empty() -> None:
            await loop.create_future()

        begun = len(loop.taken)
        tasks = [asyncio.ensure_future(empty()) for _ in range(count)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        idle = sorted(loop.taken[begun:], reverse=True)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        async with linkd.client.connect(daemon.socket) as node:
            await node.opened(5)
            begun = len(loop.taken)
            calls = [node.publish("orders", "x" * 100) for _ in range(count)]
            offsets = await asyncio.gather(*calls)
            ours = sorted(loop.taken[begun:], reverse=True)
        assert offsets == list(range(1, count + 1))
        return idle, ours

    gc.collect()
    gc.disable()  # of 10^5 objects of asyncio it takes more than all else, and at any time
    try:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            idle, ours = runner.run(check())
    finally:
        gc.enable()
    figures.tell(
        f"{count} publishes at once: the first two iterations take"
        f" {1000 * sum(ours[:2]):.0f} ms of the processor ({1000 * sum(idle[:2]):.0f} ms with empty"
        f" coroutines), each other up to {1000 * ours[2]:.0f} ms of {len(ours)}"
    )
    assert ours[2] < 0.05
    assert sum(ours[:2]) < 4 * sum(idle[:2]) + 0.05


async def restart(daemon: Daemon) -> None:
    await asyncio.to_thread(daemon.kill)
    await asyncio.to_thread(daemon.start)


def test_ten_thousand_in_flight_over_kill_9(daemon: Daemon) -> None:
    """Each of them is settled, in order, and stored once, wherever the kill falls."""

    async def check() -> None:
        # At most 64 KiB under way: the kill falls among many batches.
        options = {"max_in_flight_bytes": 65_536, "min_delay": 0.05, "max_delay": 0.2}
        async with linkd.client.connect(daemon.socket, **options) as node:
            settled = 0

            def count(_: asyncio.Task[int]) -> None:
                nonlocal settled
                settled += 1

            publishes = []
            for index in range(10_000):
                publishes.append(asyncio.create_task(node.publish("orders", f"{index:0100}")))
                publishes[-1].add_done_callback(count)
            killed_at = 0
            while not killed_at:
                await asyncio.sleep(0)
                killed_at = settled
            await restart(daemon)
            offsets = await asyncio.gather(*publishes)
            print(f"killed after {killed_at} of {len(offsets)} were settled")
            assert killed_at < 10_000
            assert offsets == sorted(set(offsets))
            records = node.subscribe("orders", start="earliest")
            stored = [await anext(records) for _ in range(10_000)]
            assert [record.text for record in stored] == [
                f"{index:0100}" for index in range(10_000)
            ]
            assert [record.offset for record in stored] == offsets
            await node.publish("orders", "last")
            assert (await anext(records)).text == "last"

    run(check())


def test_subscribers_and_consumers_survive_kill_9(daemon: Daemon) -> None:
    async def check() -> None:
        async with linkd.client.connect(daemon.socket, min_delay=0.05, max_delay=0.2) as node:
            heard: list[str] = []
            node.on("created", lambda record: heard.append(record.text), channel="orders")
            billing = node.subscribe("orders", consumer="billing", start="earliest")
            await node.opened(5)
            for index in range(6):
                await node.publish("orders", f"{index}", type="created")
                record = await anext(billing)
                assert record.text == f"{index}"
                if index < 3:
                    await record.ack()
                if index in (1, 4):
                    await restart(daemon)
            while len(heard) < 6:
                await asyncio.sleep(0.01)
            assert heard == [f"{index}" for index in range(6)]
        async with linkd.client.connect(daemon.socket) as node:
            billing = node.subscribe("orders", consumer="billing")
            assert [(await anext(billing)).text for _ in range(3)] == ["3", "4", "5"]

    run(check())


def test_an_id_is_stored_once_and_a_frozen_daemon_is_noticed(daemon: Daemon) -> None:
    async def check() -> None:
        options = {"silence_timeout": 6.5, "min_delay": 0.05, "max_delay": 0.2}
        async with linkd.client.connect(daemon.socket, **options) as node:
            first = await node.publish("orders", {"total": 1}, id="o-1")
            assert await node.publish("orders", {"total": 1}, id="o-1") == first
            loop = asyncio.get_running_loop()
            daemon.freeze()
            frozen = loop.time()
            async for status in node.status:
                if status.state != "up":
                    break
            noticed = loop.time() - frozen
            daemon.thaw()
            print(f"noticed after {noticed:.2f} s")
            assert 1.4 <= noticed <= 7.0
            await node.publish("orders", "after")

    run(check())


def test_a_stopping_daemon_loses_nothing(daemon: Daemon) -> None:
    async def check() -> None:
        async with linkd.client.connect(daemon.socket, min_delay=0.05, max_delay=0.2) as node:
            publishes = [asyncio.create_task(node.publish("a", index)) for index in range(2_000)]
            stopping = asyncio.create_task(asyncio.to_thread(daemon.stop))
            publishes += [
                asyncio.create_task(node.publish("a", index)) for index in range(2_000, 4_000)
            ]
            await stopping
            await asyncio.to_thread(daemon.start)
            offsets = await asyncio.gather(*publishes)
            assert offsets == list(range(offsets[0], offsets[0] + 4_000)) or offsets == sorted(
                set(offsets)
            )
            records = node.subscribe("a", start="earliest")
            assert [(await anext(records)).data for _ in range(4_000)] == list(range(4_000))

    run(check())


def test_over_http_with_a_key(unused_port: int) -> None:
    config = f"""
http = "127.0.0.1:{unused_port}"
[[api.key]]
name = "shop"
secret_file = "{{secret}}"
publish = ["orders"]
subscribe = ["orders"]
"""

    async def check(daemon: Daemon) -> None:
        url = f"http://127.0.0.1:{unused_port}"
        errors: list[Exception] = []

        async def key() -> str:
            return SECRET

        async with linkd.client.connect(url, key=key) as node:
            records = node.subscribe("orders")
            await node.publish("orders", 1)
            assert (await anext(records)).data == 1
            with pytest.raises(ChannelRefused):
                await node.publish("others", 1)
            with pytest.raises(Refused):
                await anext(node.subscribe("others"))
        async with linkd.client.connect(url, key="wrong" * 9, on_error=errors.append) as node:
            with pytest.raises(NoDaemon, match="unauthorized"):
                await node.opened(1)
            # It tries again every half second: `connecting`, then this.
            async with asyncio.timeout(10):
                async for status in node.status:
                    if status.state == "rejected":
                        break
        assert isinstance(errors[0], Refused)
        assert errors[0].status == 401

    with Daemon("edge-1", config) as daemon:
        run(check(daemon))


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_lasting_producer_publishes_in_every_run_of_its_program(daemon: Daemon) -> None:
    async def check() -> None:
        for begin in (0, 3, 6):  # each connect is a process of its own to the daemon
            async with linkd.client.connect(daemon.socket, producer="shop-1") as node:
                offsets = [await node.publish("orders", str(begin + one)) for one in range(3)]
                assert offsets == [begin + 1, begin + 2, begin + 3]
            if begin == 3:
                await restart(daemon)
        async with linkd.client.connect(daemon.socket) as node:
            records = node.subscribe("orders", start="earliest")
            assert [(await anext(records)).text for _ in range(9)] == [str(n) for n in range(9)]

    run(check())


def test_a_second_run_of_a_lasting_producer_ends_the_first(daemon: Daemon) -> None:
    async def check() -> None:
        async with linkd.client.connect(daemon.socket, producer="shop-1") as first:
            await first.publish("orders", "first")
            async with linkd.client.connect(daemon.socket, producer="shop-1") as second:
                assert await second.publish("orders", "second") == 2
                async for status in first.status:
                    if status.state == "stopped":
                        break
                with pytest.raises(Replaced):
                    await first.publish("orders", "first")

    run(check())


def test_a_publish_that_waits_for_nobody_is_refused_before_it_is_stored(daemon: Daemon) -> None:
    async def check() -> None:
        async with linkd.client.connect(daemon.socket) as node:
            for call in (
                node.publish("orders", "x", wait="nobody"),
                node.publish("orders", "x", wait="nobody", id="1"),
                node.publish_many("orders", ["x"], wait="nobody"),
            ):
                with pytest.raises(Refused) as caught:
                    await call
                assert (caught.value.error, caught.value.offset) == ("not-found", None)
            assert await node.publish("orders", "first") == 1

    run(check())


def test_a_log_that_was_put_back_and_grew_is_read_whole_and_not_acknowledged(
    daemon: Daemon,
) -> None:
    """Its epochs show where the copy was made, however many records it has when we are back."""

    async def put_back(copy: str) -> None:
        def swap() -> None:
            daemon.stop()
            shutil.rmtree(daemon.directory / "state")
            shutil.copytree(copy, daemon.directory / "state")
            daemon.start()
            for index in range(9):
                daemon.call("POST", "/v1/channels/orders", b"new %d" % index, "text/plain")

        await asyncio.to_thread(swap)

    async def check() -> None:
        async with linkd.client.connect(daemon.socket, min_delay=0.05, max_delay=0.2) as node:
            for index in range(4):
                await node.publish("orders", f"old {index}")
        copy = str(daemon.directory / "copy")
        await asyncio.to_thread(daemon.stop)
        shutil.copytree(daemon.directory / "state", copy)
        await asyncio.to_thread(daemon.start)
        # Both are back only when the copy has grown past what they have.
        async with linkd.client.connect(daemon.socket, min_delay=1.0, max_delay=1.5) as node:
            plain = node.subscribe("orders", start="earliest")
            named = node.subscribe("orders", consumer="billing", start="earliest")
            for index in range(4):
                await node.publish("orders", f"lost {index}")
            assert [(await anext(plain)).text for _ in range(8)][-1] == "lost 3"
            held = [await anext(named) for _ in range(8)]
            await held[1].ack()
            await put_back(copy)
            assert [(await anext(plain)).text for _ in range(9)] == [f"new {i}" for i in range(9)]
            with pytest.raises(ClientError, match="another log"):
                await held[7].ack()
            await held[3].ack()  # it lies below the copy's end
        async with linkd.client.connect(daemon.socket) as node:
            named = node.subscribe("orders", consumer="billing")
            assert (await anext(named)).text == "new 0"

    run(check())


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_quiet_subscription_hears_of_no_gap_in_what_others_publish(end: str) -> None:
    """The busy channel was trimmed while the subscription's own had lost nothing."""

    async def check(daemon: Daemon) -> None:
        gaps: list[object] = []
        async with linkd.client.connect(daemon.socket, min_delay=0.05, max_delay=0.2) as node:
            records = node.subscribe("quiet", on_gap=gaps.append)
            await node.publish("quiet", "first")
            await anext(records)
            left = 50
            while left:
                try:
                    await node.publish("busy", b"x" * 400_000)
                    left -= 1
                except LogFull:  # old segments go a moment later
                    await asyncio.sleep(0.05)
            if end == "kill":  # the position comes every 5 s
                await asyncio.sleep(6)
                await asyncio.to_thread(daemon.kill)
            else:
                await asyncio.to_thread(daemon.stop)
            await asyncio.to_thread(daemon.start)
            while True:
                with contextlib.suppress(LogFull):
                    await node.publish("quiet", "second")
                    break
                await asyncio.sleep(0.05)
            assert (await anext(records)).text == "second"
        body = await asyncio.to_thread(daemon.status)
        assert body["log"]["first"] > 2, "the log was trimmed"
        assert gaps == []

    config = "[log]\nmax_bytes = 16_777_216\nmin_free_bytes = 1_048_576\n"
    with Daemon("edge-1", config) as daemon:
        asyncio.run(asyncio.wait_for(check(daemon), 60))
