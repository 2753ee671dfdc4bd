"""Status, events, outages, metrics and log agree with each other and with a clock outside."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

from tests.conftest import CAMPAIGN
from tests.support import figures
from tests.support.daemon import Daemon, listen, peer
from tests.support.pairs import free_port
from tests.support.relay import Relay

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
    """Asks `/v1/status` all the time, and notes when each link was first seen in a state."""

    def __init__(self, daemon: Daemon) -> None:
        self.changes: list[tuple[float, str, str]] = []
        self._daemon = daemon
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        known: dict[str, str] = {}
        while not self._stopping.wait(POLL):
            asked = time.monotonic()
            with contextlib.suppress(OSError):
                for link in self._daemon.status()["links"]:
                    if known.get(link["peer"]) != link["state"]:
                        known[link["peer"]] = link["state"]
                        self.changes.append(
                            (asked - link["since_seconds"], link["peer"], link["state"])
                        )

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


def test_twenty_cuts_told_alike_by_all() -> None:
    """Ten links at once, cut by a reset or a freeze: every account of each outage is one."""
    with linked(LINKS) as (edge, hubs, relays):
        offset = time.time() - time.monotonic()
        poll = Poll(edge)
        for _ in range(CUTS):
            began = time.monotonic()
            for number, relay in enumerate(relays):
                if number % 2:
                    relay.tell(frozen=True)
                else:
                    relay.tell(reset=True)
                time.sleep(0.15)
            for number, hub in enumerate(hubs):
                edge.wait_line(14.0, began, peer=hub.name, old="up")
                if number % 2:
                    relays[number].tell(frozen=False)
            for hub in hubs:
                edge.wait_line(20.0, began, peer=hub.name, event="link.up")
            time.sleep(0.3)
        poll.stop()
        metrics = edge.call("GET", "/metrics")
        outages = edge.call("GET", "/v1/outages")["outages"]
        events = edge.call("GET", "/v1/events")["events"]
        worst = dict.fromkeys(("status", "events", "outages", "metrics", "log's fields"), 0.0)

        def agree(name: str, one: float, other: float) -> None:
            worst[name] = max(worst[name], abs(one - other))

        total = looks = 0
        for hub in hubs:
            falls = list(edge.matching(peer=hub.name, old="up"))
            rises = list(edge.matching(peer=hub.name, event="link.up"))[1:]
            told = [one for one in outages if one["peer"] == hub.name]
            assert len(falls) == len(rises) == len(told) == CUTS
            total += len(told)
            for fall, rise, outage in zip(falls, rises, told, strict=True):
                began = _unix(outage["began"]) - offset
                noticed, down = outage["noticed_after_seconds"], outage["down_seconds"]
                assert outage["reason"] == fall.fields["reason"]
                agree("outages", began + noticed, fall.at)
                agree("outages", began + down, rise.at)
                agree("log's fields", fall.fields["noticed_after_seconds"], noticed)
                agree("log's fields", rise.fields["outage_seconds"], down)
                for at, state in ((fall.at, fall.fields["new"]), (rise.at, "up")):
                    told_at = [
                        _unix(one["time"]) - offset
                        for one in events
                        if (one["peer"], one["new"]) == (hub.name, state)
                    ]
                    agree("events", at, _nearest(at, told_at))
                    seen_at = [
                        when
                        for when, name, new in poll.changes
                        if (name, new) == (hub.name, state) and abs(when - at) < 1.0
                    ]
                    if seen_at:  # some states last less than the time between two looks
                        looks += 1
                        agree("status", at, _nearest(at, seen_at))
            for name, key in (("noticed_after", "noticed_after_seconds"), ("down", "down_seconds")):
                count, summed = histogram(metrics, f"linkd_link_{name}_seconds", hub.name)
                assert count == CUTS
                agree("metrics", summed, sum(one[key] for one in told))
    figures.tell(
        f"{total} outages, told alike to within: "
        + ", ".join(f"{name} {seconds * 1000:.0f} ms" for name, seconds in worst.items())
    )
    assert total >= 20
    assert looks >= 1.5 * total
    assert max(worst.values()) <= WITHIN, worst


def _nearest(at: float, times: list[float]) -> float:
    """Return which of some times is the nearest."""
    return min(times, key=lambda one: abs(one - at))


def _unix(text: str) -> float:
    """Return Unix seconds of a time as linkd writes it."""
    return datetime.fromisoformat(text).timestamp()
