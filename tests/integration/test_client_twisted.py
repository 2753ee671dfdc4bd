"""The Twisted client against a daemon that comes and goes; its reactor has its own process."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.support.stream_daemon import StreamDaemon

_PROGRAM = """
import sys
from twisted.internet import task
from twisted.internet.defer import Deferred, ensureDeferred, gatherResults
import linkd.client.twisted
from linkd.errors import LogFull

async def main(reactor):
    heard = []
    async with linkd.client.twisted.connect(reactor, sys.argv[1], min_delay=0.01) as node:
        await node.opened(5)
        node.on("created", lambda record: heard.append(record.text), channel="orders")
        records = node.subscribe("orders", start="earliest", consumer="billing")
        try:
            await node.publish("refused", 1)
        except LogFull:
            print("refused")
        publishes = [node.publish("orders", str(index), type="created") for index in range(10_000)]
        offsets = await gatherResults(publishes, consumeErrors=True)
        print(offsets == list(range(1, 10_001)))
        got = []
        async for record in records:
            got.append(record.text)
            if len(got) == 10_000:
                await record.ack()
                break
        print(got == [str(index) for index in range(10_000)])
        stored = await node.publish_many("bulk", [b"x" * 100] * 5_000, wait="hub")
        print(stored.count, stored.last - stored.first)
        while len(heard) < 10_000:
            await task.deferLater(reactor, 0.01)
        await node.publish("heads", "x", headers={"Trace-Id": "7"})
        async for record in node.subscribe("heads", start="earliest"):
            print(dict(record.headers))
            break
        print(heard == got, node.status.value.state, node.status.value.links, node.name)
    print(node.status.value.state, reactor.getDelayedCalls())

task.react(lambda reactor: ensureDeferred(main(reactor)))
"""


def test_ten_thousand_in_flight_over_a_kill(tmp_path: Path) -> None:
    async def check() -> None:
        fake = StreamDaemon(tmp_path / "d.sock")
        fake.die_after = 3
        await fake.start()
        program = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _PROGRAM, str(fake.path), stdout=asyncio.subprocess.PIPE
        )
        try:
            async with asyncio.timeout(30):
                while fake.die_after is not None:
                    await asyncio.sleep(0.001)
                await fake.stop()
                await asyncio.sleep(0.05)
                await fake.start()
                assert program.stdout is not None
                said = (await program.stdout.read()).decode().splitlines()
                assert await program.wait() == 0
        finally:
            if program.returncode is None:
                program.kill()
                await program.wait()
            await fake.stop()
        assert said == [
            "refused",
            "True",
            "True",
            "5000 4999",
            "{'trace-id': '7'}",
            "True up {'hub': 'up'} edge-1",
            "stopped []",
        ]
        assert fake.bodies("orders") == [b"%d" % index for index in range(10_000)]
        assert fake.consumers["billing"] == 10_001

    asyncio.run(check())
