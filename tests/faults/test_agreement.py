"""Status, events, outages, metrics and log agree with each other and with a clock outside."""

from __future__ import annotations

import contextlib
import itertools
import re
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

import pytest

from linkd.drill.testbed import Relay, free_port
from tests.conftest import CAMPAIGN
from tests.support import figures
from tests.support.daemon import Daemon, listen, peer

pytestmark = pytest.mark.timing

LINKS = 10
CUTS = 20 if CAMPAIGN else 2
WITHIN = 0.1
POLL = 0.02


class Seen(NamedTuple):
    """One outage as a clock outside saw it: monotonic seconds."""

    peer: str
    reason: str
    fell: float
    rose: float


class Poll:
    """Asks `/v1/status` all the time, and notes when each link was first seen in a state.

    Attributes:
        changes: Between which moments it began, the link, the state.
        longest_gap: Seconds between two answers: a shorter outage may have been missed.
    """

    def __init__(self, daemon: Daemon) -> None:
        self.changes: list[tuple[float, float, str, str]] = []
        self.longest_gap = 0.0
        self._daemon = daemon
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        known: dict[str, str] = {}
        last = time.monotonic()
        while not self._stopping.wait(POLL):
            asked = time.monotonic()
            with contextlib.suppress(OSError):
                links = self._daemon.status()["links"]
                answered = time.monotonic()
                self.longest_gap = max(self.longest_gap, answered - last)
                last = asked
                for link in links:
                    state, since = link["state"], link["since_seconds"]
                    if known.get(link["peer"]) != state:
                        known[link["peer"]] = state
                        span = (asked - since, answered - since)
                        self.changes.append((*span, link["peer"], state))

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(5)


@contextlib.contextmanager
def linked(count: int) -> Iterator[tuple[Daemon, list[Daemon], list[Relay]]]:
    """Start hubs that one edge dials, each over a relay of its own."""
    with contextlib.ExitStack() as stack:
        hubs, relays, config = [], [], ""
        for number in range(count):
            port = free_port()
            hubs.append(Daemon(f"hub-{number}", listen(port, "127.0.0.1") + peer("edge")))
            relays.append(stack.enter_context(Relay(("127.0.0.1", port))))
            config += peer(f"hub-{number}", f"ws://127.0.0.1:{relays[-1].port}/link")
            stack.enter_context(hubs[-1])
        edge = stack.enter_context(Daemon("edge", config))
        for hub in hubs:
            edge.wait_up(hub.name, 30.0)
        yield edge, hubs, relays


def histogram(text: str, name: str, peer_name: str) -> tuple[int, float]:
    """Return count and sum of one peer's histogram."""
    found = [
        re.search(rf'^{name}_{part}{{peer="{peer_name}"}} (\S+)$', text, re.MULTILINE)
        for part in ("count", "sum")
    ]
    assert found[0] is not None
    assert found[1] is not None
    return int(float(found[0][1])), float(found[1][1])


class Accounts:
    """What is told of the same changes, and how far the accounts are apart in seconds."""

    def __init__(self, edge: Daemon, poll: Poll) -> None:
        self.worst: dict[str, float] = {}
        self.total = self.falls = 0
        self._edge, self._poll = edge, poll
        self._offset = time.time() - time.monotonic()
        self._metrics = edge.call("GET", "/metrics")
        self._outages = edge.call("GET", "/v1/outages")["outages"]
        self._events = edge.call("GET", "/v1/events")["events"]

    def agree(self, name: str, one: float, other: float) -> None:
        """Note how far two figures for one thing are apart."""
        self.worst[name] = max(self.worst.get(name, 0.0), abs(one - other))

    def compare(self, name: str) -> None:
        """Compare all that is told of one link."""
        falls = list(self._edge.matching(peer=name, old="up"))
        rises = list(self._edge.matching(peer=name, event="link.up"))[1:]
        told = [one for one in self._outages if one["peer"] == name]
        assert len(falls) == len(rises) == len(told) == CUTS
        self.total += len(told)
        for fall, rise, outage in zip(falls, rises, told, strict=True):
            began = _unix(outage["began"]) - self._offset
            noticed, down = outage["noticed_after_seconds"], outage["down_seconds"]
            assert outage["reason"] == fall.fields["reason"]
            self.agree("outages", began + noticed, fall.at)
            self.agree("outages", began + down, rise.at)
            self.agree("log's fields", fall.fields["noticed_after_seconds"], noticed)
            self.agree("log's fields", rise.fields["outage_seconds"], down)
            self._compare_change(name, fall.fields["new"], fall.at)
            self._compare_change(name, "up", rise.at)
        for metric, key in (("noticed_after", "noticed_after_seconds"), ("down", "down_seconds")):
            count, summed = histogram(self._metrics, f"linkd_link_{metric}_seconds", name)
            assert count == CUTS
            self.agree("metrics", summed, sum(one[key] for one in told))

    def _compare_change(self, name: str, state: str, at: float) -> None:
        """Compare when a change is said to have happened."""
        told_at = [
            _unix(one["time"]) - self._offset
            for one in self._events
            if (one["peer"], one["new"]) == (name, state)
        ]
        self.agree("events", at, _nearest(at, told_at))

    def compare_status(self) -> None:
        """Compare since when a link was seen to be up with the events, or down with the outages.

        Each outage that lasted longer than it took to ask again was seen, and its end.
        """
        for name in {one["peer"] for one in self._outages}:
            changes = [state for *_, peer, state in self._poll.changes if peer == name]
            states = ["up", *changes]  # as it was before anyone asked
            falls = sum(pair[0] == "up" != pair[1] for pair in itertools.pairwise(states))
            shown = [
                one["down_seconds"] - one["noticed_after_seconds"]
                for one in self._outages
                if one["peer"] == name
            ]
            lasting = [seconds for seconds in shown if seconds > self._poll.longest_gap]
            assert falls >= len(lasting), (states, shown)
            assert states[-1] == "up"
            self.falls += falls
        for first, last, name, state in self._poll.changes:
            times = [
                _unix(one["time"]) - self._offset
                for one in self._events
                if (one["peer"], one["new"]) == (name, "up")
            ]
            if state != "up":
                mine = [one for one in self._outages if one["peer"] == name]
                times = [_unix(one["began"]) - self._offset for one in mine]
            at = _nearest(first, times)
            # It was asked for at one moment and answered at another.
            self.agree("status", at, min(max(at, first), last))


def cut_all(
    edge: Daemon, hubs: list[Daemon], relays: list[Relay], freeze: bool
) -> list[tuple[str, float]]:
    """Cut each link, every second one by a freeze where that is wanted, and wait until all are
    back; return when each reset was made (monotonic).
    """
    began = time.monotonic()
    resets = []
    for number, (hub, relay) in enumerate(zip(hubs, relays, strict=True)):
        if freeze and number % 2:
            relay.block("both")
        else:
            relay.order(reset=True)
            resets.append((hub.name, time.monotonic()))
        time.sleep(0.15)
    for number, hub in enumerate(hubs):
        edge.wait_line(14.0, began, peer=hub.name, old="up")
        if freeze and number % 2:
            relays[number].heal()
    for hub in hubs:
        edge.wait_line(20.0, began, peer=hub.name, event="link.up")
    time.sleep(0.3)
    return resets


def test_twenty_cuts_told_alike_by_all() -> None:
    """Ten links at once, cut by a reset or a freeze: every account of each outage is one."""
    with linked(LINKS) as (edge, hubs, relays):
        poll = Poll(edge)
        resets = [
            reset for turn in range(CUTS) for reset in cut_all(edge, hubs, relays, turn % 2 == 0)
        ]
        poll.stop()
        accounts = Accounts(edge, poll)
        for hub in hubs:
            accounts.compare(hub.name)
        accounts.compare_status()
        for name, at in resets:
            falls = [line.at for line in edge.matching(peer=name, old="up")]
            accounts.agree("clock outside", at, _nearest(at, falls))
    worst = accounts.worst
    figures.tell(
        f"{accounts.total} outages, told alike to within: "
        + ", ".join(f"{name} {seconds * 1000:.0f} ms" for name, seconds in worst.items())
    )
    assert accounts.total >= 20
    assert accounts.falls >= LINKS // 2, "not even each freeze was seen"
    assert max(worst.values()) <= WITHIN, worst


def _nearest(at: float, times: list[float]) -> float:
    """Return which of some times is the nearest."""
    return min(times, key=lambda one: abs(one - at))


def _unix(text: str) -> float:
    """Return Unix seconds of a time as linkd writes it."""
    return datetime.fromisoformat(text).timestamp()
