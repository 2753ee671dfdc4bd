"""Run drills on throw-away pairs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final, Literal, Self

from linkd.client.errors import ClientError
from linkd.clock import wall
from linkd.drill.deadman import DrillFailed
from linkd.drill.monitor import LinkMonitor, Publisher, Span, Tally, received_numbers
from linkd.drill.report import Bounds, Check, EndReport, Report, Verdict, Where, judge
from linkd.drill.scenarios import Drill
from linkd.drill.testbed import DOWN_CHANNEL, UP_CHANNEL, Testbed, faketime, running_pair
from linkd.protocol.json import rfc3339

Progress = Callable[[str], None]
"""Shows progress: what goes on now, in a few words."""

Stage = Literal["before", "during", "after"]
Show = Callable[[Stage, Testbed], None]
"""Shows the pair at a stage of the fault: before it, at its end, and once both links are up."""

WARM_SECONDS: Final = 2.0
COOL_SECONDS: Final = 2.0
GRACE_SECONDS: Final = 10.0
DRAIN_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.05
_SAY_SECONDS: Final = 0.5


def now_text() -> str:
    """Return the time now, RFC 3339 in UTC."""
    return rfc3339(wall())


def show_nothing(stage: Stage, pair: Testbed) -> None:
    """Show nothing at any stage."""


def run(
    drill: Drill, bounds: Bounds, progress: Progress, bare: bool = False, show: Show = show_nothing
) -> Report:
    """Run one drill on a temporary pair, and return its report.

    Args:
        drill: What to do.
        bounds: The settings of the pair, and the bounds for the verdict.
        progress: Shows the progress.
        bare: Use no namespaces even if available.
        show: Called at each stage of the fault, while the pair runs.

    Raises:
        DrillFailed: The pair can't be made, or the fault can't be injected or removed.
    """
    if "libfaketime" in drill.needs and faketime() is None:
        return _not_run(drill, "relay", "skipped", "libfaketime is not installed")
    progress("starting a pair")
    with running_pair(drill.setup, bounds, bare) as pair:
        if "namespaces" in drill.needs and not pair.network.namespaces:
            return _not_run(drill, "relay", "skipped", f"needs network namespaces: {pair.bare}")
        return _Run(drill, bounds, progress, show, pair).run()


def _not_run(drill: Drill, where: Where, verdict: Verdict, why: str) -> Report:
    """Return the report of a drill that could not be carried out."""
    return Report(
        drill=drill.name,
        about=drill.about,
        began=now_text(),
        where=where,
        verdict=verdict,
        why=why,
    )


class Course:
    """A fault under observation; a context that runs monitors and publishers.

    Attributes:
        began: When it began, monotonic seconds.
        fault: When the fault began.
        restored: When the fault ended.
        ends: The reports of all known ends, once they were measured.

    Args:
        monitors: Watch the link, one for each known end.
        publishers: Publish meanwhile.
        progress: Shows the progress.
    """

    def __init__(
        self,
        monitors: Sequence[LinkMonitor],
        publishers: Sequence[Publisher],
        progress: Progress,
    ) -> None:
        self.began = self.fault = self.restored = time.monotonic()
        self._stamp = now_text()
        self.ends: list[EndReport] = []
        self.monitors, self.publishers, self.progress = monitors, publishers, progress

    def __enter__(self) -> Self:
        for monitor in self.monitors:
            monitor.start()
        for publisher in self.publishers:
            publisher.start()
        return self

    def __exit__(self, *_: object) -> None:
        for monitor in self.monitors:
            monitor.end()
        for publisher in self.publishers:
            publisher.end()

    @property
    def lasted(self) -> float:
        """How long the fault lasted, in seconds."""
        return self.restored - self.fault

    def wait_up(self, seconds: float) -> None:
        """Wait until all known ends are up, at most so long and somewhat longer."""
        until = self.restored + seconds + GRACE_SECONDS
        while (now := time.monotonic()) < until:
            self.progress(f"restored; waiting for the link, {now - self.restored:.1f} s")
            time.sleep(_POLL_SECONDS * 2)
            if all(monitor.up for monitor in self.monitors):
                return

    def report(
        self,
        name: str,
        about: str,
        where: Where,
        why: str,
        messages: dict[str, Tally],
        checks: Sequence[Check],
    ) -> Report:
        """Return the report.

        Args:
            name: The drill's.
            about: What was done.
            where: On what.
            why: A note.
            messages: The tallies by channel.
            checks: All of them.
        """
        return Report(
            drill=name,
            about=about,
            began=self._stamp,
            where=where,
            verdict="pass" if all(check.ok for check in checks) else "fail",
            why=why,
            fault_began=round(self.fault - self.began, 3),
            fault_ended=round(self.restored - self.began, 3),
            ends=self.ends,
            messages=messages,
            checks=list(checks),
        )

    def measure(self) -> list[EndReport]:
        """Return the reports of all known ends, as they are now."""
        self.ends = [self._end(monitor) for monitor in self.monitors]
        return self.ends

    def _end(self, monitor: LinkMonitor) -> EndReport:
        since = monitor.up_since()
        back = None if since is None or since <= self.fault else max(0.0, since - self.restored)
        return EndReport(
            name=monitor.name,
            role=monitor.role,
            outages=monitor.outages(),
            back_seconds=None if back is None else round(back, 3),
            up=monitor.up,
            states=[
                Span(span.state, self._since_began(span.began), self._since_began(span.ended))
                for span in monitor.spans
            ],
        )

    def _since_began(self, at: float) -> float:
        return round(max(0.0, at - self.began), 3)


class _Run(Course):
    """The course of one drill on one pair: traffic, fault, restore, drain, count."""

    def __init__(
        self, drill: Drill, bounds: Bounds, progress: Progress, show: Show, pair: Testbed
    ) -> None:
        self._drill, self._bounds, self._show, self._pair = drill, bounds, show, pair
        hub, edge = pair.nodes
        super().__init__(
            [LinkMonitor(node.name, node.daemon, node.other) for node in pair.nodes],
            [
                Publisher(edge.daemon.socket, UP_CHANNEL, "lab"),
                Publisher(hub.daemon.socket, DOWN_CHANNEL, "lab"),
            ],
            progress,
        )

    def run(self) -> Report:
        """Run it to its end."""
        with self:
            self._hold("traffic", time.monotonic() + WARM_SECONDS)
            self._show("before", self._pair)
            self._fault()
            self._show("during", self._pair)
            self._drill.restore(self._pair)
            self.restored = time.monotonic()
            expected = self._drill.expects(self._bounds, self.lasted)
            self.wait_up(expected.back)
            self._hold("traffic goes on", time.monotonic() + COOL_SECONDS)
            for publisher in self.publishers:
                publisher.end()
            drained = self._drain()
            self._show("after", self._pair)
            self.progress("counting")
            for monitor in self.monitors:
                monitor.end()
            ends, messages, reasons = self.measure(), self._messages(), self.monitors[1].reasons
            checks = judge(ends, reasons, messages, expected, self._bounds)
            return self.report(
                self._drill.name,
                self._drill.about,
                "namespaces" if self._pair.network.namespaces else "relay",
                f"no namespaces: {self._pair.bare}" if self._pair.bare else "",
                messages,
                [*checks, drained],
            )

    def _fault(self) -> None:
        """Inject the fault, and keep it for its time."""
        self.progress("making the fault")
        started = time.monotonic()
        self._drill.begin(self._pair)
        self.fault = time.monotonic()
        if self._drill.setup.tls or self._drill.name == "dns":
            self.fault = started
        until = time.monotonic() + self._drill.lasts(self._bounds)
        if self._drill.during is None:
            self._hold(f"fault: {self._drill.about}", until)
            return
        while time.monotonic() < until:
            self.progress(f"fault: {self._drill.about}, {until - time.monotonic():.0f} s left")
            self._drill.during(self._pair)

    def _hold(self, what: str, until: float) -> None:
        """Wait, and show it."""
        while (left := until - time.monotonic()) > 0:
            self.progress(f"{what}, {left:.0f} s left")
            time.sleep(min(left, _SAY_SECONDS))

    def _drain(self) -> Check:
        """Wait until neither end owes the other anything."""
        began = time.monotonic()
        owed: list[str] = ["not known"]
        while owed and time.monotonic() < began + DRAIN_SECONDS:
            time.sleep(_POLL_SECONDS)
            owed = []
            for end in self._pair.nodes:
                with contextlib.suppress(ClientError):
                    link = end.daemon.link(end.other)
                    if link is not None and link.backlog_records == 0 and link.state == "up":
                        continue
                    owed.append(f"{end.name} owes {link.backlog_records if link else 'all'}")
                    continue
                owed.append(f"{end.name} does not answer")
            self.progress(f"draining: {', '.join(owed) or 'done'}")
        took = time.monotonic() - began
        return Check(
            f"everything owed is delivered within {DRAIN_SECONDS:.0f} s",
            not owed,
            ", ".join(owed) or f"{took:.2f} s",
        )

    def _messages(self) -> dict[str, Tally]:
        """Return the tally of each publisher's messages at the other end."""
        hub, edge = self._pair.nodes
        up, down = self.publishers
        return {
            UP_CHANNEL: up.judge(received_numbers(hub.daemon.socket, UP_CHANNEL, "lab")),
            DOWN_CHANNEL: down.judge(received_numbers(edge.daemon.socket, DOWN_CHANNEL, "lab")),
        }


def run_all(
    drills: Sequence[Drill],
    bounds: Bounds,
    progress: Callable[[str, str], None],
    bare: bool = False,
    show: Show = show_nothing,
) -> Iterator[Report]:
    """Yield the report of each drill as it ends; one that could not be carried out has failed.

    Args:
        drills: What to run, one after the other.
        bounds: For all.
        progress: Shows the progress: the drill's name, and its step.
        bare: Use no namespaces.
        show: Called at each stage of each fault.
    """
    for drill in drills:
        try:
            report = run(drill, bounds, partial(progress, drill.name), bare, show)
        except (DrillFailed, ClientError, OSError) as error:
            where: Where = "relay" if bare else "namespaces"
            report = _not_run(drill, where, "fail", f"it could not be carried out: {error}")
        yield report
