"""`scripts/campaign`: see `--help`."""

from __future__ import annotations

import argparse
import json
import secrets
import signal
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from tests.campaign import steady
from tests.campaign.run import Plan, Report, main


def arguments() -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(
        prog="scripts/campaign", description="Random faults on real daemons under traffic."
    )
    parser.add_argument("--hours", type=float, help="go on with new seeds for so long")
    parser.add_argument("--seed", type=int, help="of the first run; the default is random")
    parser.add_argument("--faults", type=int, default=200, help="in each run")
    parser.add_argument("--edges", type=int, help="1 is a pair; the default varies: 1, 5, 1, 2")
    parser.add_argument("--rate", type=float, default=400.0, help="records/s of each publisher")
    parser.add_argument("--longest", type=float, default=14.0, help="seconds of a fault at most")
    parser.add_argument("--clocks", action="store_true", help="step wall clocks too")
    parser.add_argument("--results", type=Path, help="write reports into this folder")
    parser.add_argument(
        "--steady",
        metavar="KIND[,KIND]",
        help=f"no faults: {', '.join(steady.KINDS)} or all, side by side, for --hours: no link may"
        " drop",
    )
    return parser.parse_args()


def keep(report: Report, folder: Path) -> None:
    """Write a report, for people and for programs."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"campaign-{report.plan.seed}"
    stem.with_suffix(".txt").write_text("\n".join(report.lines()) + "\n")
    stem.with_suffix(".json").write_text(json.dumps(asdict(report), indent=1) + "\n")


def run_steady(asked: argparse.Namespace) -> int:
    """Run the steady hours that were asked for; the status is 1 where anything dropped."""
    names = list(steady.KINDS) if asked.steady == "all" else asked.steady.split(",")
    if unknown := [name for name in names if name not in steady.KINDS]:
        print(f"campaign: no kind {unknown[0]}: {', '.join(steady.KINDS)}, all", file=sys.stderr)
        return 2
    stop = threading.Event()

    def told(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGINT, told)
    signal.signal(signal.SIGTERM, told)

    def keep_one(result: steady.Result) -> None:
        print("\n".join(result.lines()), flush=True)
        if asked.results is not None:
            asked.results.mkdir(parents=True, exist_ok=True)
            path = asked.results / f"steady-{result.kind}.json"
            path.write_text(json.dumps(steady.as_json(result), indent=1) + "\n")

    seconds = 3600.0 * (asked.hours or 1.0)
    results = list(steady.run(names, seconds, stop, keep_one))
    return 0 if all(result.good for result in results) else 1


def run() -> int:
    """Run until the time is over, or something is not good."""
    asked = arguments()
    if asked.steady is not None:
        return run_steady(asked)
    seed = secrets.randbelow(1_000_000) if asked.seed is None else asked.seed
    until = time.monotonic() + (asked.hours or 0.0) * 3600.0
    shapes = [asked.edges] if asked.edges else [1, 5, 1, 2]
    number = 0
    while True:
        edges = shapes[number % len(shapes)]
        plan = Plan(seed + number, edges, asked.faults, 2, asked.rate, asked.longest, asked.clocks)
        print(f"campaign: seed {plan.seed}, {edges} edge(s)", file=sys.stderr, flush=True)
        report = main(plan)
        if asked.results is not None:
            keep(report, asked.results)
        if not report.good:
            print(
                f"again: scripts/campaign --seed {plan.seed} --edges {edges} --faults {plan.faults}"
                f" --rate {plan.rate} --longest {plan.longest}",
                flush=True,
            )
            return 1
        number += 1
        if time.monotonic() >= until:
            return 0


if __name__ == "__main__":
    sys.exit(run())
