"""`scripts/campaign`: see `--help`."""

from __future__ import annotations

import argparse
import json
import secrets
import shutil
import signal
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from tests.chaos import cluster, database, page, steady
from tests.chaos.acts import FLAVOURS, Act, Plan, script
from tests.chaos.broken import BUILDS
from tests.chaos.minimise import minimise
from tests.chaos.report import Report
from tests.chaos.run import main
from tests.support.postgresql import programs

LEAST_SECONDS = 90.0
"""With less time than this left no other run is begun."""


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
    parser.add_argument("--flavour", choices=FLAVOURS, help="the default varies with the seed")
    parser.add_argument("--only", metavar="N,N", help="of all acts of the seed only these")
    parser.add_argument(
        "--minimise", type=int, metavar="SEED", help="find the fewest acts of it that still fail"
    )
    parser.add_argument("--tries", type=int, default=20, help="runs that minimising may take")
    parser.add_argument(
        "--page",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="run nothing: put the results in these folders into docs/measurements",
    )
    parser.add_argument(
        "--log",
        choices=["postgresql"],
        help="the hub's log is in a database with a standby; its own faults, no network namespaces",
    )
    parser.add_argument(
        "--hubs",
        type=int,
        choices=[3],
        help="three hubs share a log in a database, behind HAProxy; 12 edges by default",
    )
    parser.add_argument("--broken", choices=BUILDS, help="run a build that is broken on purpose")
    parser.add_argument("--results", type=Path, help="write reports into this folder")
    parser.add_argument(
        "--steady",
        metavar="KIND[,KIND]",
        help=f"no faults: {', '.join(steady.KINDS)} or all, side by side, for --hours: no link may"
        " drop",
    )
    asked = parser.parse_args()
    if asked.log and (asked.only or asked.minimise or asked.flavour or asked.steady):
        parser.error("--log goes with none of --only, --minimise, --flavour, --steady")
    if asked.hubs:
        asked.log = "cluster"
        asked.edges = asked.edges or 12
    if asked.log and programs() is None:
        parser.error("--log postgresql and --hubs need PostgreSQL 15 or later")
    if asked.hubs and not (shutil.which("haproxy") and shutil.which("redis-server")):
        parser.error("--hubs needs HAProxy and Redis")
    return asked


def keep(report: Report, folder: Path) -> None:
    """Write a report, for people and for programs."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"campaign-{report.plan.seed}"
    stem.with_suffix(".txt").write_text("\n".join(report.lines()) + "\n")
    found = {**asdict(report), "good": report.good}
    stem.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")


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


def plan_of(asked: argparse.Namespace, seed: int, number: int) -> Plan:
    """Return the plan of the run of that number."""
    shapes = [asked.edges] if asked.edges else [1, 5, 1, 2]
    flavour = asked.log or asked.flavour or FLAVOURS[seed % len(FLAVOURS)]
    edges = shapes[number % len(shapes)]
    return Plan(
        seed,
        max(edges, 2) if flavour == "paths" else edges,
        asked.faults,
        1 if flavour == "cluster" else 2,
        asked.rate,
        asked.longest,
        flavour,
        asked.broken or "",
    )


def again(plan: Plan, acts: list[Act] | None) -> str:
    """Return the command that does the same once more."""
    only = "" if acts is None else " --only " + ",".join(str(act.number) for act in acts)
    hows = {"postgresql": "--log postgresql", "cluster": "--hubs 3"}
    how = hows.get(plan.flavour, f"--flavour {plan.flavour}")
    broken = f" --broken {plan.broken}" if plan.broken else ""
    return (
        f"again: scripts/campaign --seed {plan.seed} --edges {plan.edges} --faults {plan.faults}"
        f" --rate {plan.rate:g} --longest {plan.longest:g} {how}{broken}{only}"
    )


def reduce(plan: Plan, tries: int, until: float) -> int:
    """Find the fewest faults that fail, and print them and the command that makes them."""

    def fails(acts: list[Act]) -> bool:
        if time.monotonic() > until:
            return False
        numbers = ",".join(str(act.number) for act in acts)
        good = main(plan, acts).good
        print(f"minimise: acts {numbers}: {'good' if good else 'fails'}", flush=True)
        return not good

    acts = script(plan)
    if not fails(acts):
        print("minimise: all of them together did not fail this time")
        return 0
    left = minimise(acts, fails, tries)
    print(f"minimise: {len(left)} of {len(acts)} acts are enough:")
    for act in left:
        print(f"  {act.number}: {' and '.join(act.kinds)}, up to {act.seconds:.1f} s")
    print(again(plan, left), flush=True)
    return 1


def run() -> int:
    """Run until the time is over, or something is not good."""
    asked = arguments()
    if asked.page is not None:
        for path in page.write(asked.page):
            print(path)
        return 0
    if asked.steady is not None:
        return run_steady(asked)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is ended
    until = time.monotonic() + (asked.hours or 0.0) * 3600.0
    if asked.minimise is not None:
        return reduce(
            plan_of(asked, asked.minimise, 0), asked.tries, until if asked.hours else 1e18
        )
    seed = secrets.randbelow(1_000_000) if asked.seed is None else asked.seed
    number = 0
    while True:
        plan = plan_of(asked, seed + number, number)
        print(f"campaign: seed {plan.seed}, {plan.edges} edge(s)", file=sys.stderr, flush=True)
        acts = None
        if asked.only:
            wanted = {int(word) for word in asked.only.split(",")}
            acts = [act for act in script(plan) if act.number in wanted]
        ends = until if asked.hours else 1e18
        if asked.log:
            report = (cluster if asked.hubs else database).main(plan, ends)
        else:
            report = main(plan, acts, ends)
        if asked.results is not None:
            keep(report, asked.results)
        if not report.good:
            command = again(plan, acts)
            print(command)
            if not asked.log:
                print(command.replace("again:", "fewer:").replace("--seed", "--minimise"))
            sys.stdout.flush()
            return 1
        number += 1
        if time.monotonic() >= until - LEAST_SECONDS:
            return 0


if __name__ == "__main__":
    sys.exit(run())
