"""`scripts/campaign`: see `--help`."""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import time
from dataclasses import asdict
from pathlib import Path

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
    return parser.parse_args()


def keep(report: Report, folder: Path) -> None:
    """Write a report, for people and for programs."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"campaign-{report.plan.seed}"
    stem.with_suffix(".txt").write_text("\n".join(report.lines()) + "\n")
    stem.with_suffix(".json").write_text(json.dumps(asdict(report), indent=1) + "\n")


def run() -> int:
    """Run until the time is over, or something is not good."""
    asked = arguments()
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
