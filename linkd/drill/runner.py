"""Run drills on throw-away pairs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final, Literal

from linkd.client.errors import ClientError
from linkd.clock import wall
from linkd.drill.deadman import DrillFailed
from linkd.drill.expectations import Bounds, Expectation, judge
from linkd.drill.monitor import LinkMonitor, Publisher, Tally, arrived
from linkd.drill.report import Check, EndReport, Report, State
from linkd.drill.scenarios import Drill
from linkd.drill.testbed import DOWN_CHANNEL, UP_CHANNEL, Testbed, faketime
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


class Times:
    """When things happened, monotonic seconds.

    Attributes:
        began: The drill.
        fault: When the fault began.
        restored: When it ended.
    """

    def __init__(self) -> None:
        self.began = self.fault = self.restored = time.monotonic()
        self.stamp = now_text()


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
        return _skipped(drill, "libfaketime is not installed")
    progress("starting a pair")
    with Testbed(drill.setup, bounds, bare) as pair:
        if "namespaces" in drill.needs and not pair.network.namespaces:
            return _skipped(drill, f"needs network namespaces: {pair.bare}")
        return _Run(drill, bounds, progress, show, pair).run()


def _skipped(drill: Drill, why: str) -> Report:
    """Return the report of a drill that this machine can't do."""
    return Report(
        drill=drill.name,
        about=drill.about,
        began=now_text(),
        where="relay",
        verdict="skipped",
        why=why,
    )


class _Run:
    """The course of one drill on one pair: traffic, fault, restore, drain, count."""

    def __init__(
        self, drill: Drill, bounds: Bounds, progress: Progress, show: Show, pair: Testbed
    ) -> None:
        self._drill, self._bounds, self._progress, self._pair = drill, bounds, progress, pair
        self._show = show
        self._times = Times()
        self._watches = [LinkMonitor(end.name, end.daemon, end.other) for end in pair.nodes]
        hub, edge = pair.nodes
        self._publishers = [
            Publisher(edge.daemon.socket, UP_CHANNEL, "lab"),
            Publisher(hub.daemon.socket, DOWN_CHANNEL, "lab"),
        ]

    def run(self) -> Report:
        """Run it to its end."""
        threads: list[LinkMonitor | Publisher] = [*self._watches, *self._publishers]
        try:
            for thread in threads:
                thread.start()
            self._hold("traffic", time.monotonic() + WARM_SECONDS)
            self._show("before", self._pair)
            self._fault()
            self._show("during", self._pair)
            self._restore()
            self._hold("traffic goes on", time.monotonic() + COOL_SECONDS)
            for publisher in self._publishers:
                publisher.end()
            drained = self._drain()
            self._show("after", self._pair)
            return self._report(drained)
        finally:
            for thread in threads:
                thread.end()

    def _fault(self) -> None:
        """Inject the fault, and keep it for its time."""
        self._progress("making the fault")
        started = time.monotonic()
        self._drill.begin(self._pair)
        self._times.fault = time.monotonic()
        if self._drill.setup.certificate_seconds is not None or self._drill.name == "dns":
            self._times.fault = started
        until = time.monotonic() + self._drill.lasts(self._bounds)
        if self._drill.during is None:
            self._hold(f"fault: {self._drill.about}", until)
            return
        while time.monotonic() < until:
            self._progress(f"fault: {self._drill.about}, {until - time.monotonic():.0f} s left")
            self._drill.during(self._pair)

    def _restore(self) -> None:
        """Remove the fault, and wait until both ends are up, somewhat beyond their bound."""
        self._drill.restore(self._pair)
        self._times.restored = time.monotonic()
        expected = self._expected()
        until = self._times.restored + expected.back + GRACE_SECONDS
        while time.monotonic() < until:
            passed = time.monotonic() - self._times.restored
            self._progress(f"restored; waiting for the link, {passed:.1f} s")
            time.sleep(_POLL_SECONDS * 2)
            if all(watch.up for watch in self._watches):
                return

    def _expected(self) -> Expectation:
        lasted = self._times.restored - self._times.fault
        return self._drill.expects(self._bounds, lasted)

    def _hold(self, what: str, until: float) -> None:
        """Wait, and show it."""
        while (left := until - time.monotonic()) > 0:
            self._progress(f"{what}, {left:.0f} s left")
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
            self._progress(f"draining: {', '.join(owed) or 'done'}")
        took = time.monotonic() - began
        return Check(
            f"everything owed is delivered within {DRAIN_SECONDS:.0f} s",
            not owed,
            ", ".join(owed) or f"{took:.2f} s",
        )

    def _report(self, drained: Check) -> Report:
        """Count, judge, and return the report."""
        self._progress("counting")
        for watch in self._watches:
            watch.end()
        ends = [end_report(watch, self._times) for watch in self._watches]
        messages = self._messages()
        reasons = self._watches[1].reasons
        checks = judge(ends, reasons, messages, self._expected(), self._bounds)
        checks.append(drained)
        times = self._times
        return Report(
            drill=self._drill.name,
            about=self._drill.about,
            began=times.stamp,
            where="namespaces" if self._pair.network.namespaces else "relay",
            verdict="pass" if all(check.ok for check in checks) else "fail",
            why=f"no namespaces: {self._pair.bare}" if self._pair.bare else "",
            fault_began=round(times.fault - times.began, 3),
            fault_ended=round(times.restored - times.began, 3),
            ends=ends,
            messages=messages,
            checks=checks,
        )

    def _messages(self) -> dict[str, Tally]:
        """Return the tally of each publisher's messages at the other end."""
        hub, edge = self._pair.nodes
        up, down = self._publishers
        return {
            UP_CHANNEL: up.judge(arrived(hub.daemon.socket, UP_CHANNEL, "lab")),
            DOWN_CHANNEL: down.judge(arrived(edge.daemon.socket, DOWN_CHANNEL, "lab")),
        }


def end_report(watch: LinkMonitor, times: Times) -> EndReport:
    """Return the report of one end."""
    since = watch.up_since()
    back = None if since is None or since <= times.fault else max(0.0, since - times.restored)
    return EndReport(
        name=watch.name,
        role=watch.role,
        outages=watch.outages(),
        back_seconds=None if back is None else round(back, 3),
        up=watch.up,
        states=[
            State(
                span.state,
                round(max(0.0, span.began - times.began), 3),
                round(max(0.0, span.ended - times.began), 3),
            )
            for span in watch.spans
        ],
    )


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
            report = Report(
                drill=drill.name,
                about=drill.about,
                began=now_text(),
                where="relay" if bare else "namespaces",
                verdict="fail",
                why=f"it could not be carried out: {error}",
            )
        yield report
