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


_HOOKS = """
import sys
from twisted.internet import task
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
import linkd.client.twisted

HOOKS = ["key", "on_open", "on_message", "on_close", "on_error", "observer", "on"]
HOOKS += ["encode", "decode"]

async def attempt(reactor, hook, kind):
    errors, called = [], []

    def wrong(*given):
        called.append(hook)
        if hook == "key" and len(called) > 1:
            return "a key"
        if hook == "encode" and len(called) > 1:
            return given[0].encode(), "text/plain"
        if hook == "decode" and len(called) > 1:
            return given[0].decode()
        if kind == "raises":
            raise RuntimeError("my label is gone")
        if kind == "is cancelled":
            raise CancelledError
        return Deferred()

    options = {"on_error": errors.append, "min_delay": 0.01, "max_delay": 0.01}
    options["connect_timeout"] = 0.5
    if hook not in ("on", "observer"):
        options[hook] = wrong
    node = linkd.client.twisted.connect(reactor, sys.argv[1], **options)
    states = []
    node.status.subscribe(lambda status: states.append(status.state))
    if hook == "observer":
        node.status._observers.append(wrong)
    async with node:
        if hook == "on":
            node.on("*", wrong, channel="a")
        records = node.subscribe("a")
        if hook == "encode":
            try:
                await node.publish("a", "0")
            except (RuntimeError, CancelledError, TypeError) as error:
                errors.append(error)
        if hook == "decode":  # called when the application reads `data`, in its own code
            await node.publish("a", "0")
            record = await anext(records)
            try:
                record.data
            except (RuntimeError, CancelledError) as error:
                errors.append(error)
        await node.publish("a", "1")
        assert "rejected" in states
        states.clear()
        node._upkeep._wire.abort()
        while "waiting" not in states or node.status.value.state != "up":
            await task.deferLater(reactor, 0.005)
        await node.publish("a", "2")
        later = [await anext(records) for _ in range(2)]
        assert [record.text for record in later] == ["1", "2"]
        assert hook != "decode" or [record.data for record in later] == ["1", "2"]
    if hook != "on_error":
        assert called, (hook, kind)
        told = {"raises": "label", "is cancelled": "cancelled"}.get(kind)
        if hook == "encode":
            told = {"raises": "label", "is cancelled": ""}.get(kind, "expected encode")
        if hook == "decode" and kind == "is cancelled":
            told = ""
        if hook == "key" and kind == "hangs":
            told = "no answer"
        if told is not None:
            assert any(told in str(error) for error in errors), (hook, kind, errors)

async def main(reactor):
    for hook in HOOKS:
        for kind in ("raises", "is cancelled", "hangs"):
            sys.stdout.write("next\\n")
            sys.stdout.flush()
            sys.stdin.readline()  # the daemon refuses the next connection
            trying = ensureDeferred(attempt(reactor, hook, kind))
            await trying.addTimeout(8, reactor, lambda *_: sys.exit(f"{hook} {kind}: it hangs"))
    print("fine")

task.react(lambda reactor: ensureDeferred(main(reactor)))
"""


def test_a_mistake_in_a_hook_costs_that_call_only(tmp_path: Path) -> None:
    """Each hook raises, is cancelled and hangs, in every state."""

    async def check() -> None:
        fake = StreamDaemon(tmp_path / "d.sock")
        await fake.start()
        program = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            _HOOKS,
            str(fake.path),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(60):
                assert program.stdin is not None
                assert program.stdout is not None
                while (said := await program.stdout.readline()) == b"next\n":
                    fake.refusals = 1
                    program.stdin.write(b"go\n")
                _, errors = await program.communicate()
        finally:
            if program.returncode is None:
                program.kill()
                await program.wait()
            await fake.stop()
        assert (said.decode(), program.returncode) == ("fine\n", 0), errors.decode()[-2000:]

    asyncio.run(check())
