"""What `compress = true` of a peer saves on the line, and what it costs at both ends."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from itertools import islice
from random import Random

from bench.figures import figure, spread, table
from linkd.node.replicator import pack, unpack
from linkd.protocol.records import EncodedRecord, encode_records

_PLACES = ("hall", "roof", "cellar", "boiler", "gate")


def _readings(rng: Random, many: int) -> Iterator[bytes]:
    """Yield bodies of so many sensor readings each, as JSON: about 100 bytes a reading."""
    now = 1_700_000_000.0
    while True:
        said = []
        for _ in range(many):
            now += rng.random()
            said.append({
                "sensor": f"{rng.choice(_PLACES)}-{rng.randrange(40)}",
                "time": round(now, 3),
                "celsius": round(rng.gauss(20, 5), 2),
                "percent": round(rng.uniform(20, 80), 1),
                "ok": rng.random() < 0.99,
            })  # fmt: skip
        yield json.dumps(said[0] if many == 1 else said).encode()


def _noise(rng: Random, size: int) -> Iterator[bytes]:
    """Yield bodies that nothing makes smaller."""
    while True:
        yield rng.randbytes(size)


_HEAD = "## `compress = true`\n\n"

_LOADS: dict[str, tuple[int, Callable[[Random], Iterator[bytes]]]] = {
    "a reading as JSON, 64 a batch": (64, lambda rng: _readings(rng, 1)),
    "a reading as JSON, alone": (1, lambda rng: _readings(rng, 1)),
    "10 readings as JSON, 62 a batch": (62, lambda rng: _readings(rng, 10)),
    "10 readings as JSON, alone": (1, lambda rng: _readings(rng, 10)),
    "random bytes, 100, 64 a batch": (64, lambda rng: _noise(rng, 100)),
}


def _each(call: Callable[[bytes], bytes], batches: list[bytes], records: int) -> float:
    """Return the microseconds of processor time a record."""
    used = time.process_time()
    for batch in batches:
        call(batch)
    return (time.process_time() - used) * 1e6 / records


def packing(rounds: int, batches: int) -> str:
    """Measure, and return a section in Markdown."""
    rows = []
    for name, (count, bodies) in _LOADS.items():
        source = bodies(Random(1))
        plain = [
            encode_records([EncodedRecord(body) for body in islice(source, count)])
            for _ in range(batches)
        ]
        packed = [pack(batch) for batch in plain]
        records = count * batches
        made = [_each(pack, plain, records) for _ in range(rounds)]
        taken = [_each(lambda one: unpack(one, 1 << 24), packed, records) for _ in range(rounds)]
        before, after = sum(map(len, plain)), sum(map(len, packed))
        sizes = (f"{before / records:.0f}", f"{after / records:.0f}", f"{after / before:.0%}")
        rows.append([name, *sizes, spread(figure(made)), spread(figure(taken))])
    head = ["what", "bytes a record", "packed", "part", "packing, µs", "unpacking, µs"]
    about = (
        "Whole batches by zstd at level 3; microseconds of processor time a record."
        " Batches below 512 bytes, and such as get no smaller, travel as they are."
    )
    return f"{_HEAD}{about}\n\n{table(head, rows)}\n"
