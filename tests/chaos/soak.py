"""Hours of traffic with cuts: what must stay flat, sampled and fitted with a line.

`python -m tests.chaos.soak --hours H`: a pair of daemons joined by a relay, publishers at both,
the link reset or frozen every `--every` seconds. Their logs are small, so that they fill, turn over
and delete within minutes. The figure is the slope of each measure, per hour, by least
squares over the samples after the warm-up.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from linkd.drill.testbed import Relay
from tests.chaos.traffic import Publisher
from tests.support.daemon import Daemon, listen, peer

WARM_UP = 0.25
"""The share of the samples in which caches and pools may still fill."""

BOUNDS = {
    "rss_mib": 4.0,
    "anonymous_mib": 4.0,
    "descriptors": 1.0,
    "threads": 0.5,
    "delayed_calls": 3.0,
    "log_mib": 2.0,
}
"""Slopes per hour up to which a measure counts as flat, where the fit's own doubt does not exceed
them: then the verdict is taken at the lower end of that doubt (two standard errors)."""

LOG_BYTES = 16_777_216
"""The bound of each log, the least there can be: it is full, and turns over, within minutes."""

FULL = 0.75
"""The share of it above which it counts as full: what is below makes room for what comes."""

_FREEZE_SECONDS = 11.0
_PORT = 19_443


@dataclass(frozen=True)
class Fit:
    """A line through samples: change per hour, its standard error, and the mean."""

    slope: float
    doubt: float
    mean: float


def fit(points: Sequence[tuple[float, float]]) -> Fit:
    """Return the line of least squares through (seconds, value).

    Raises:
        ValueError: There are fewer than three points, or all at one moment.
    """
    count = len(points)
    if count < 3:
        raise ValueError(f"expected at least 3 samples, got {count}")
    middle = sum(at for at, _ in points) / count
    mean = sum(value for _, value in points) / count
    spread = sum((at - middle) ** 2 for at, _ in points)
    if not spread:
        raise ValueError("expected samples at different times")
    slope = sum((at - middle) * (value - mean) for at, value in points) / spread
    rest = sum((value - mean - slope * (at - middle)) ** 2 for at, value in points)
    return Fit(slope * 3600.0, (rest / (count - 2) / spread) ** 0.5 * 3600.0, mean)


def flat(name: str, line: Fit) -> bool:
    """Tell whether a measure does not grow, as far as these samples can tell."""
    return line.slope - 2.0 * line.doubt <= BOUNDS[name]


@dataclass
class Samples:
    """What one daemon was measured at."""

    daemon: Daemon
    taken: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def take(self, at: float) -> None:
        """Measure once; a daemon that does not answer in time is asked again next time."""
        process = Path(f"/proc/{self.daemon.pid}")
        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        found = {
            "rss_mib": int(status["VmRSS"].split()[0]) / 1024.0,
            "anonymous_mib": int(status["RssAnon"].split()[0]) / 1024.0,
            "threads": float(status["Threads"]),
            "descriptors": float(sum(1 for _ in (process / "fd").iterdir())),
        }
        with contextlib.suppress(OSError):
            text = str(self.daemon.call("GET", "/metrics", timeout=10.0))
            found["delayed_calls"] = _gauge(text, "linkd_process_delayed_calls")
            found["log_mib"] = _gauge(text, "linkd_log_bytes") / 2**20
        for key, value in found.items():
            self.taken.setdefault(key, []).append((at, value))

    def warm_at(self, share: float) -> float:
        """Return from when on samples count: so much of the time is over, and the log was full.

        A log that was not full before three quarters of the time are over is not waited for: its
        own growth is then among what is told.
        """
        points = self.taken["log_mib"]
        over, late = points[int(len(points) * share)][0], points[len(points) * 3 // 4][0]
        full = next((at for at, mib in points if mib * 2**20 >= FULL * LOG_BYTES), over)
        return max(over, full) if full < late else over


def _gauge(metrics: str, name: str) -> float:
    """Return the value of one metric without labels."""
    lines = (line.rpartition(" ") for line in metrics.splitlines())
    return next(float(value) for found, _, value in lines if found == name)


@dataclass(frozen=True)
class Plan:
    """How long, how much, how often cut, how often measured, of which seed."""

    hours: float
    rate: float
    every: float
    sample: float
    seed: int


def soak(plan: Plan) -> Iterator[str]:
    """Run it; yield what it says, line by line.

    Raises:
        RuntimeError: A daemon has died, or the pair does not come to rest.
    """
    rng = Random(plan.seed)
    with contextlib.ExitStack() as stack:
        port = _PORT + os.getpid() % 1000
        relay = stack.enter_context(Relay(("127.0.0.1", port)))
        both = 'send = ["a.>", "b.>"]\nreceive = ["a.>", "b.>"]\n'
        small = (
            f"[log]\nmax_bytes = {LOG_BYTES}\nsegment_bytes = 1048576\nmemory_bytes = 1048576\n"
            'when_full = "drop-oldest"\n'
        )
        hub = Daemon("hub", small + listen(port, "127.0.0.1") + peer("edge", extra=both))
        dial = peer("hub", f"ws://127.0.0.1:{relay.port}/link", extra=both)
        edge = Daemon("edge", small + dial)
        for daemon in (hub, edge):
            stack.callback(daemon.close)
            daemon.start(None)
        edge.wait_up("hub", 60.0)
        publishers = [
            Publisher(daemon, f"{daemon.name}-{n}", f"{daemon.name[0]}.{n}", rng, plan.rate / 4)
            for daemon in (hub, edge)
            for n in range(2)
        ]
        _channels(publishers)
        for publisher in publishers:
            publisher.start()
            stack.callback(publisher.end)
        samples = [Samples(hub), Samples(edge)]
        cuts = _cut_and_sample(plan, rng, relay, samples)
        for publisher in publishers:
            publisher.end()
        records = sum(publisher.ledger.count() for publisher in publishers)
        yield f"{records} records, {cuts} cuts in {plan.hours * 60:.0f} min, seed {plan.seed}"
        edge.wait_up("hub", 60.0)
        yield f"backlog in the end: {_drained(hub, 'edge')} and {_drained(edge, 'hub')} records"
        yield from _verdict(samples)


def _channels(publishers: Sequence[Publisher]) -> None:
    """Give each publisher a channel that both ends send on."""
    for place, publisher in enumerate(publishers):
        publisher.ledger.channel = f"{'ab'[place % 2]}.{publisher.ledger.name}"


def _cut_and_sample(plan: Plan, rng: Random, relay: Relay, samples: Sequence[Samples]) -> int:
    """Let the time pass; return how often the link was cut."""
    began = time.monotonic()
    end = began + plan.hours * 3600.0
    next_sample, next_cut, cuts = began, began + plan.every, 0
    while (now := time.monotonic()) < end:
        if now >= next_cut:
            cuts += 1
            if rng.random() < 0.5:
                relay.order(reset=True)
            else:
                relay.block("both")
                time.sleep(min(_FREEZE_SECONDS, plan.every / 2))
                relay.heal()
            next_cut = time.monotonic() + plan.every
        if now >= next_sample:
            for one in samples:
                one.take(now - began)
            next_sample = max(next_sample + plan.sample, now)
        time.sleep(max(0.0, min(next_sample, next_cut, end) - time.monotonic()))
    return cuts


def _drained(daemon: Daemon, name: str, within: float = 60.0) -> int:
    """Wait until nothing is owed to a peer; return what still is."""
    end = time.monotonic() + within
    while (left := int(daemon.link(name)["backlog_records"])) and time.monotonic() < end:
        time.sleep(0.1)
    return left


def _verdict(samples: Sequence[Samples]) -> Iterator[str]:
    """Yield a line a measure, and the verdict."""
    good = True
    for one in samples:
        warm = one.warm_at(WARM_UP)
        for name, points in one.taken.items():
            kept = [point for point in points if point[0] >= warm]
            line, level = fit(kept), [value for _, value in kept]
            good = good and flat(name, line)
            yield (
                f"{one.daemon.name:5} {name:14} {line.slope:+9.3f}/h ± {2 * line.doubt:.3f}"
                f"  mean {line.mean:.2f}, {min(level):.2f} to {max(level):.2f},"
                f" {len(kept)} samples: {'flat' if flat(name, line) else 'GROWS'}"
            )
    yield "FLAT" if good else "NOT FLAT"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; the exit status is 1 where something grows."""
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--rate", type=float, default=400.0, help="records a second in all")
    parser.add_argument("--every", type=float, default=30.0, help="seconds between cuts")
    parser.add_argument("--sample", type=float, default=5.0, help="seconds between samples")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print the lines as a JSON array")
    given = parser.parse_args(arguments)
    said = []
    plan = Plan(given.hours, given.rate, given.every, given.sample, given.seed)
    for line in soak(plan):
        said.append(line)
        if not given.json:
            print(line, flush=True)
    if given.json:
        json.dump(said, sys.stdout)
    return 0 if said[-1] == "FLAT" else 1


if __name__ == "__main__":
    raise SystemExit(main())
