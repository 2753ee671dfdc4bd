"""What a record costs in each stage, so that a regression shows where it is.

python -m bench.cost [--quick] [--instructions]

Microseconds a record of processor time and of the clock, medians; with --instructions also how many
instructions valgrind counts, which no other load on the machine can change.
Writes docs/measurements/cost.md.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from bench.figures import FOLDER, figure, machine, short, spread, table
from bench.packing import packing
from bench.stages import STAGES, Load

LOADS = {"100 B, 64 a batch": (64, 100), "100 B, alone": (1, 100), "1 KiB, 62 a batch": (62, 1024)}


Taken = tuple[list[float], list[float]]


def measure(stage: str, load: Load, rounds: int, seconds: float) -> Taken:
    """Return microseconds a record by the processor's time and by the clock, one a round."""
    cpu, wall = [], []
    with STAGES[stage](load) as run:
        run(64)
        times = 64
        while True:
            began = time.perf_counter()
            run(times)
            took = time.perf_counter() - began
            if took > seconds / 4:
                break
            times *= 2
        times = max(64, int(times * seconds / took))
        for _ in range(rounds):
            began, used = time.perf_counter(), time.process_time()
            run(times)
            per = 1e6 / (times * load.count)
            cpu.append((time.process_time() - used) * per)
            wall.append((time.perf_counter() - began) * per)
    return cpu, wall


def _counted(stage: str, times: int) -> int:
    """Return the instructions that valgrind counts for so many batches of 64, all else included."""
    command = [
        "valgrind",
        "--tool=cachegrind",
        "--cache-sim=no",
        "--cachegrind-out-file=/dev/null",
        sys.executable,
        "-m",
        "bench.cost",
        "--stage",
        stage,
        "--times",
        str(times),
    ]
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    found = re.search(r"I\s+refs:\s+([\d,]+)", done.stderr)
    if found is None:
        raise RuntimeError(f"valgrind failed: {done.stderr[-300:]}")
    return int(found[1].replace(",", ""))


def instructions(stage: str, few: int = 64, many: int = 564) -> float:
    """Return the instructions a record: those of many batches, less those of few."""
    return (_counted(stage, many) - _counted(stage, few)) / ((many - few) * 64)


def main() -> int:
    """Measure all stages."""
    parser = argparse.ArgumentParser(prog="bench.cost", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--instructions", action="store_true", help="count them with valgrind")
    parser.add_argument("--stage", choices=STAGES, help="run one stage and print nothing")
    parser.add_argument("--times", type=int, default=1000, help="batches, with --stage")
    asked = parser.parse_args()
    if asked.stage:
        with STAGES[asked.stage](Load(64, 100)) as run:
            run(asked.times)
        return 0
    rounds, seconds = (3, 0.1) if asked.quick else (5, 0.4)
    counting = asked.instructions and shutil.which("valgrind") is not None
    if asked.instructions and not counting:
        print("no instruction counts: valgrind is missing (apt install valgrind)")
    where = machine()
    rows = []
    totals = [0.0] * len(LOADS)
    for stage, make in STAGES.items():
        row = [stage, (make.__doc__ or "").strip().rstrip(".")]
        for number, (count, size) in enumerate(LOADS.values()):
            cpu, wall = measure(stage, Load(count, size), rounds, seconds)
            used = figure(cpu)
            totals[number] += used.median
            text = spread(used)
            if stage == "log-disk":
                text += f"; clock {short(figure(wall).median)}"
            row.append(text)
        row.append(f"{instructions(stage):,.0f}" if counting else "–")
        rows.append(row)
        print(" | ".join([row[0], *row[2:]]), flush=True)
    rows.append(["all", "", *[short(total) for total in totals], ""])
    head = ["stage", "what it does", *LOADS, "instructions (100 B, 64 a batch)"]
    text = (
        "# What a record costs, stage by stage\n\n"
        f"Measured {where}. Microseconds of processor time a record, median (least to most) of"
        f" {rounds} rounds. Command: `python -m bench.cost --instructions`. The kernel's part of"
        " sockets is not in it; of the log's disk it is. `log` and `log-disk` hold the same work"
        " once without and once with its disk.\n\n" + table(head, rows) + "\n\n"
    )
    text += packing(rounds, 20 if asked.quick else 200)
    print(text[text.index("## ") :])
    if not asked.quick:
        Path(FOLDER).mkdir(parents=True, exist_ok=True)
        (FOLDER / "cost.md").write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
