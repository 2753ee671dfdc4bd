"""One campaign: a topology, traffic, faults, and the verdict."""

from __future__ import annotations

import contextlib
import itertools
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from tests.campaign.checker import Verdict, judge, read_log
from tests.campaign.faults import FAULTS, Edge, Happened, Scene
from tests.campaign.traffic import Audit, Publisher
from tests.support.daemon import Clock, Daemon, listen, peer
from tests.support.lab import Lab
from tests.support.needs import faketime

BOUNDS = {"ping-timeout": (6.9, 7.2), "silence": (9.9, 10.2)}
SETTLE_SECONDS = 120.0
QUIET_SECONDS = 5.0
"""The named consumer has come to the end when nothing new reaches it for so long."""


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Args:
        seed: Of everything that is random.
        edges: 1 is a pair.
        faults: How many.
        publishers: At each daemon.
        rate: Records a second of each publisher.
        longest: Seconds that a fault lasts at most.
        clocks: Step wall clocks too. The library that does so makes every look at a clock dear: the
            daemons wake late, and their detection times are not judged.
    """

    seed: int
    edges: int = 1
    faults: int = 200
    publishers: int = 2
    rate: float = 400.0
    longest: float = 14.0
    clocks: bool = False


@dataclass
class Report:
    """What came of it."""

    plan: Plan
    seconds: float = 0.0
    happened: list[Happened] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    audit: list[str] = field(default_factory=list)
    consumed: int = 0
    doubtful: int = 0
    refused: int = 0
    noticed: list[tuple[str, str, float]] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    bugs: list[str] = field(default_factory=list)
    undrained: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    began: float = 0.0

    @property
    def good(self) -> bool:
        """Whether every promise was kept."""
        kept = all(verdict.good for verdict in self.verdicts)
        return kept and not (self.audit or self.outside or self.bugs or self.undrained)

    def published(self) -> int:
        """Return how many records were acknowledged, each counted once."""
        return sum({v.publisher: v.acked for v in self.verdicts}.values())

    def lines(self) -> list[str]:
        """Return it for people."""
        kinds = Counter(happened.kind for happened in self.happened)
        lost = sum(len(v.lost) for v in self.verdicts)
        twice = sum(len(v.twice) for v in self.verdicts)
        disorder = sum(v.out_of_order for v in self.verdicts)
        said = [
            f"seed {self.plan.seed}, {self.plan.edges} edge(s), {len(self.happened)} faults in"
            f" {self.seconds:.0f} s: "
            + ", ".join(f"{n} {kind}" for kind, n in kinds.most_common()),
            f"{self.published()} records acknowledged ({self.doubtful} in doubt, {self.refused}"
            f" refused), {self.consumed} read by the named consumer in spite of its deaths",
            f"lost {lost}, twice {twice}, out of order {disorder}",
        ]
        for reason, bound in BOUNDS.items():
            times = sorted(seconds for _, why, seconds in self.noticed if why == reason)
            if times:
                said.append(
                    f"{reason}: {len(times)} times, {times[0]:.3f} to {times[-1]:.3f} s, median"
                    f" {times[len(times) // 2]:.3f} s (bound {bound[0]} to {bound[1]} s)"
                )
        for what in ("audit", "outside", "bugs", "undrained"):
            said += [f"{what}: {line}" for line in getattr(self, what)]
        if not self.good:
            said += [f"late: {line}" for line in self.late]
        said.append("GOOD" if self.good else "NOT GOOD")
        return said


class Campaign:
    """Runs a plan; a context that ends everything."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.rng = Random(plan.seed)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Campaign:
        """Build the topology and start all daemons."""
        try:
            self._build()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End everything."""
        self._stack.close()

    def _build(self) -> None:
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="campaign-")))
        lab = self._stack.enter_context(Lab(folder))
        names = [f"edge-{number + 1}" for number in range(self.plan.edges)]
        hub_host = lab.host("hub")
        clocks = {}
        environments: dict[str, dict[str, str]] = {}
        if self.plan.clocks and faketime() is not None:
            for name in ("hub", *names):
                own = folder / name
                own.mkdir()
                clocks[name] = Clock(own)
                environments[name] = clocks[name].environment()
        takes = 'send = ["down.>", "up.>"]\nreceive = ["up.>"]\n'
        gives = 'send = ["up.>"]\nreceive = ["down.>", "up.>"]\n'
        hub_config = listen() + "".join(peer(name, extra=takes) for name in names)
        hub = Daemon("hub", hub_config, hub_host, environments.get("hub"))
        self._stack.callback(hub.close)
        edges = []
        dial = peer("hub", f"ws://{hub_host.address}:9443/link", extra=gives)
        for name in names:
            host = lab.host(name)
            daemon = Daemon(name, dial, host, environments.get(name))
            self._stack.callback(daemon.close)
            edges.append(Edge(name, host, daemon))
        audit = Audit(hub, "up.>")
        self._stack.callback(audit.kill)
        self.scene = Scene(lab, hub_host, hub, edges, audit, clocks, self.rng)
        for daemon in self.scene.daemons():
            daemon.start(60.0)
        for edge in edges:
            edge.daemon.wait_up("hub", 30.0)

    def run(self, say: Any = None) -> Report:
        """Make the faults under traffic, let all settle, and judge."""
        report = Report(self.plan)
        began = report.began = time.monotonic()
        publishers = self._publishers()
        for publisher in publishers:
            publisher.start()
        self.scene.audit.start()
        kinds = [kind for kind, (weight, _) in FAULTS.items() for _ in range(weight)]
        for number in range(self.plan.faults):
            kind = self.rng.choice(kinds)
            if kind == "clock" and not self.scene.clocks:
                continue
            time.sleep(self.rng.uniform(0.0, 2.0))
            happened = FAULTS[kind][1](self.scene, self.rng.uniform(0.1, self.plan.longest))
            report.happened.append(happened)
            if say is not None:
                say(
                    f"{number + 1}/{self.plan.faults} {happened.kind} {happened.whom}"
                    f" {happened.ended - happened.began:.1f} s"
                )
        for publisher in publishers:
            publisher.end()
        self._settle(report)
        report.seconds = time.monotonic() - began
        self._judge(report, publishers)
        return report

    def _publishers(self) -> list[Publisher]:
        """Make the publishers of every daemon."""
        made = []
        for daemon in self.scene.daemons():
            branch = "down" if daemon.name == "hub" else f"up.{daemon.name}"
            for number in range(self.plan.publishers):
                name = f"{daemon.name}/{number}"
                rng = Random(self.rng.getrandbits(64))
                channel = f"{branch}.{number}"
                made.append(Publisher(daemon, name, channel, rng, self.plan.rate))
        return made

    def _settle(self, report: Report) -> None:
        """Wait until everyone has everything."""
        until = time.monotonic() + SETTLE_SECONDS
        seen, quiet = 0, time.monotonic()
        waiting = ["?"]
        while waiting and time.monotonic() < until:
            time.sleep(0.5)
            waiting = []
            for daemon in self.scene.daemons():
                for link in daemon.status()["links"]:
                    if link["state"] != "up" or link["backlog_records"]:
                        waiting.append(f"{daemon.name} to {link['peer']}: {link}")
            if self.scene.audit.last > seen:
                seen, quiet = self.scene.audit.last, time.monotonic()
            if not waiting and time.monotonic() < quiet + QUIET_SECONDS:
                waiting = [f"the consumer has just come to offset {seen}"]
        report.undrained = waiting

    def _judge(self, report: Report, publishers: list[Publisher]) -> None:
        """Stop all daemons, read their logs, and hold them against what was published."""
        scene = self.scene
        scene.audit.kill()
        for daemon in scene.daemons():
            daemon.stop(20.0)
        logs = {d.name: read_log(d.directory / "state", d.name) for d in scene.daemons()}
        for publisher in publishers:
            ledger = publisher.ledger
            report.doubtful += sum(last - first for first, last in ledger.doubtful)
            report.refused += ledger.refused
            for name, found in logs.items():
                report.verdicts.append(judge(ledger, found.get(ledger.name, []), name))
        report.consumed = len({row[1:] for run in scene.audit.runs for row in run})
        report.audit = self._audit_faults(logs["hub"])
        self._judge_lines(report)

    def _audit_faults(self, hub: dict[str, list[int]]) -> list[str]:
        """Return what the named consumer missed or got out of order."""
        wrong = []
        got: dict[str, list[int]] = {}
        highest = 0
        for run in self.scene.audit.runs:
            offsets = [row[0] for row in run]
            if any(b <= a for a, b in itertools.pairwise(offsets)):
                wrong.append("a run of the consumer was out of order")
            for offset, publisher, number in run:
                if offset > highest:
                    highest = offset
                    got.setdefault(publisher, []).append(number)
        for publisher, numbers in hub.items():
            if publisher.startswith("hub/"):
                continue
            if got.get(publisher, []) != numbers:
                mine = got.get(publisher, [])
                where = "the end" if mine == numbers[: len(mine)] else "the midst"
                wrong.append(
                    f"the consumer got {len(mine)} of {len(numbers)} records of {publisher}: some"
                    f" are missing at {where}"
                )
        return wrong

    def _judge_lines(self, report: Report) -> None:
        """Hold what the daemons said against the bounds."""
        for daemon in self.scene.daemons():
            for line in daemon.lines:
                fields = line.fields
                event = str(fields.get("event", ""))
                if event == "node.late":
                    late = f"{daemon.name} woke {fields.get('late_seconds')} s late"
                    report.late.append(f"{late}, at {line.at - report.began:.1f} s")
                if event in ("node.bug", "library.error") or "Traceback" in str(fields.get("text")):
                    report.bugs.append(f"{daemon.name}: {fields}"[:500])
                reason, seconds = fields.get("reason"), fields.get("noticed_after_seconds")
                if fields.get("old") != "up" or reason not in BOUNDS or seconds is None:
                    continue
                disturbed = any(
                    daemon.name in h.disturbed and h.began - 11 < line.at < h.ended + 11
                    for h in report.happened
                )
                if disturbed:
                    continue
                report.noticed.append((daemon.name, reason, seconds))
                low, high = BOUNDS[reason]
                if not low <= seconds <= high and not self.plan.clocks:
                    at = line.at - report.began
                    report.outside.append(
                        f"{daemon.name} noticed {reason} of {fields.get('peer')} after {seconds} s,"
                        f" at {at:.1f} s"
                    )


def main(plan: Plan) -> Report:
    """Run a campaign and print how it goes."""
    with Campaign(plan) as campaign:
        report = campaign.run(lambda line: print(line, file=sys.stderr, flush=True))
    print("\n".join(report.lines()), flush=True)
    return report
