"""The figures in docs/measurements/campaign.md and steady.md, out of the results of runs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.chaos.report import BACK_SECONDS, BOUNDS
from tests.chaos.steady import KINDS
from tests.support.lab import ROOT

MEASUREMENTS = ROOT / "docs" / "measurements"
BEGIN, END = "<!-- figures: scripts/campaign --page -->", "<!-- end of the figures -->"
WHO = {"ping-timeout": "listener", "silence": "dialer"}
Json = dict[str, Any]


def results(folders: Iterable[Path], kind: str) -> list[Json]:
    """Return all results of a kind, `campaign` or `steady`, in these folders."""
    paths = sorted(path for folder in folders for path in folder.glob(f"{kind}-*.json"))
    return [json.loads(path.read_text()) for path in paths]


def _total(reports: Sequence[Json], key: str) -> int:
    return sum(int(report[key]) for report in reports)


def _times(values: Iterable[float]) -> str:
    found = sorted(values)
    return f"median {found[len(found) // 2]:.3f} s, {found[0]:.3f} to {found[-1]:.3f} s"


def _kind(told: str) -> str:
    """Return the kind of a fault without how bad it was, and where."""
    word = told.partition(" ")[0]
    return word if word in ("slow", "loss", "drop.sh") else told.partition(" at ")[0]


def campaign_figures(reports: Sequence[Json]) -> str:
    """Return the tables of a page about these campaigns."""
    verdicts = [verdict for report in reports for verdict in report["verdicts"]]
    lost = sum(len(verdict["lost"]) for verdict in verdicts)
    twice = sum(len(verdict["twice"]) for verdict in verdicts)
    disorder = sum(verdict["out_of_order"] for verdict in verdicts)
    acked = sum(
        sum({v["publisher"]: v["acked"] for v in report["verdicts"]}.values()) for report in reports
    )
    shapes = Counter((report["plan"]["edges"], report["plan"]["flavour"]) for report in reports)
    faults = [happened for report in reports for happened in report["happened"]]
    rows = [
        ("campaigns", f"{len(reports)}, {sum(bool(report['good']) for report in reports)} good"),
        (
            "topologies (edges, flavour)",
            ", ".join(f"{n} × {edges} {flavour}" for (edges, flavour), n in sorted(shapes.items())),
        ),
        ("seeds", ", ".join(str(report["plan"]["seed"]) for report in reports)),
        ("time, added up", f"{sum(report['seconds'] for report in reports) / 3600:.2f} h"),
        ("faults", f"{len(faults):,}"),
        ("records acknowledged to their publishers", f"{acked:,}"),
        ("held against them, in the logs of all nodes", f"{sum(v['there'] for v in verdicts):,}"),
        ("**lost, twice, out of order**", f"**{lost:,}, {twice:,}, {disorder:,}**"),
        (
            "behind later ones, as a new path explains, and counted as late by their nodes",
            f"{sum(report.get('late_records', 0) for report in reports):,}",
        ),
        ("read by the named consumer", f"{_total(reports, 'consumed'):,}, in order"),
        ("in doubt: the call ended without an answer", f"{_total(reports, 'doubtful'):,}"),
        ("refused: no daemon, or no room", f"{_total(reports, 'refused'):,}"),
    ]
    for reason, (low, high) in BOUNDS.items():
        noticed = [at for report in reports for _, why, at in report["noticed"] if why == reason]
        if noticed:
            told = f"{len(noticed)} times, {_times(noticed)} (bound {low} to {high} s)"
            rows.append((f"the {WHO[reason]} noticed a dead path", told))
    if back := [seconds for report in reports for _, seconds in report["back"]]:
        told = f"{len(back)} times, {_times(back)} (bound {BACK_SECONDS:g} s)"
        rows.append(("all links up after the faults' end", told))
    for what in ("outside", "overdue", "undrained", "audit", "bugs", "uncounted"):
        amiss = [f"seed {r['plan']['seed']}: {line}" for r in reports for line in r.get(what, [])]
        rows.append((what, "none" if not amiss else "<br>".join(amiss)))
    kinds = Counter(_kind(happened["kind"]) for happened in faults)
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    made = ", ".join(f"{n} {kind}" for kind, n in kinds.most_common())
    return f"| | |\n|---|---|\n{table}\n\nFaults by kind: {made}.\n"


def steady_figures(found: Sequence[Json]) -> str:
    """Return the table of a page about these steady hours."""
    order = list(KINDS)
    rows = [
        "| line | time | **drops** | records | lost, twice, out of order"
        " | round trip: median, 99 %, max | machine busy, daemons | late at most |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in sorted(found, key=lambda result: order.index(result["kind"])):
        rtt = ", ".join(f"{1000 * value:.1f}" for value in one["rtt"])
        rows.append(
            f"| {KINDS[one['kind']].told} | {one['seconds'] / 60:.1f} min | **{len(one['drops'])}**"
            f" | {one['published']:,} | {one['lost']}, {one['twice']}, {one['out_of_order']}"
            f" | {rtt} ms | {one['machine_busy']:.0%}, {one['daemons_busy']:.2f} cores"
            f" | {one['late']:.2f} s |"
        )
    rows += [f"\n{one['kind']}: {line}" for one in found for line in (*one["drops"], *one["wrong"])]
    return "\n".join(rows) + "\n"


def replace(text: str, figures: str) -> str:
    """Return a page with other figures between its two marks.

    Raises:
        ValueError: It has no marks.
    """
    before, mark, rest = text.partition(BEGIN)
    _, closing, after = rest.partition(END)
    if not mark or not closing:
        raise ValueError(f"expected the marks {BEGIN} and {END} in the page")
    return f"{before}{BEGIN}\n{figures}{END}{after}"


def write(folders: Sequence[Path]) -> list[Path]:
    """Put the figures of all results into the pages; return those that were changed."""
    changed = []
    for kind, figures in (("campaign", campaign_figures), ("steady", steady_figures)):
        if found := results(folders, kind):
            page = MEASUREMENTS / f"{kind}.md"
            page.write_text(replace(page.read_text(), figures(found)))
            changed.append(page)
    return changed
