"""`linkd outages`: every outage, and the availability of each link."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlencode

import msgspec

from linkd.cli import exits, http
from linkd.cli.options import add_socket
from linkd.cli.output import duration, number, print_json, short, table
from linkd.status import Availability, Outage

_UNITS: Final = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_HEAD: Final = ("BEGAN (UTC)", "PEER", "REASON", "NOTICED", "DOWN", "TRIES", "REPLAY", "DRAINED")


class _Page(msgspec.Struct, frozen=True):
    outages: list[Outage]
    availability: list[Availability] = []


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's description, arguments and options."""
    parser.description = (
        "Print every outage, oldest first, and the share of the last hour, day, week"
        " and month in which each link was up, of the time in which that was measured."
    )
    add_socket(parser)
    parser.add_argument("peer", nargs="?", metavar="PEER", help="only this link")
    parser.add_argument(
        "--since",
        type=span,
        metavar="SPAN",
        default=None,
        help="only what fell into the last 90s, 15m, 24h, 7d, 2w",
    )
    parser.add_argument(
        "--no-drills", action="store_true", help="leave out what drills on this node made"
    )
    parser.add_argument(
        "--no-planned",
        action="store_true",
        help="leave out planned ones: a restart, reload or upgrade of either end",
    )
    parser.add_argument("--json", action="store_true", help="print one object a line")


def span(text: str) -> float:
    """Return the seconds that `90`, `90s`, `15m`, `24h`, `7d` or `2w` mean."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw]?)", text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(
            f"expected a time such as 90s, 15m, 24h or 7d, got {text!r}"
        )
    return float(match[1]) * _UNITS[match[2]]


def run(arguments: argparse.Namespace) -> int:
    """Print the outages, oldest first; for people also each link's availability."""
    query = {
        name: value
        for name, value in (
            ("peer", arguments.peer),
            ("since", arguments.since),
            ("drills", 0 if arguments.no_drills else None),
        )
        if value is not None
    }
    answer = http.get(arguments, "/v1/outages" + (f"?{urlencode(query)}" if query else ""))
    page = answer.decode(_Page, "outages")
    if arguments.no_planned:
        page = _Page([one for one in page.outages if not is_planned(one)], page.availability)
    if arguments.json:
        for one in page.outages:
            print_json(one)
        return exits.OK
    for line in [*outages_text(page.outages), *availability_text(page.availability)]:
        print(line)
    return exits.OK


def is_planned(outage: Outage) -> bool:
    """Return whether one end was stopped on purpose, with a goodbye."""
    return outage.reason == "stopped"


def outages_text(outages: Sequence[Outage]) -> list[str]:
    """Return the table of outages; one that has not ended has a + after its duration."""
    if not outages:
        return ["no outage is recorded"]
    rows = [
        [
            one.began[5:19].replace("T", " "),
            one.peer,
            one.reason
            + (" planned" if is_planned(one) else "")
            + (" never up" if one.never_up else "")
            + (" drill" if one.drill else ""),
            duration(one.noticed_after_seconds),
            duration(one.down_seconds) + ("+" if one.ongoing else ""),
            number(one.attempts),
            short(one.replayed_records),
            duration(one.drained_seconds),
        ]
        for one in outages
    ]
    return table(_HEAD, rows, frozenset(range(3, len(_HEAD))))


def availability_text(found: Sequence[Availability]) -> list[str]:
    """Return the table of availability by link and window."""
    if not found:
        return []
    rows = [
        [
            one.peer,
            *(_percent(share) for share in (one.hour, one.day, one.week, one.month)),
            "–" if one.measured_since is None else one.measured_since[:16].replace("T", " "),
        ]
        for one in found
    ]
    head = ("AVAILABLE IN THE LAST", "1h", "24h", "7d", "30d", "MEASURED SINCE (UTC)")
    return ["", *table(head, rows, frozenset(range(1, 5)))]


def _percent(share: float | None) -> str:
    """Return a share in percent, never rounded up to 100 %; a dash if unknown."""
    if share is None:
        return "–"
    if share >= 1.0:
        return "100%"
    return f"{min(share * 100, 99.999):.3f}%"
