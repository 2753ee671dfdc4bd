"""Publishers and readers on one daemon that is killed, stopped, frozen, filled and replaced.

python -m tests.support.client_chaos LOOP [--seconds 60] [--publishes N] [--seed 1]

Prints what was done and found as JSON; the exit status is 1 where a promise was broken. Each phase
ends with the log read from its start, and the next begins with another log.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from random import Random
from typing import Any

from twisted.internet import defer, reactor, task, threads

import linkd.client
import linkd.client.twisted
from linkd.client.errors import ClientError, OffsetUnknown
from linkd.errors import LinkdError, LogFull
from tests.support.daemon import Daemon

KEYS = ("a" * 40, "b" * 40)
FULL = "[log]\nmin_free_bytes = 1_000_000_000_000_000\n"
FAULTS = ("full", "kill", "term", "freeze", "reload", "key", "kill")
"""Each round has all of them, the first round in this order."""
SETTLE_SECONDS = 60.0
PHASE_SECONDS = 12.0
BULK = 1000


class OnAsyncio:
    """What the test needs of asyncio."""

    cancelled: type[BaseException] = asyncio.CancelledError
    sleep = staticmethod(asyncio.sleep)
    in_thread = staticmethod(asyncio.to_thread)
    connect = staticmethod(linkd.client.connect)

    @staticmethod
    def start(coroutine: Coroutine[Any, Any, Any]) -> Callable[[], object]:
        """Run a coroutine; return what cancels it."""
        running = asyncio.create_task(coroutine)
        KEPT.add(running)
        running.add_done_callback(KEPT.discard)
        return running.cancel


KEPT: set[Any] = set()


class OnTwisted:
    """What the test needs of Twisted."""

    cancelled: type[BaseException] = defer.CancelledError
    in_thread = staticmethod(threads.deferToThread)

    @staticmethod
    def connect(where: Any, **options: Any) -> Any:
        """Return a node."""
        return linkd.client.twisted.connect(reactor, where, **options)

    @staticmethod
    async def sleep(seconds: float) -> None:
        """Return after so many seconds."""
        await task.deferLater(reactor, seconds)  # type: ignore[arg-type]

    @staticmethod
    def start(coroutine: Coroutine[Any, Any, Any]) -> Callable[[], object]:
        """Run a coroutine; return what cancels it."""
        running = defer.Deferred.fromCoroutine(coroutine)
        return running.cancel


Outcome = int | str
"""The offset, or how a call ended without one; empty while it is open."""


class Chaos:
    """One daemon, what was asked of it, what it stored, and what is wrong.

    Attributes:
        wrong: Each broken promise, with its count.
        done: How often each fault was, and how the calls ended.
    """

    full_seconds = 0.5

    def __init__(self, on: Any, seed: int) -> None:
        self.on = on
        self.random = Random(seed)
        self.wrong: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.calls: dict[str, Outcome] = {}
        self.seen: dict[str, list[tuple[int, str]]] = {}
        self.errors: Counter[str] = Counter()
        self.paused = self.over = False
        self.open = 0
        self.key = 0
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.daemon = Daemon("edge-1", "")
        self._configure()

    def _configure(self, more: str = "") -> None:
        secret = self.daemon.directory / "key"
        secret.touch(0o600)
        secret.write_text(KEYS[self.key] + "\n")
        self.daemon.configure(
            f'http = "127.0.0.1:{self.port}"\n'
            f'[[api.key]]\nname = "shop"\nsecret_file = "{secret}"\n'
            f'publish = [">"]\nsubscribe = [">"]\n{more}'
        )

    def node(self, over_http: bool) -> Any:
        """Return a client of the daemon."""
        where = f"http://127.0.0.1:{self.port}" if over_http else self.daemon.socket
        return self.on.connect(
            where,
            key=lambda: KEYS[self.key],
            min_delay=0.05,
            max_delay=0.3,
            on_error=lambda error: self.errors.update([type(error).__name__]),
            max_in_flight_bytes=self.random.choice((65_536, 1 << 20, 8 << 20)),
        )

    # what applications do

    async def _call(self, tag: str, publish: Callable[[], Any]) -> None:
        """Make one call, and note how it ended: exactly once."""
        self.calls[tag] = ""
        self.open += 1
        try:
            self.calls[tag] = await publish()
        except self.on.cancelled:
            self.calls[tag] = "cancelled"
        except LogFull:
            self.calls[tag] = "refused"
        except OffsetUnknown:
            self.calls[tag] = "offset unknown"
        except (LinkdError, ClientError) as error:
            self.calls[tag] = f"{type(error).__name__}: {error}"
        finally:
            self.open -= 1

    async def publisher(self, name: str, over_http: bool) -> None:
        """Publish single values, many at once, some with ids, some cancelled."""
        async with self.node(over_http) as node:
            number = 0
            while not self.over:
                if self.paused or self.open > 2000:
                    await self.on.sleep(0.01)
                    continue
                for _ in range(self.random.choice((1, 5, 100))):
                    number += 1
                    tag = f"{name}-{number}"
                    options = {"id": tag} if number % 7 == 1 else {}
                    cancel = self.on.start(
                        self._call(
                            tag,
                            lambda tag=tag, options=options: node.publish(name, tag, **options),
                        )
                    )
                    if number % 23 == 3:
                        self.on.start(self._cancel(cancel))
                await self.on.sleep(self.random.choice((0, 0.001, 0.01)))
            await self._until(lambda: not self.open)

    async def _cancel(self, cancel: Callable[[], object]) -> None:
        await self.on.sleep(self.random.random() * 0.02)
        cancel()

    async def bulk(self, name: str) -> None:
        """Publish many values a call."""
        async with self.node(over_http=False) as node:
            number = 0
            while not self.over:
                if self.paused:
                    await self.on.sleep(0.01)
                    continue
                first, number = number, number + BULK
                values = [f"{name}-{each}" for each in range(first, number)]
                self.open += 1
                try:
                    stored = await node.publish_many(name, values)
                    if stored.count != BULK or stored.last < stored.first + BULK - 1:
                        self.wrong[f"publish_many returned {stored}"] += 1
                    outcome: Outcome = "stored"
                except LinkdError as error:
                    outcome = "some" if isinstance(error, LogFull | OffsetUnknown) else repr(error)
                finally:
                    self.open -= 1
                self.calls.update(dict.fromkeys(values, outcome))
                await self.on.sleep(0.005)

    async def reader(self, name: str, over_http: bool, **options: Any) -> None:
        """Note every record; a consumer acknowledges some."""
        async with self.node(over_http) as node:
            try:
                async for record in node.subscribe(">", start="earliest", **options):
                    self.seen[name].append((record.offset, record.text))
                    if "consumer" in options and record.offset % 50 == 0:
                        record.ack()
                    if self.over:
                        return
            except LinkdError as error:
                self.wrong[f"reader {name} ended: {error!r}"] += 1

    # what happens to the daemon

    async def fault(self, kind: str) -> None:
        """Do one thing to the daemon."""
        self.done[kind] += 1
        daemon, thread = self.daemon, self.on.in_thread
        if kind == "freeze":
            daemon.freeze()
            await self.on.sleep(self.random.random() * 1.5)
            daemon.thaw()
        elif kind in ("reload", "key"):
            if kind == "key":
                self.key = 1 - self.key
                self._configure()
            daemon.signal(signal.SIGHUP)
        else:
            await thread(daemon.kill if kind == "kill" else daemon.stop)
            if kind == "full":
                self._configure(FULL)
                await thread(daemon.start)
                await self.on.sleep(self.full_seconds)
                await thread(daemon.stop)
                self._configure()
            await thread(daemon.start)

    async def run(self, seconds: float, publishes: int = 0) -> None:
        """Do all of it for so long, and for at least so many publishes."""
        self.seen = {name: [] for name in ("plain", "billing", "tiny")}
        await self.on.in_thread(self.daemon.start)
        start = self.on.start
        for name, over_http in (("s0", False), ("s1", True), ("s2", False)):
            start(self.publisher(name, over_http))
        if type(self) is Chaos:
            start(self.bulk("b0"))
        start(self.reader("plain", over_http=False))
        start(self.reader("billing", over_http=True, consumer="billing"))
        start(self.reader("tiny", over_http=False, window=2000))
        end = time.monotonic() + seconds
        faults = list(FAULTS)
        while not self.over:
            phase = time.monotonic() + min(seconds, PHASE_SECONDS)
            while time.monotonic() < phase:
                await self.on.sleep(self.random.random())
                await self.fault(faults.pop(0))
                if not faults:
                    faults = self.random.sample(FAULTS, len(FAULTS))
            await self._check()
            stored = self.done["call: stored"] + self.done["call: offset"]  # none: a busy machine
            enough = self.done["published"] >= publishes and stored > 100
            self.over = enough and time.monotonic() >= end
            if not self.over:
                await self._replace()
        await self.on.sleep(0.2)

    async def _replace(self) -> None:
        """Give the daemon another log, in which nothing of what was published is."""

        def replace() -> None:
            self.daemon.stop()
            shutil.rmtree(self.daemon.directory / "state")
            self.daemon.start()

        self.done["log replaced"] += 1
        for seen in self.seen.values():
            seen.clear()
        self.calls.clear()
        await self.on.in_thread(replace)
        self.paused = False

    # what must be true

    async def _until(self, true: Callable[[], bool]) -> bool:
        end = time.monotonic() + SETTLE_SECONDS
        while not true() and time.monotonic() < end:
            await self.on.sleep(0.02)
        return true()

    async def _check(self) -> None:
        """Have all calls settle, then compare them and the readers with the log."""
        self.paused = True
        if not await self._until(lambda: not self.open):
            self.wrong["calls that did not settle"] += self.open
        async with self.node(over_http=False) as node:
            last = await node.publish("end", "end")
            log: list[tuple[int, str]] = []
            async for record in node.subscribe(">", start="earliest"):
                log.append((record.offset, record.text))
                if record.offset >= last:
                    break
        self.done["published"] += len(self.calls)
        self.done["stored"] += len(log)
        self._check_calls(log)
        for name, seen in self.seen.items():
            if not await self._until(lambda seen=seen: bool(seen) and seen[-1][0] >= last):
                self.wrong[f"reader {name} is behind"] += 1
            got = [entry for entry in seen if entry[0] <= last]
            if name == "billing":
                got = sorted(set(got))
            if got != log:
                self.wrong[f"reader {name} got {len(got)} of {len(log)}, not the same"] += 1

    def _check_calls(self, log: list[tuple[int, str]]) -> None:
        stored = Counter(text for _, text in log)
        offsets = {text: offset for offset, text in log}
        self.wrong["stored twice"] += sum(count - 1 for count in stored.values())
        highest: dict[str, int] = {}
        for _, text in log:
            name, _, number = text.partition("-")
            if number and int(number) < highest.get(name, -1):
                self.wrong["out of order"] += 1
            highest[name] = int(number or 0)
        for tag, outcome in self.calls.items():
            kind = "offset" if isinstance(outcome, int) else outcome
            self.done[f"call: {kind}"] += 1
            if isinstance(outcome, int):
                if tag not in stored:
                    self.wrong["lost"] += 1
                elif offsets[tag] != outcome:
                    self.wrong["wrong offset"] += 1
            elif outcome in ("stored", "offset unknown") and tag not in stored:
                self.wrong["lost"] += 1
            elif outcome == "refused" and tag in stored:
                self.wrong["refused, but stored"] += 1
            elif outcome not in ("stored", "offset unknown", "refused", "cancelled", "some"):
                self.wrong[outcome] += 1


STORED = re.compile(r"([\d,]+) messages?(?: stored)?(?:, of ([\d,]+) more it is not known)?")


class CommandChaos(Chaos):
    """The same with `linkd publish --lines` and `linkd subscribe` as pipes."""

    full_seconds = 4.0  # a command takes longer to start than a client

    async def _command(self, *words: str) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        words = ("-m", "linkd", *words, "--socket", str(self.daemon.socket))
        return await asyncio.create_subprocess_exec(
            sys.executable, *words, stdin=pipe, stdout=pipe, stderr=pipe, limit=1 << 24
        )

    async def publisher(self, name: str, over_http: bool) -> None:
        """Run one pipe after the other; some are interrupted."""
        number = 0
        while not self.over:
            if self.paused:
                await self.on.sleep(0.01)
                continue
            self.open += 1
            try:
                number = await self._pipe(name, number)
            finally:
                self.open -= 1

    async def _pipe(self, name: str, number: int) -> int:
        process = await self._command("publish", name, "--lines")
        assert process.stdin is not None
        tags: list[str] = []
        is_cancelled = self.random.random() < 0.4
        # a pipe holds 64 KiB and its writer as many: behind them it runs, and can be interrupted
        last = number + (20_000 if is_cancelled else self.random.randrange(1000, 20_000))
        with suppress(ConnectionError):
            while number < last and not self.paused:
                piece = [f"{name}-{each}" for each in range(number, number + 500)]
                number += len(piece)
                tags += piece
                process.stdin.write("".join([f"{tag}\n" for tag in piece]).encode())
                await process.stdin.drain()
                await self.on.sleep(0.01)
            if is_cancelled and number >= last and process.returncode is None:
                # Its own `send_signal` waits for a child that has just ended, and asyncio then
                # finds none and reports exit 255.
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGINT)
        out, err = await process.communicate(b"")
        text, code = (out + err).decode(), process.returncode
        if code == -signal.SIGINT:
            code = 130  # it came while the interpreter ended; shells report it so
        self.done[f"publish: exit {code}"] += 1
        self._note(tags, code, text)
        return number

    def _note(self, tags: list[str], code: int | None, text: str) -> None:
        """Note what a pipe reported of its lines."""
        found = STORED.search(text)
        stored, unknown = (
            (int((each or "0").replace(",", "")) for each in found.groups()) if found else (0, 0)
        )
        if "Traceback" in text or code not in (0, 3, 4, 130) or (code == 0 and stored != len(tags)):
            self.wrong[f"publish: exit {code}, {len(tags)} lines: {text[-300:]}"] += 1
        known = stored + unknown
        self.calls.update(dict.fromkeys(tags[:stored], "stored"))
        self.calls.update(dict.fromkeys(tags[stored:known], "cancelled"))
        self.calls.update(dict.fromkeys(tags[known:], "refused"))

    async def reader(self, name: str, over_http: bool, **options: Any) -> None:
        """Note every line; it is started again only if it found no daemon at first."""
        consumer = ("--consumer", name) if "consumer" in options else ()
        while not self.over:
            process = await self._command(
                "subscribe", ">", "--from", "earliest", "--json", *consumer
            )
            assert process.stdout is not None
            assert process.stderr is not None
            lines = 0
            while line := await process.stdout.readline():
                lines += 1
                record = json.loads(line)
                self.seen[name].append((record["offset"], record["text"]))
                if self.over:
                    process.kill()
                    return
            said = (await process.stderr.read()).decode()
            if lines or await process.wait() != 3:
                self.wrong[f"subscribe: exit {process.returncode}: {said[-300:]}"] += 1
                return


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("loop", choices=("asyncio", "uvloop", "twisted", "cli"))
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--publishes", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    kind = CommandChaos if asked.loop == "cli" else Chaos
    chaos = kind(OnTwisted if asked.loop == "twisted" else OnAsyncio, asked.seed)

    def report() -> int:
        wrong = {what: count for what, count in chaos.wrong.items() if count}
        print(json.dumps({"done": chaos.done, "errors": chaos.errors, "wrong": wrong}, indent=1))
        return 1 if wrong else 0

    try:
        if asked.loop == "twisted":
            task.react(
                lambda _: defer.Deferred.fromCoroutine(
                    chaos.run(asked.seconds, asked.publishes)
                ).addCallback(lambda _: sys.exit(report()))
            )
        if asked.loop == "uvloop":
            import uvloop

            uvloop.run(chaos.run(asked.seconds, asked.publishes))
        else:
            asyncio.run(chaos.run(asked.seconds, asked.publishes))
        return report()
    finally:
        chaos.daemon.close()


if __name__ == "__main__":
    sys.exit(main())
