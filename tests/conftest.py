"""Fixtures for all tests: the lab, hypothesis profiles, and that no test leaves a timer behind."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from linkd.drill.testbed import Namespace
from tests.support import figures
from tests.support.daemon import Daemon
from tests.support.lab import Lab
from tests.support.needs import need

hypothesis.settings.register_profile(
    "ci", derandomize=True, deadline=None, database=None, print_blob=True
)
hypothesis.settings.register_profile(
    "campaign", max_examples=10_000, deadline=None, database=None, print_blob=True
)
CAMPAIGN = os.environ.get("LINKD_CAMPAIGN") == "1"
hypothesis.settings.load_profile("campaign" if CAMPAIGN else "ci")


# Started by nohup, or in the background of a script, a process ignores SIGHUP or SIGINT, and so
# does all that it starts. The tests go on ignoring a hang-up; what they start must not.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


if os.environ.get("LINKD_LOOP") == "uvloop":  # scripts/test-clients: all that asyncio runs here
    import uvloop

    uvloop.install()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """Return a lab without hosts; all its hosts end with the test."""
    need("iptables in a network namespace")
    with Lab(tmp_path) as made:
        yield made


@pytest.fixture
def daemons() -> Iterator[Callable[..., Daemon]]:
    """Return a function that starts a daemon (arguments as `Daemon`); all end with the test."""
    started: list[Daemon] = []

    def start(
        name: str,
        config: str,
        host: Namespace | None = None,
        ready_within: float | None = 20.0,
        **rest: object,
    ) -> Daemon:
        daemon = Daemon(name, config, host, **rest)  # type: ignore[arg-type]
        started.append(daemon)
        daemon.start(ready_within)
        return daemon

    yield start
    for daemon in reversed(started):
        daemon.close()


@pytest.fixture
def clean_reactor() -> Iterator[None]:
    """Fail the test if it leaves a delayed call, a reader or a writer on the reactor.

    For tests that run on the real reactor: `pytestmark = pytest.mark.usefixtures("clean_reactor")`.
    """
    from twisted.internet import reactor as installed  # only where a test runs on it

    reactor: Any = installed

    def held() -> set[object]:
        return {*reactor.getDelayedCalls(), *reactor.getReaders(), *reactor.getWriters()}

    before = held()
    yield
    left = [str(thing) for thing in held() - before]
    assert not left, f"left on the reactor: {left}"


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Send what a worker of pytest-xdist has measured to the process that reports."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["figures"] = figures.TOLD


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take what a worker has measured."""
    figures.TOLD.extend(getattr(node, "workeroutput", {}).get("figures", ()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print each reason of skips once, with how many tests it concerns, and what was measured."""
    skipped = [report.longrepr for report in terminalreporter.stats.get("skipped", ())]
    reasons = Counter(found[2] if isinstance(found, tuple) else str(found) for found in skipped)
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"SKIPPED {count:>4}  {reason.removeprefix('Skipped: ')}")
    if figures.TOLD:
        terminalreporter.section("measured")
        for line in figures.TOLD:
            terminalreporter.write_line(line)
