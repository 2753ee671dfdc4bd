"""How what bench.peers measured is told: tables, goals, plots."""

from __future__ import annotations

from collections.abc import Sequence

from bench.calm import MOST_STOLEN, MOST_TRIES
from bench.comparison import MANY, NAMES, ONE, SIZES, Found, Way, batch_of, ways
from bench.figures import Bar, Figure, plot, short, spread, table
from bench.systems import Linkd, System


def tell(
    found: Found, kinds: Sequence[type[System]], roof: list[list[str]], where: str, how: str
) -> str:
    """Return the page, and draw its plots."""
    titles = [kind.title for kind in kinds]
    versions = sorted({kind.version() or "" for kind in kinds})
    parts = [
        "# linkd beside its peers\n",
        f"Measured {where}. {'; '.join(versions)}. {how}, interleaved; median (least to most).\n",
        "Command: `scripts/bench` (this part: `python -m bench.peers`). Publish at one node,"
        " receive at the other, over loopback; one C client for all (bench/load.c). linkd runs"
        " with its default settings: each message is on the disks of both ends (fdatasync) before"
        " it is acknowledged. mosquitto keeps its messages in memory and writes them out now and"
        " then; JetStream writes them to files and syncs now and then.\n",
        "The load's own ceiling, against a sink that answers at once, messages/s:\n",
        table(["protocol", "", "100 B", "1 KiB", "64 KiB"], roof) + "\n",
    ]
    makers = (_throughput, _latency, _drain, _fan_out, _channels)
    for make in makers:
        parts += make(found, titles)
    parts += _goals(found, titles)
    if found.notes:
        parts += ["## What was not as it should be\n", *[f"- {note}" for note in found.notes], ""]
    return "\n".join(parts)


def _way_list(found: Found, titles: Sequence[str]) -> list[tuple[str, Way]]:
    """Return (system, way) in the tables' order, those that were measured."""
    every = [way for size in SIZES for way in ways(_a_linkd()) if way.size == size]
    return [
        (title, way)
        for size in SIZES
        for title in titles
        for way in every
        if way.size == size and found.get("rate", title, way) is not None
    ]


def _a_linkd() -> Linkd:
    """Return a linkd that never starts: only its kind is asked for."""
    return Linkd.__new__(Linkd)


def _throughput(found: Found, titles: Sequence[str]) -> list[str]:
    order = _way_list(found, titles)
    if not order:
        return []
    rows = [
        [
            NAMES[way.size],
            title if title != "linkd" else f"linkd, {way.title}",
            found.cell("rate", title, way),
            found.cell("cpu", title, way),
            found.cell("client", title, way),
            found.cell("memory", title, way),
        ]
        for title, way in order
    ]
    head = [
        "size",
        "system",
        "messages/s",
        "CPU s a million, both",
        "load, % of a core",
        "MiB, both",
    ]
    disk = [
        [NAMES[size], *(_megabytes(found.get("disk", writers, size)) for writers in ("1", "2"))]
        for size in SIZES
    ]
    groups = [
        (
            f"{NAMES[size]}, messages/s",
            [
                Bar(f"linkd, {way.title}" if title == "linkd" else title, got)
                for title, way in order
                if way.size == size and (got := found.get("rate", title, way)) is not None
            ],
        )
        for size in SIZES
    ]
    plot("throughput", "Durable messages a second over a link", groups)
    cpu = [
        (
            "100 B, CPU seconds a million messages, both daemons",
            [
                Bar(f"linkd, {way.title}" if title == "linkd" else title, got)
                for title, way in order
                if way.size == 100 and (got := found.get("cpu", title, way)) is not None
            ],
        )
    ]
    plot("cpu", "What a million messages cost", cpu)
    return [
        "## Throughput\n",
        "![throughput](throughput.svg)\n",
        table(head, rows) + "\n",
        "The disk itself, in the same rounds, for as long and as soon as a system: pieces appended"
        " to a file, fdatasync after each, by one writer and by two at once, each with its file."
        " Both nodes of a pair write all to this one disk, as two writers do.\n",
        table(["size", "one writer, MB/s", "each of two, MB/s"], disk) + "\n",
    ]


def _megabytes(rate: Figure | None) -> str:
    """Return what a disk takes for a table."""
    if rate is None:
        return "–"
    return spread(Figure(*(each / 1e6 for each in rate)))


def _latency(found: Found, titles: Sequence[str]) -> list[str]:
    rows, groups = [], []
    for rate in (1000, 10_000):
        bars = []
        for title in titles:
            got = found.get("p50", title, rate)
            if got is None:
                continue
            p50, p99 = found.cell("p50", title, rate), found.cell("p99", title, rate)
            rows.append([f"{rate:,}/s", title, p50, p99, found.cell("stolen", title, rate)])
            bars.append(Bar(title, got))
        least = found.get("floor", "", rate)
        if bars and least is not None:
            name = "two commits and a round trip"
            stolen = found.cell("stolen", "", rate)
            rows.append([f"{rate:,}/s", name, found.cell("floor", "", rate), "", stolen])
            groups.append((f"{rate:,} messages/s: median, ms", [*bars, Bar(name, least)]))
    if not rows:
        return []
    plot("latency", "From publish to delivery at the other node, 100 B", groups)
    return [
        "## Latency\n",
        "From `send` at the publisher to `recv` at the receiver, 100 B; linkd: on both disks by"
        " then. While the hypervisor gives the processors to others nothing runs here: what was"
        f" measured while it took more than {MOST_STOLEN * 100:g} % of their time was measured"
        f" again, whichever system it was, up to {MOST_TRIES - 1} times, and the calmest run counts"
        f" ({found.again} were made again). What was stolen all the same stands beside each.\n",
        "![latency](latency.svg)\n",
        table(["pace", "system", "median, ms", "p99, ms", "stolen, %"], rows) + "\n",
    ]


def _drain(found: Found, titles: Sequence[str]) -> list[str]:
    rows, bars = [], []
    for count in (100_000, 1_000_000):
        for title in titles:
            got = found.get("drain", title, count)
            if got is not None:
                seconds = found.cell("drained in", title, count)
                filled = found.cell("filled at", title, count)
                rows.append([f"{count:,}", title, short(got.median), seconds, filled])
                bars.append(Bar(title, got))
    if not rows:
        return []
    plot("drain", "Draining a backlog", [("100 B, messages/s", bars)])
    head = ["backlog", "system", "messages/s", "s, from the hub's start", "filled at, messages/s"]
    return [
        "## Drain after an outage\n",
        "The hub is stopped, messages of 100 B are published at the edge, the hub starts again and"
        " a consumer there reads. The rate counts from the first message to the last.\n",
        table(head, rows) + "\n",
    ]


def _fan_out(found: Found, _: Sequence[str]) -> list[str]:
    rows = [
        [
            str(peers),
            title,
            found.cell("fan-out", title, peers),
            found.cell("fan-out cpu", title, peers),
            found.cell("fan-out memory", title, peers),
        ]
        for (what, title, peers) in list(found.values)
        if what == "fan-out"
    ]
    if not rows:
        return []
    head = [
        "peers",
        "system",
        "deliveries/s, all peers",
        "CPU s a million, all",
        "MiB, all daemons",
    ]
    return [
        "## Fan-out\n",
        "One publisher at the hub, each of the peers (a daemon each, all on this machine) gets all,"
        " on its own disk, with one consumer.\n",
        table(head, rows) + "\n",
    ]


def _channels(found: Found, _: Sequence[str]) -> list[str]:
    peers = {"channels": "nodes of one process", "channels, daemons": "daemons on this machine"}
    rows = [
        [shape.title, where, found.cell(what, "linkd", shape)]
        for what, where in peers.items()
        for shape in (ONE, MANY)
        if found.get(what, "linkd", shape) is not None
    ]
    if not rows:
        return []
    return [
        "## Many channels, peers and consumers\n",
        "The same number of records in all, in batches of 64; each goes to one peer and to one"
        " consumer at the hub. The first two rows are the hub's own: its peers are nodes of one"
        " process, with logs in memory, since those of a real hub are on machines of their own."
        " In the others each peer is a daemon beside the hub: 51 daemons, each with a log that it"
        " syncs, share the processors of this machine, and most of that time is the peers'.\n",
        table(["shape", "the peers are", "records/s"], rows) + "\n",
    ]


def _goals(found: Found, titles: Sequence[str]) -> list[str]:
    """Return the ratios in this run."""
    others = [title for title in titles if title != "linkd"]
    stream = [title for title in others if "NATS" in title]
    rows: list[list[str]] = []

    def ratio(text: str, goal: float, case: Way, names: Sequence[str]) -> None:
        got = found.ratio("rate", case, names, Way(case.size))
        if got is not None:
            rows.append([text, f"≥ {goal:g} ×", f"{got:.1f} ×", "yes" if got >= goal else "no"])

    ratio("100 B, batched by the client library", 10, Way(100, 64), others)
    ratio("100 B, one message a frame", 4, Way(100), others)
    ratio("1 KiB, batched by the client library", 3, Way(1024, batch_of(1024)), others)
    ratio("64 KiB, beside JetStream", 1.3, Way(65_536), stream)
    rows += _disk_goal(found)
    for text, goal, way in (("batched", 0.1, Way(100, 64)), ("one a frame", 0.25, Way(100))):
        mine = found.get("cpu", "linkd", way)
        least = min(
            (c.median for name in others if (c := found.get("cpu", name, Way(100)))), default=0.0
        )
        if mine is not None and least:
            got = mine.median / least
            rows.append(
                [f"CPU at 100 B, {text}", f"≤ {goal:g} ×", f"{got:.2f} ×", _yes(got <= goal)]
            )
    rows += _latency_goals(found)
    few, many = (found.get("channels", "linkd", shape) for shape in (ONE, MANY))
    if few is not None and many is not None:
        got = many.median / few.median
        rows.append([f"{MANY.title}, at the hub", "≥ 0.5 ×", f"{got:.2f} ×", _yes(got >= 0.5)])
    if not rows:
        return []
    return ["## Goals\n", table(["what", "goal", "here", "met"], rows) + "\n"]


def _disk_goal(found: Found) -> list[list[str]]:
    """Return what of the disk's own rate is reached: of what it takes from two, as two nodes are.

    Each message is written twice, once by each node; of one writer's rate, which is told beside it,
    no pair on one disk can reach much more than half.
    """
    alone, shared = (found.get("disk", writers, 1 << 20) for writers in ("1", "2"))
    big = found.get("rate", "linkd", Way(1 << 20))
    if alone is None or shared is None or big is None:
        return []
    rate = big.median * (1 << 20)
    got = rate / shared.median
    return [
        [
            "1 MiB, of what the disk takes of each of two",
            "≥ 0.5 ×",
            f"{got:.2f} × (of one alone {rate / alone.median:.2f})",
            _yes(got >= 0.5),
        ]
    ]


def _latency_goals(found: Found) -> list[list[str]]:
    p50, p99 = found.get("p50", "linkd", 1000), found.get("p99", "linkd", 1000)
    least = found.get("floor", "", 1000)
    if p50 is None or p99 is None or least is None:
        return []
    times = p50.median / least.median
    return [
        ["median latency at 1,000/s", "≤ 1.5 ms", f"{p50.median:.2f} ms", _yes(p50.median <= 1.5)],
        ["p99 at 1,000/s", "≤ 8 ms", f"{p99.median:.2f} ms", _yes(p99.median <= 8)],
        ["over two commits and a round trip", "≤ 3 ×", f"{times:.1f} ×", _yes(times <= 3)],
    ]


def _yes(met: bool) -> str:
    return "yes" if met else "no"
