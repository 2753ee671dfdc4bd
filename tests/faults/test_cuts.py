"""Paths that drop packets: who notices when, and how soon the link is back."""

from __future__ import annotations

import random
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest

from tests.conftest import CAMPAIGN
from tests.support import figures
from tests.support.daemon import Line
from tests.support.lab import Lab
from tests.support.star import SILENT, Edge, Star, down, up

pytestmark = [pytest.mark.lab, pytest.mark.slow]

LISTENER = (6.9, 7.1)
DIALER = (9.9, 10.1)
SLACK = 0.4
"""Seconds that a script and a line through a pipe may take, on a busy machine."""


class Cut(NamedTuple):
    """What one cut showed: seconds."""

    listener: float
    dialer: float
    back: float


def noticed(line: Line, bounds: tuple[float, float], cut: float) -> float:
    """Return after how long a silent link was given up, having checked it by our own clock too.

    What the daemon waited for a processor at that time is the machine's.
    """
    assert line.fields["reason"] in SILENT, line
    seconds = float(line.fields["noticed_after_seconds"])
    latest = bounds[1] + line.queued
    assert bounds[0] <= seconds <= latest, line
    assert bounds[0] - 5.0 - SLACK <= line.at - cut <= latest + SLACK, (line, line.at - cut)
    return seconds


def cut_and_restore(star: Star, edge: Edge, at_hub: bool, wait: float, down_for: float) -> Cut:
    """Cut one link after `wait` seconds by the script, restore it, and return what was seen."""
    time.sleep(wait)
    host, other = (star.host, edge.host) if at_hub else (edge.host, star.host)
    before = time.monotonic()
    host.drop(other.address)
    cut = time.monotonic()
    until = cut + down_for
    listener = noticed(down(star.hub, edge.name, before, 9.0), LISTENER, cut)
    if until - time.monotonic() > 3.0:
        dialer = noticed(down(edge.daemon, "hub", before, 12.0), DIALER, cut)
        time.sleep(max(0.0, until - time.monotonic()))
        host.restore(other.address)
        restored = time.monotonic()
    else:
        time.sleep(max(0.0, until - time.monotonic()))
        host.restore(other.address)
        restored = time.monotonic()
        line = down(edge.daemon, "hub", before, 12.0)
        if line.fields["reason"] == "closed":  # the listener's host has answered a probe
            assert line.at >= restored - SLACK, line
            dialer = float(line.fields["noticed_after_seconds"])
            assert dialer <= DIALER[1] + line.queued, line
        else:
            dialer = noticed(line, DIALER, cut)
    back = up(edge.daemon, "hub", restored - 0.5, 10.0)
    assert up(star.hub, edge.name, restored - 0.5, 1.0).at < back.at + 1.0
    return Cut(listener, dialer, max(0.0, back.at - restored))


def test_black_holes_at_any_moment_of_the_ping_cycle(lab: Lab) -> None:
    """Cut on either host; the path is back after 8 s or 30 s."""
    rounds = 5 if CAMPAIGN else 1
    chance = random.Random(CAMPAIGN or 2)
    seen: list[tuple[bool, float, Cut]] = []
    with Star(lab, 20) as star, ThreadPoolExecutor(20) as pool:
        for _ in range(rounds):
            futures = []
            for number, edge in enumerate(star.edges):
                at_hub, down_for = number % 2 == 0, (8.0, 30.0)[number // 2 % 2]
                wait = chance.uniform(0.0, 5.0)
                future = pool.submit(cut_and_restore, star, edge, at_hub, wait, down_for)
                futures.append((at_hub, down_for, future))
            seen += [(at_hub, down_for, future.result(90)) for at_hub, down_for, future in futures]
    assert len(seen) >= 20
    figures.tell(
        "black hole, noticed by the listener: " + figures.spread([c.listener for *_, c in seen])
    )
    figures.tell(
        "black hole, noticed by the dialer:   " + figures.spread([c.dialer for *_, c in seen])
    )
    for down_for in (8.0, 30.0):
        backs = [cut.back for _, length, cut in seen if length == down_for]
        figures.tell(f"back after {down_for:.0f} s: " + figures.spread(backs))
        assert statistics.median(backs) <= 1.2
        assert max(backs) <= 3.0


def one_way(star: Star, edge: Edge, at_hub: bool, direction: str) -> str:
    """Cut one direction, see both ends give the link up, restore, and say what was seen."""
    host, other = (star.host, edge.host) if at_hub else (edge.host, star.host)
    before = time.monotonic()
    host.drop(other.address, "--direction", direction)
    cut = time.monotonic()
    told = []
    for daemon, peer, bounds in (
        (star.hub, edge.name, LISTENER),
        (edge.daemon, "hub", DIALER),
    ):
        line = down(daemon, peer, before, 12.0)
        if line.fields["reason"] in SILENT:
            seconds = noticed(line, bounds, cut)
        else:
            assert line.fields["reason"] == "closed", line
            seconds = float(line.fields["noticed_after_seconds"])
            assert seconds <= bounds[1] + line.queued
        told.append(f"{line.fields['reason']} {seconds:.2f} s")
    host.restore(other.address)
    back = up(edge.daemon, "hub", time.monotonic() - 0.5, 10.0)
    assert back
    return f"only {direction} at the {'hub' if at_hub else 'edge'}: listener, dialer: " + ", ".join(
        told
    )


def test_one_way_cuts(lab: Lab) -> None:
    """A path that works one way only is dead for both."""
    cases = [(at_hub, direction) for at_hub in (True, False) for direction in ("in", "out")]
    with Star(lab, len(cases)) as star, ThreadPoolExecutor(len(cases)) as pool:
        futures = [
            pool.submit(one_way, star, edge, *case)
            for edge, case in zip(star.edges, cases, strict=True)
        ]
        for future in futures:
            figures.tell(future.result(60))


def test_a_frozen_peer_whose_kernel_answers(lab: Lab) -> None:
    """SIGSTOP of either end; on SIGCONT the session is taken over, and one link is there."""
    with Star(lab, 2) as star:
        first, second = star.edges
        frozen = time.monotonic()
        first.daemon.freeze()
        line = down(star.hub, first.name, frozen, 9.0)
        seconds = noticed(line, LISTENER, frozen)
        figures.tell(f"frozen dialer, noticed by the listener: {seconds:.2f} s")
        time.sleep(2.0)
        thawed = time.monotonic()
        first.daemon.thaw()
        back = up(star.hub, first.name, thawed, 5.0).at - thawed
        figures.tell(f"frozen dialer, back after {back:.2f} s")
        assert len([link for link in star.hub.status()["links"] if link["peer"] == first.name]) == 1
        assert star.hub.link(second.name)["state"] == "up"

        frozen = time.monotonic()
        star.hub.freeze()
        for edge in star.edges:
            seconds = noticed(down(edge.daemon, "hub", frozen, 12.0), DIALER, frozen)
            figures.tell(f"frozen listener, noticed by the dialer: {seconds:.2f} s")
        thawed = time.monotonic()
        star.hub.thaw()
        for edge in star.edges:
            back = up(edge.daemon, "hub", thawed, 8.0).at - thawed
            figures.tell(f"frozen listener, back after {back:.2f} s")
        time.sleep(1.0)
        for edge in star.edges:
            assert star.hub.link(edge.name)["state"] == "up"


def test_random_loss_drops_nothing(lab: Lab) -> None:
    """10 % each way: not one link is given up."""
    seconds = 300.0 if CAMPAIGN else 40.0
    with Star(lab, 5) as star:
        for edge in star.edges:
            lab.loss(star.host, edge.host, 0.1)
        time.sleep(seconds)
        assert star.drops() == []
        silences = [star.hub.link(edge.name)["silence_seconds"] for edge in star.edges]
        assert max(silences) < 7.0
    figures.tell(f"10 % loss each way, {len(star.edges)} links, {seconds:.0f} s: 0 dropped")
