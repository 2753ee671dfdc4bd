"""Steady hours: a link on a bad line, or at full load, under constant traffic, must never drop.

A false drop is a link that either end tells to have left `up` while the line carries: every one
counts, whatever the reason, from the moment when both ends are up until all records have arrived.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.line import NEAR, Line, Shape
from tests.chaos.stage import Stage
from tests.support.daemon import Daemon, listen, peer
from tests.support.lab import Lab, python

DRAIN_SECONDS = 240.0
SAMPLE_SECONDS = 1.0
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Kind:
    """One kind of steady hour.

    Args:
        told: What it is, for people.
        shape: Of a line carried packet by packet; None: the kernel's own path.
        loss: Dropped by iptables in the middle, each way.
        rate: Records a second of each end; 0: as fast as they are taken.
        size: Bytes of a record.
        backlog: Bytes owed above which an end pauses; it goes on below half of it.
    """

    told: str
    shape: Shape | None = None
    loss: float = 0.0
    rate: float = 100.0
    size: int = 200
    backlog: int = 64 << 20


KINDS = {
    "full": Kind("full load: both ends publish and read as fast as they can", rate=0.0, size=100),
    "slow": Kind(
        "a line of 512 kbit/s each way with a queue of 250 ms, always full",
        Shape(rate=64_000.0, buffer=0.25, delay=0.02),
        rate=100.0,
        size=2000,
        backlog=1 << 20,
    ),
    "loss": Kind("5 % of all packets lost each way", loss=0.05),
    "delay": Kind("300 ms of delay each way, ± 100 ms of jitter", Shape(delay=0.3, jitter=0.1)),
}
LOG = '[log]\nmax_bytes = 536870912\nsegment_bytes = 33554432\nwhen_full = "reject"\n'
BOTH = 'send = ["a.>", "b.>"]\nreceive = ["a.>", "b.>"]\n'


@dataclass
class Result:
    """What came of one steady time; times in seconds."""

    kind: str
    seconds: float = 0.0
    drops: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    published: int = 0
    arrived: int = 0
    lost: int = 0
    twice: int = 0
    out_of_order: int = 0
    refused: int = 0
    rtt: list[float] = field(default_factory=list)
    """Median, 99 %, greatest of the samples of both ends."""
    silence: float = 0.0
    """The greatest sampled."""
    machine_busy: float = 0.0
    """The share of all processors that was not idle."""
    daemons_busy: float = 0.0
    """Processors that the two daemons used."""
    late: float = 0.0
    """The worst that a daemon told to have woken late."""
    line: dict[str, float] = field(default_factory=dict)
    version: str = ""

    @property
    def good(self) -> bool:
        """Whether nothing dropped and every record arrived once, in order."""
        amiss = self.lost or self.twice or self.out_of_order or self.drops or self.wrong
        return not amiss and self.published > 0

    def lines(self) -> list[str]:
        """Return it for people."""
        rtt = ", ".join(f"{1000 * value:.1f}" for value in self.rtt)
        said = [
            f"{self.kind}: {KINDS[self.kind].told}; {self.seconds:.0f} s",
            f"  {len(self.drops)} drops; {self.published} records published, {self.arrived} arrived"
            f" ({self.refused} refused for want of room and tried again)",
            f"  lost {self.lost}, twice {self.twice}, out of order {self.out_of_order}",
            f"  round trip ms (median, 99 %, max): {rtt}; longest silence {self.silence:.2f} s",
            f"  machine {self.machine_busy:.0%} busy, the daemons {self.daemons_busy:.2f} cores;"
            f" a daemon woke {self.late:.2f} s late at most; line {self.line}",
        ]
        said += [f"  DROP {drop}" for drop in self.drops]
        said += [f"  WRONG {wrong}" for wrong in self.wrong]
        return [*said, f"  {'GOOD' if self.good else 'NOT GOOD'}"]


class Traffic:
    """The process that publishes and reads at one end."""

    def __init__(self, daemon: Daemon, kind: Kind, ours: str, theirs: str) -> None:
        arguments = (str(daemon.socket), ours, theirs, str(kind.rate), str(kind.size))
        self._process = subprocess.Popen(
            python("-m", "tests.chaos.flow", *arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self.counts: dict[str, Any] = {"published": {}, "refused": 0, "arrived": {}}
        self._paused = False
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(ValueError):  # closed
            for line in self._process.stdout:
                self.counts = json.loads(line)

    @property
    def running(self) -> bool:
        """Whether it is there."""
        return self._process.poll() is None

    def tell(self, order: str) -> None:
        """Give an order."""
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.write(order.encode() + b"\n")
            self._process.stdin.flush()

    def bound(self, backlog: int, most: int) -> None:
        """Pause where more is owed than may be, and go on where less than half of it is."""
        if backlog > most and not self._paused:
            self._paused = True
            self.tell("pause")
        elif backlog < most / 2 and self._paused:
            self._paused = False
            self.tell("go")

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait(5)
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()


class Steady(Stage):
    """One steady time: two hosts, the line, two daemons, traffic; a context that ends all."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.kind = name, KINDS[name]
        self._rtts: list[float] = []
        self.result = Result(name)

    def _build(self, folder: Path, lab: Lab) -> None:
        """Build it and wait until the link is up at both ends."""
        hub_host, edge_host = lab.host("hub"), lab.host("edge")
        address, self.line = hub_host.address, None
        if self.kind.shape is not None:
            self.line = self._stack.enter_context(Line(hub_host, edge_host, self.kind.shape))
            address = NEAR
        self.hub = Daemon("hub", LOG + listen() + peer("edge", extra=BOTH), hub_host)
        dial = peer("hub", f"ws://{address}:9443/link", extra=BOTH)
        self.edge = Daemon("edge", LOG + dial, edge_host)
        for daemon in self.daemons:
            self._stack.callback(daemon.close)
        for daemon in self.daemons:
            daemon.start(60.0)
        for daemon, other in self.ends:
            daemon.wait_up(other, 60.0)
        if self.kind.loss:
            self._stack.enter_context(lab.loss(edge_host, hub_host, self.kind.loss))

    @property
    def daemons(self) -> tuple[Daemon, Daemon]:
        """Both daemons."""
        return self.hub, self.edge

    @property
    def ends(self) -> tuple[tuple[Daemon, str], tuple[Daemon, str]]:
        """Both daemons, each with the name of its peer."""
        return (self.hub, "edge"), (self.edge, "hub")

    def run(self, seconds: float, stop: threading.Event) -> Result:
        """Let traffic flow for so long, or until told to stop; drain, and judge."""
        result = self.result
        began = time.monotonic()
        generations = self._generations()
        result.version = str(self.hub.status()["version"])
        machine, own = _machine_ticks(), self._daemon_ticks()
        flows = [self._traffic(*end) for end in ((self.hub, "a", "b"), (self.edge, "b", "a"))]
        while time.monotonic() < began + seconds and not stop.wait(SAMPLE_SECONDS):
            self._sample(flows)
        result.seconds = time.monotonic() - began
        busy, total = _machine_ticks()
        result.machine_busy = (busy - machine[0]) / max(1, total - machine[1])
        result.daemons_busy = (self._daemon_ticks() - own) / _TICKS / result.seconds
        self._drain(flows)
        if self.line is not None:
            result.line = self.line.order()
        self._judge(flows, began, generations)
        return result

    def _traffic(self, daemon: Daemon, ours: str, theirs: str) -> Traffic:
        traffic = Traffic(daemon, self.kind, ours, theirs)
        self._stack.callback(traffic.close)
        return traffic

    def _sample(self, flows: list[Traffic]) -> None:
        """Look at both ends; keep what they owe within bounds."""
        for (daemon, other), flow in zip(self.ends, flows, strict=True):
            try:
                link = daemon.link(other)
            except OSError:  # busy for longer than 5 s: the daemon's own lines tell whether it was
                continue
            if link["rtt_seconds"] is not None:
                self._rtts.append(link["rtt_seconds"])
            self.result.silence = max(self.result.silence, link["silence_seconds"] or 0.0)
            flow.bound(link["backlog_bytes"], self.kind.backlog)

    def _drain(self, flows: list[Traffic]) -> None:
        """Publish no more, and wait until all has arrived."""
        for flow in flows:
            flow.tell("stop")
        until = time.monotonic() + DRAIN_SECONDS
        time.sleep(3.0)
        while time.monotonic() < until and any(flow.running for flow in flows):
            published, arrived = _sums(flows)
            if published == arrived:
                time.sleep(3.0)  # what would come twice comes now
                return
            time.sleep(0.5)

    def _judge(self, flows: list[Traffic], began: float, generations: list[object]) -> None:
        result = self.result
        result.published, result.arrived = _sums(flows)
        for one, other in ((flows[0], flows[1]), (flows[1], flows[0])):
            result.refused += one.counts["refused"]
            if not one.running:
                result.wrong.append("the traffic of one end has ended")
            for channel, count in one.counts["published"].items():
                top, missing, twice, late = other.counts["arrived"].get(channel, [0, 0, 0, 0])
                result.lost += missing + max(0, count - top)
                result.twice += twice
                result.out_of_order += late
        for daemon in self.daemons:
            for line in tuple(daemon.lines):
                self._judge_line(daemon, line.at - began, line.fields)
            if not daemon.running:
                result.wrong.append(f"{daemon.name} has ended")
        if not result.drops and self._generations() != generations:
            result.drops.append("a connection is another one than in the beginning")
        result.rtt = quantiles(self._rtts)

    def _judge_line(self, daemon: Daemon, at: float, fields: dict[str, Any]) -> None:
        """Hold one line of a daemon against what must not be."""
        event = str(fields.get("event", ""))
        if event == "node.loop-lag":
            self.result.late = max(self.result.late, float(fields.get("late_seconds") or 0.0))
        if fields.get("old") == "up":
            said = json.dumps({k: v for k, v in fields.items() if k not in ("time", "old")})
            self.result.drops.append(f"{daemon.name} at {at:.1f} s: {said}")
        if event in ("node.internal-error", "library.error") or "Traceback" in str(
            fields.get("text")
        ):
            self.result.wrong.append(f"{daemon.name} at {at:.1f} s: {fields}"[:500])

    def _generations(self) -> list[object]:
        return [daemon.link(other)["generation"] for daemon, other in self.ends]

    def _daemon_ticks(self) -> int:
        """Return the processor time of both daemons."""
        total = 0
        for daemon in self.daemons:
            words = Path(f"/proc/{daemon.pid}/stat").read_text().rpartition(")")[2].split()
            total += int(words[11]) + int(words[12])
        return total


def _machine_ticks() -> tuple[int, int]:
    """Return the processors' busy and whole time."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def _sums(flows: list[Traffic]) -> tuple[int, int]:
    """Return how many records were published, and how many different ones have arrived."""
    published = sum(sum(flow.counts["published"].values()) for flow in flows)
    arrived = sum(
        top - missing for flow in flows for top, missing, *_ in flow.counts["arrived"].values()
    )
    return published, arrived


def quantiles(values: list[float]) -> list[float]:
    """Return the median, 99 % and the greatest; empty if there are no values."""
    found = sorted(values)
    if not found:
        return []
    return [found[len(found) // 2], found[min(len(found) - 1, len(found) * 99 // 100)], found[-1]]


def run_one(name: str, seconds: float, stop: threading.Event) -> Result:
    """Run one kind; what goes wrong with the lab itself is in the result."""
    try:
        with Steady(name) as steady:
            return steady.run(seconds, stop)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        return Result(name, wrong=[f"{type(error).__name__}: {error}"])


def run(
    names: list[str], seconds: float, stop: threading.Event, keep: Callable[[Result], None]
) -> Iterator[Result]:
    """Run kinds side by side; yield each result once all are there."""
    results: dict[str, Result] = {}

    def one(name: str) -> None:
        results[name] = run_one(name, seconds, stop)
        keep(results[name])

    threads = [threading.Thread(target=one, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(1.0)
    for name in names:
        yield results.get(name) or Result(name, wrong=["no result"])


def as_json(result: Result) -> dict[str, Any]:
    """Return a result for programs."""
    return {**asdict(result), "good": result.good}


if __name__ == "__main__":
    for said in run(sys.argv[1].split(","), float(sys.argv[2]), threading.Event(), lambda _: None):
        print("\n".join(said.lines()), flush=True)
