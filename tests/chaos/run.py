"""One campaign: a topology, traffic, faults, and the verdict."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random

from linkd.drill.testbed import DrillAuthority, SteppedClock, faketime
from tests.chaos.acts import Act, Plan, script
from tests.chaos.checker import Held, judge, read_held, uncounted
from tests.chaos.crowds import route_strangers
from tests.chaos.faults import DISK, HUB_NAME, RENEWED_SECONDS, Edge, Scene
from tests.chaos.links import Links
from tests.chaos.perform import perform
from tests.chaos.report import AGAIN_SECONDS, BACK_SECONDS, BOUNDS, Report
from tests.chaos.sampler import Sampler
from tests.chaos.stage import Stage
from tests.chaos.traffic import Audit, Publisher
from tests.support.daemon import Daemon, listen, peer
from tests.support.lab import Lab, LabHost

SETTLE_SECONDS = 120.0
RESERVE_SECONDS = 40.0
"""Kept for settling and judging where a campaign has to be over at a given time."""

MOST_TRACED = 20
"""Lines of a traceback that are kept."""

MOST_UNCOUNTED = 3
"""Of a daemon's samples that don't fit its log so many are named: the others follow from them."""

QUIET_SECONDS = 5.0
"""The named consumer has come to the end when nothing new reaches it for so long."""

SMALL = (
    "[log]\nmax_bytes = 16777216\nsegment_bytes = 1048576\nmemory_bytes = 1048576\n"
    'when_full = "reject"\n'
)
"""The smallest log that there can be."""

TAKES = 'send = ["down.>", "up.>"]\nreceive = ["up.>"]\n'
GIVES = 'send = ["up.>"]\nreceive = ["down.>", "up.>"]\n'
ALL = 'send = ["down.>", "up.>"]\nreceive = ["down.>", "up.>"]\n'
Say = Callable[[str], None]


class Campaign(Stage):
    """Runs a plan; a context that ends everything."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan

    def _build(self, folder: Path, lab: Lab) -> None:
        """Build the topology and start all daemons."""
        names = [f"edge-{number + 1}" for number in range(self.plan.edges)]
        hosts = {name: lab.host(name) for name in ("hub", *names)}
        authority = DrillAuthority(folder) if self.plan.flavour == "tls" else None
        self._clocks = self._make_clocks(folder, list(hosts))
        daemons = {name: self._daemon(name, hosts[name]) for name in hosts}
        links = self._links(daemons, hosts, authority)
        for name in names:
            hosts[name].names({HUB_NAME: hosts["hub"].address})
        tight = self.plan.flavour == "tight"
        small = "hub" if tight else Random(self.plan.seed).choice(list(hosts))
        state = daemons[small].directory / "state"
        state.mkdir(0o700)
        hosts[small].sh(f"mount -t tmpfs -o size={DISK},mode=700 tmpfs '{state}'")
        audit = Audit(daemons["hub"], "up.>")
        self._stack.callback(audit.kill)
        edges = [Edge(name, hosts[name], daemons[name]) for name in names]
        self.scene = Scene(
            lab,
            hosts["hub"],
            daemons["hub"],
            edges,
            audit,
            self._clocks,
            Random(self.plan.seed),
            (daemons[small], hosts[small]),
            links,
            route_strangers(lab),
            authority,
        )
        for daemon in self.scene.daemons():
            daemon.start(60.0)
        for edge in edges:
            edge.daemon.wait_up("hub", 30.0)
        self.sampler = Sampler(self.scene.daemons())
        self._stack.callback(self.sampler.end)

    def _links(
        self,
        daemons: dict[str, Daemon],
        hosts: dict[str, LabHost],
        authority: DrillAuthority | None,
    ) -> Links:
        """Return what makes the configurations, and make them."""
        names = [name for name in daemons if name != "hub"]
        address = hosts["hub"].address
        listener, url = listen(), f"ws://{HUB_NAME}:9443/link"
        encrypted = "insecure = true\n"
        if authority is not None:
            certificate, key = authority.issue(address, RENEWED_SECONDS)
            listener = listener.replace(
                encrypted, f'certificate = "{certificate}"\nkey = "{key}"\n'
            )
            url, encrypted = f"wss://{address}:9443/link", f'ca = "{authority.file}"\n'
        heads = {"hub": listener, **dict.fromkeys(names, "")}
        if self.plan.flavour == "tight":
            heads |= dict.fromkeys(names, SMALL)
        links = Links(daemons, heads)
        for name in names:
            dial = peer("hub", url, extra=GIVES).replace("insecure = true\n", encrypted)
            links.add("hub", name, peer(name, extra=TAKES), dial)
        if self.plan.flavour == "paths":
            one, two = names[:2]
            links.heads[one] += listen()
            dial = peer(one, f"ws://{hosts[one].address}:9443/link", extra=ALL)
            links.add(one, two, peer(two, extra=ALL), dial)
        links.write()
        return links

    def _make_clocks(self, folder: Path, names: Sequence[str]) -> dict[str, SteppedClock]:
        """Make a wall clock for every daemon, where clocks are to be stepped."""
        if self.plan.flavour != "clocks":
            return {}
        if faketime() is None:
            raise RuntimeError("this machine lacks libfaketime")
        for name in names:
            (folder / name).mkdir()
        return {name: SteppedClock(folder / name) for name in names}

    def _daemon(self, name: str, host: LabHost) -> Daemon:
        """Make a daemon, not started."""
        clock = self._clocks.get(name)
        daemon = Daemon(name, "", host, clock.environment if clock is not None else None)
        self._stack.callback(daemon.close)
        if self.plan.broken:
            daemon.program = ("-m", "tests.chaos.broken", self.plan.broken)
        return daemon

    def run(
        self, acts: Sequence[Act] | None = None, until: float = 1e18, say: Say = print
    ) -> Report:
        """Make the faults under traffic, let all settle, and judge.

        Args:
            acts: What to do; None: what the plan says.
            until: Monotonic seconds at which it must be over.
            say: Told of each act.
        """
        report = Report(self.plan)
        began = report.began = time.monotonic()
        publishers = self._publishers()
        self.sampler.start()
        for publisher in publishers:
            publisher.start()
        self.scene.audit.start()
        for act in script(self.plan) if acts is None else acts:
            if time.monotonic() + act.pause + act.seconds > until - RESERVE_SECONDS:
                break
            time.sleep(act.pause)
            happened = perform(self.scene, act)
            report.happened += happened
            if act.settle:
                self._await_links(act, report)
            told = ", ".join(f"{h.kind} {h.whom} {h.ended - h.began:.1f} s" for h in happened)
            say(f"{act.number + 1}/{self.plan.faults} {told}")
        for publisher in publishers:
            publisher.end()
        self._settle(report)
        report.seconds = time.monotonic() - began
        self._judge(report, publishers)
        return report

    def _await_links(self, act: Act, report: Report) -> None:
        """Wait until all links are up at both ends; note how long that took."""
        began = time.monotonic()
        down = ["?"]
        while down and time.monotonic() < began + 2 * BACK_SECONDS:
            try:
                down = self._down()
            except OSError:  # too busy to answer
                down = ["no answer"]
            if down:
                time.sleep(0.05)
        took = time.monotonic() - began
        report.back.append((act.number, round(took, 3)))
        if took > BACK_SECONDS:
            report.overdue.append(f"after act {act.number} ({', '.join(act.kinds)}): {took:.1f} s")

    def _down(self) -> list[str]:
        """Return the links that are not up."""
        return [
            f"{daemon.name} to {link['peer']}"
            for daemon in self.scene.daemons()
            for link in daemon.status()["links"]
            if link["state"] != "up"
        ]

    def _publishers(self) -> list[Publisher]:
        """Make the publishers of every daemon."""
        made = []
        for daemon in self.scene.daemons():
            branch = "down" if daemon.name == "hub" else f"up.{daemon.name}"
            for number in range(self.plan.publishers):
                name = f"{daemon.name}/{number}"
                rng = Random(f"{self.plan.seed}/{name}")
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
        self.sampler.end()
        for daemon in scene.daemons():
            daemon.stop(20.0)
        hosts = {"hub": scene.hub_host, **{edge.name: edge.host for edge in scene.edges}}
        logs = {  # as their hosts see them: one has a disk of its own
            d.name: read_held(Path(f"/proc/{hosts[d.name].pid}/root{d.directory}/state"), d.name)
            for d in scene.daemons()
        }
        changed = max((happened.changed for happened in report.happened), default=-1.0)
        for publisher in publishers:
            ledger = publisher.ledger
            report.doubtful += sum(last - first for first, last in ledger.doubtful)
            report.refused += ledger.refused
            for name, found in logs.items():
                small = self._may_forget(name) and found.first > 1
                since = -1.0 if ledger.name.startswith(f"{name}/") else changed
                numbers = found.numbers.get(ledger.name, [])
                report.verdicts.append(judge(ledger, numbers, name, small, since))
                report.late_records += report.verdicts[-1].late
        for name, found in logs.items():
            if found.first == 1:
                wrong = uncounted(found.late, self.sampler.samples[name])
                report.uncounted += [f"{name}: {line}" for line in wrong[:MOST_UNCOUNTED]]
        report.consumed = len({row[1:] for run in scene.audit.runs for row in run})
        self._judge_consumer(report, logs["hub"], publishers, changed)
        self._judge_lines(report)
        report.overdue += [
            f"{h.whom} was linked again only {h.back} s after its start (act {h.act})"
            for h in report.happened
            if h.back is not None and h.back > AGAIN_SECONDS
        ]

    def _may_forget(self, name: str) -> bool:
        """Return whether a log may delete what nobody is owed: it is small, or its disk is."""
        small, _ = self.scene.small
        return name == small.name or (self.plan.flavour == "tight" and name != "hub")

    def _judge_consumer(
        self, report: Report, hub: Held, publishers: Sequence[Publisher], changed: float
    ) -> None:
        """Judge what the named consumer missed or got out of order."""
        got: dict[str, list[int]] = {}
        highest = 0
        for run in self.scene.audit.runs:
            offsets = [row[0] for row in run]
            if any(b <= a for a, b in itertools.pairwise(offsets)):
                report.audit.append("a run of the consumer was out of order")
            for offset, name, number in run:
                if offset > highest:
                    highest = offset
                    got.setdefault(name, []).append(number)
        for publisher in publishers:
            name = publisher.ledger.name
            if name.startswith("hub/"):
                continue
            mine, numbers = got.get(name, []), hub.numbers.get(name, [])
            if hub.first > 1:  # the log has forgotten what the consumer and the peers have
                report.verdicts.append(
                    judge(publisher.ledger, mine, "the consumer", changed=changed)
                )
                mine = mine[max(0, len(mine) - len(numbers)) :]
            if mine != numbers:
                where = "the end" if mine == numbers[: len(mine)] else "the midst"
                report.audit.append(
                    f"the consumer got {len(mine)} of {len(numbers)} records of {name}: some"
                    f" are missing at {where}"
                )

    def _judge_lines(self, report: Report) -> None:
        """Hold what the daemons said against the bounds."""
        for daemon in self.scene.daemons():
            report.bugs += wrong_lines(daemon)
            for line in daemon.lines:
                fields = line.fields
                event = str(fields.get("event", ""))
                if event == "node.loop-lag":
                    late = f"{daemon.name} woke {fields.get('late_seconds')} s late"
                    report.late.append(f"{late}, at {line.at - report.began:.1f} s")
                reason, seconds = fields.get("reason"), fields.get("noticed_after_seconds")
                if fields.get("old") != "up" or reason not in BOUNDS or seconds is None:
                    continue
                disturbed = any(
                    daemon.name in h.disturbed and h.began - 1 < line.at < h.ended + 11
                    for h in report.happened
                )
                if disturbed:
                    continue
                report.noticed.append((daemon.name, reason, seconds))
                low, high = BOUNDS[reason]
                if not low <= seconds <= high + line.queued:
                    at = line.at - report.began
                    report.outside.append(
                        f"{daemon.name} noticed {reason} of {fields.get('peer')} after {seconds} s,"
                        f" at {at:.1f} s"
                    )


def wrong_lines(daemon: Daemon) -> Iterator[str]:
    """Return the bugs that a daemon has written down."""
    for number, line in enumerate(daemon.lines):
        fields = line.fields
        if fields.get("event") in ("node.internal-error", "library.error"):
            yield f"{daemon.name}: {fields}"[:500]
        elif "Traceback" in str(fields.get("text")):
            following = daemon.lines[max(0, number - 1) : number + MOST_TRACED]
            traced = [str(one.fields.get("text", "")) for one in following]
            yield f"{daemon.name}: {' / '.join(filter(None, traced))}"[:3000]


def main(plan: Plan, acts: Sequence[Act] | None = None, until: float = 1e18) -> Report:
    """Run a campaign and print how it goes."""

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    with Campaign(plan) as campaign:
        report = campaign.run(acts, until, say)
    print("\n".join(report.lines()), flush=True)
    return report
