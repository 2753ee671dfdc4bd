"""Readers over outages and under way: nothing skipped, nothing twice, nothing registered twice."""

from __future__ import annotations

import asyncio
import json
import threading
import urllib.parse
from pathlib import Path
from typing import Any

import linkd.client
import linkd.client.aio
import linkd.client.connection
from tests.support import figures
from tests.support.daemon import Daemon
from tests.support.stream_daemon import StreamDaemon

LINES = b"\n".join([b'{"n":1}'] * 50)


def test_pages_skip_and_repeat_nothing_while_others_publish() -> None:
    """By offset and by a consumer, with pages of odd sizes, over a kill of the daemon."""
    with Daemon("edge-1", "") as daemon:
        stopping = threading.Event()
        published: list[int] = []

        def publish() -> None:
            while not stopping.is_set():
                for channel in ("orders.a", "other"):
                    try:
                        told = daemon.call(
                            "POST", f"/v1/channels/{channel}", LINES, "application/x-ndjson"
                        )
                    except (OSError, RuntimeError):
                        stopping.wait(0.05)
                        continue
                    if channel == "orders.a":
                        published.extend(range(told["offset"], told["offset"] + told["count"]))

        publisher = threading.Thread(target=publish)
        publisher.start()
        try:
            by_offset = pages(daemon, 150, "from={next}", acked=False)
            daemon.kill()
            daemon.start()
            by_consumer = pages(daemon, 150, "consumer=billing&from=earliest", acked=True)
        finally:
            stopping.set()
            publisher.join(20)
        for got in (by_offset, by_consumer):
            known = [one for one in published if one <= got[-1]]
            assert set(known) <= set(got), "skipped"
            assert got == sorted(set(got)), "repeated, or out of order"
        figures.tell(
            f"paging while {len(published)} were published, over a kill:"
            f" {len(by_offset)} by offset, {len(by_consumer)} by consumer, none skipped, none twice"
        )
        assert len(by_offset) > 1000
        assert len(by_consumer) > 1000


def pages(daemon: Daemon, count: int, query: str, acked: bool) -> list[int]:
    """Read so many pages; return the offsets in them."""
    got: list[int] = []
    next_ = 1
    for turn in range(count):
        asked = query.format(next=next_) + f"&wait=5&limit={1 + turn % 37}"
        page = daemon.call("GET", f"/v1/channels/{urllib.parse.quote('orders.>')}?{asked}")
        assert page["gap"] is None
        got += [record["offset"] for record in page["records"]]
        assert page["next"] > (got[-1] if got else 0)
        next_ = page["next"]
        if acked:
            daemon.call("POST", "/v1/consumers/billing/ack", json.dumps({"next": next_}).encode())
    return got


class Jumping(asyncio.SelectorEventLoop):
    """A loop on real sockets whose clock jumps to the next timer whenever nothing else is to do."""

    def __init__(self) -> None:
        super().__init__()
        self.jumped = 0.0
        self.frozen = True
        self._wait = self._selector.select  # type: ignore[attr-defined]
        self._selector.select = self._select  # type: ignore[attr-defined]

    def time(self) -> float:
        return super().time() + self.jumped

    def _select(self, timeout: float | None = None) -> Any:
        ready = self._wait(0.002 if timeout is None else min(timeout, 0.002))
        if not ready and timeout and not self.frozen:
            self.jumped += max(0.0, timeout - 0.002)
        return ready


def test_an_hour_without_a_daemon(tmp_path: Path) -> None:
    """3,600 simulated seconds: attempts go on, and all is registered once when it is back."""
    loop = Jumping()

    async def check() -> None:
        fake = StreamDaemon(tmp_path / "d.sock")
        await fake.start()
        options = {"min_delay": 0.5, "max_delay": 15.0, "silence_timeout": 1e9}
        async with linkd.client.connect(fake.path, **options) as node:
            heard: list[str] = []
            node.on("created", lambda record: heard.append(record.text), channel="orders")
            records = node.subscribe("orders")
            await node.opened(5)
            await node.publish("orders", "before", type="created")
            assert (await anext(records)).text == "before"
            states: list[str] = []
            node.status.subscribe(lambda status: states.append(status.state))
            waiting = asyncio.create_task(node.publish("orders", "meanwhile", type="created"))
            await fake.stop()
            began = loop.time()
            loop.frozen = False
            await asyncio.sleep(3600.0)
            loop.frozen = True
            assert loop.time() - began >= 3600.0
            attempts = states.count("connecting")
            await fake.start()
            loop.frozen = False
            assert await waiting > 0
            loop.frozen = True
            assert (await anext(records)).text == "meanwhile"
            await node.publish("orders", "after", type="created")
            assert (await anext(records)).text == "after"
            while len(heard) < 3:
                await asyncio.sleep(0.001)
            assert heard == ["before", "meanwhile", "after"]
            assert fake.subscribed["orders",] == 2 * fake.opened
            figures.tell(
                f"an hour without a daemon: {attempts} attempts, each function called once"
            )
            assert 240 <= attempts <= 2000
        await fake.stop()

    try:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(check())
    finally:
        asyncio.set_event_loop(None)
        loop.close()
