"""linkd beside its peers: the same load, interleaved in one run, medians and spread of all rounds.

python -m bench.peers [--quick] [--rounds N] [--seconds S] [--only PART,...]

Parts: throughput, latency, drain, fan-out, channels. Writes docs/measurements/peers.md and plots.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from bench import figures, floor
from bench.calm import Calm
from bench.comparison import MANY, NAMES, ONE, SIZES, Found, Shape, Way, batch_of, ways
from bench.crowd import Crowd
from bench.figures import FOLDER, machine, short
from bench.load import load
from bench.systems import ALL, Linkd, Mosquitto, Nats, System, wait
from bench.told import tell

SETTLE_SECONDS = 0.3

RUNS_AGAIN = 8
"""So many runs at a pace a round are made again where others had the processors."""

PARTS = ("throughput", "latency", "drain", "fan-out", "channels")


def say(text: str) -> None:
    """Print one line of progress."""
    print(text, flush=True)


def present() -> list[type[System]]:
    """Return the systems that this machine has; say which it lacks."""
    found = []
    for kind in ALL:
        version = kind.version()
        if version is None:
            say(f"not measured: {kind.title} (Debian, Ubuntu: apt install mosquitto nats-server)")
        else:
            found.append(kind)
    return found


def checked(system: System, case: str, found: dict[str, Any], notes: list[str]) -> bool:
    """Whether all that was sent arrived; note what did not, or came twice."""
    short_of = found["sent"] - found["received"]
    if found["missing"] or found["repeated"] or found["said"] or short_of > 0:
        notes.append(
            f"{system.title}, {case}: sent {found['sent']:,}, received {found['received']:,}, "
            f"out of place {found['missing']:,}, repeated {found['repeated']:,} {found['said']}"
        )
    return bool(short_of <= 0)


def settle() -> None:
    """Let what the run before left unwritten be written: nobody's sync waits for another's data."""
    os.sync()
    time.sleep(SETTLE_SECONDS)


def throughput(kinds: Sequence[type[System]], rounds: int, seconds: float, found: Found) -> None:
    """Publish as fast as it goes, at one node; receive all at the other."""
    with ExitStack() as stack:
        systems = [stack.enter_context(kind()) for kind in kinds]
        for number in range(rounds):
            for size in SIZES:
                for system in systems:
                    for way in ways(system):
                        if way.size == size:
                            _once(system, way, seconds, found)
                for writers in (1, 2):
                    settle()
                    piece = max(4096, size)
                    rate = floor.disk_bytes_per_second(piece, seconds, writers)
                    found.add("disk", str(writers), size, rate)
            say(f"throughput: round {number + 1} of {rounds} done")


def _once(system: System, way: Way, seconds: float, found: Found) -> None:
    """One run of one system."""
    settle()
    before = system.cpu_seconds()
    result = load(
        system.protocol,
        pub=system.source,
        sub=system.sinks,
        seconds=seconds,
        size=way.size,
        batch=way.batch,
        alone=way.alone,
        window=way.window(system),
        qos=system.qos,
    )
    used = system.cpu_seconds() - before
    case = f"{NAMES[way.size]}, {way.title}"
    if not checked(system, case, result, found.notes):
        return
    rate = result["received"] / result["seconds"]
    found.add("rate", system.title, way, rate)
    found.add("cpu", system.title, way, used / result["received"] * 1e6)
    found.add("client", system.title, way, result["cpu_seconds"] / result["seconds"] * 100)
    found.add("memory", system.title, way, system.resident_bytes() / 2**20)
    say(
        f"  {system.title:18} {case:32} {short(rate):>10} messages/s "
        f"{short(used / result['received'] * 1e6):>8} CPU s a million"
    )


def latency(kinds: Sequence[type[System]], rounds: int, seconds: float, found: Found) -> None:
    """Publish at a steady pace; each message says when it was sent."""
    calm = Calm(RUNS_AGAIN * rounds)
    with ExitStack() as stack:
        systems = [stack.enter_context(kind()) for kind in kinds]
        for number in range(rounds):
            for rate in (1000, 10_000):
                least, stolen = calm.run(_least_seconds)
                found.add("floor", "", rate, least * 1000)
                found.add("stolen", "", rate, stolen * 100)
                for system in systems:
                    result, stolen = calm.run(partial(_paced, system, rate, seconds))
                    if checked(system, f"{rate:,}/s", result, found.notes):
                        found.add("p50", system.title, rate, result["p50_us"] / 1000)
                        found.add("p99", system.title, rate, result["p99_us"] / 1000)
                        found.add("stolen", system.title, rate, stolen * 100)
            say(f"latency: round {number + 1} of {rounds} done")
    found.again = calm.again


def _least_seconds() -> float:
    """Return what two commits and a round trip take."""
    return 2 * floor.commit_seconds(200) + floor.round_trip_seconds(200)


def _paced(system: System, rate: int, seconds: float) -> dict[str, Any]:
    """Return what came of one run of one system."""
    settle()
    return load(
        system.protocol,
        pub=system.source,
        sub=system.sinks,
        seconds=seconds,
        rate=rate,
        window=50_000,
        qos=system.qos,
    )


def drain(kinds: Sequence[type[System]], count: int, found: Found) -> None:
    """Let a backlog grow while the hub is gone; then time how it comes."""
    for kind in kinds:
        with kind() as system:
            if not isinstance(system, Linkd):  # mosquitto must know of the consumer before
                load(system.protocol, pub=system.source, sub=system.sinks, count=1, lasting=True)
            assert system.hub is not None
            system.hub.stop()
            batch = 64 if isinstance(system, Linkd) else 1
            way = Way(100, batch)
            filled = load(
                system.protocol,
                pub=system.source,
                count=count,
                batch=batch,
                window=way.window(system),
                qos=system.qos,
            )
            system.start_hub()
            options = {"sub": system.sinks, "count": count, "qos": system.qos}
            back = time.monotonic()
            result = load(system.protocol, lasting=True, earliest=True, **options)
            took = time.monotonic() - back
        if result["received"] < count:
            found.notes.append(f"{system.title}, drain: {result['received']:,} of {count:,} came")
            continue
        found.add("drain", system.title, count, result["received"] / result["seconds"])
        found.add("drained in", system.title, count, took)
        found.add("filled at", system.title, count, filled["acked"] / filled["ack_seconds"])
        say(f"drain: {system.title}: {short(result['received'] / result['seconds'])} messages/s")


def fan_out(kinds: Sequence[type[System]], peers: int, seconds: float, found: Found) -> None:
    """Publish at the hub; each of many peers gets all."""
    for kind in kinds:
        with kind(peers, fan_out=True) as system:
            way = Way(100, 64 if isinstance(system, Linkd) else 1)
            before = system.cpu_seconds()
            result = load(
                system.protocol,
                pub=system.source,
                sub=system.sinks,
                seconds=seconds,
                batch=way.batch,
                window=max(16, way.window(system) // 10),
                qos=system.qos,
            )
            used = system.cpu_seconds() - before
            short_of = result["sent"] * peers - result["received"]
            if short_of > 0:
                found.notes.append(f"{system.title}, fan-out: {short_of:,} did not come")
                continue
            rate = result["received"] / result["seconds"]
            found.add("fan-out", system.title, peers, rate)
            found.add("fan-out cpu", system.title, peers, used / result["received"] * 1e6)
            found.add("fan-out memory", system.title, peers, system.resident_bytes() / 2**20)
            say(f"fan-out to {peers}: {system.title}: {short(rate)} deliveries/s")


def channels(rounds: int, count: int, found: Found) -> None:
    """The same records over one channel, peer and consumer, and over many."""
    for kind, what in ((Crowd, "channels"), (Linkd, "channels, daemons")):
        with ExitStack() as stack:
            systems = {
                shape: stack.enter_context(
                    kind(shape.peers, fan_out=True, groups=shape.peers if shape.peers > 1 else 0)
                )
                for shape in (ONE, MANY)
            }
            for _ in range(rounds):
                for shape, system in systems.items():
                    found.add(what, "linkd", shape, _spread_rate(system, shape, count))
        for shape in (ONE, MANY):
            say(f"{what}: {shape.title}: {found.cell(what, 'linkd', shape)} records/s")


def _spread_rate(system: Linkd, shape: Shape, count: int) -> float:
    """Publish so many records at a hub; return how many a second its peers had acknowledged."""
    settle()
    began = time.monotonic()
    result = load(
        "linkd",
        pub=system.source,
        sub=",".join([str(system.hub_port)] * shape.consumers),
        count=count,
        batch=64,
        window=1000,
        channels=shape.channels,
        groups=max(1, system.groups),
        shared=True,
    )
    wait("the peers of linkd", system.settled, 120.0)
    took = time.monotonic() - began
    if result["received"] != count:
        raise RuntimeError(f"{shape.title}: {result['received']:,} of {count:,} came")
    return count / took


def ceiling(seconds: float) -> list[list[str]]:
    """Measure the load itself, against a sink that answers at once."""
    rows = []
    for protocol, batch in (("linkd", 64), ("linkd", 1), ("mqtt", 1), ("nats", 1)):
        row = [protocol, f"{batch} a frame"]
        for size in (100, 1024, 65_536):
            if batch > 1 and size > 1024:
                row.append("–")
                continue
            result = load(
                protocol, sink=True, seconds=seconds, size=size, batch=min(batch, batch_of(size))
            )
            row.append(short(result["received"] / result["seconds"]))
        rows.append(row)
    return rows


def main() -> int:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(prog="bench.peers", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--rounds", type=int, help="rounds of each measurement (5; quick: 1)")
    parser.add_argument("--seconds", type=float, help="of one run (3; quick: 0.5)")
    parser.add_argument("--only", help="parts, separated by commas (all; quick: the first three)")
    parser.add_argument("--peers", type=int, help="of the fan-out (100; quick: 10)")
    asked = parser.parse_args()
    quick = asked.quick
    rounds = asked.rounds or (1 if quick else 5)
    seconds = asked.seconds or (0.5 if quick else 3.0)
    parts = asked.only.split(",") if asked.only else PARTS[: 3 if quick else 5]
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    where, kinds, found = machine(), present(), Found()
    swift: list[type[System]] = [one for one in kinds if one in (Linkd, Mosquitto, Nats)]
    kinds = swift if quick else kinds
    peers = asked.peers or (10 if quick else 100)
    roof = ceiling(min(seconds, 1.0))
    backlog = 100_000 if quick else 1_000_000
    runs = {
        "throughput": partial(throughput, kinds, rounds, seconds, found),
        "latency": partial(latency, kinds, rounds, seconds, found),
        "drain": partial(drain, swift, backlog, found),
        "fan-out": partial(fan_out, swift, peers, seconds, found),
        "channels": partial(channels, min(rounds, 3), 640_000, found),
    }
    for part, run in runs.items():
        if part in parts:
            try:
                run()
            except RuntimeError as error:  # what was measured so far is told all the same
                found.notes.append(f"{part} ended early: {error}")
                say(f"{part} ended early: {error} {getattr(error, '__notes__', '')}")
    figures.drawing = not quick
    text = tell(found, kinds, roof, where, f"{rounds} rounds of {seconds:g} s")
    print(text)
    if not quick:
        FOLDER.mkdir(parents=True, exist_ok=True)
        (FOLDER / "peers.md").write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
