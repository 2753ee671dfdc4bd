"""`linkd outages`: every outage, and how much of the time each link was up."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlencode

import msgspec

from linkd.cli import calls, exits
from linkd.cli.options import add_socket
from linkd.cli.text import cut, duration, number, short, table
from linkd.client.errors import ClientError
from linkd.status import Outage

WINDOWS: Final = (("1h", 3600.0), ("24h", 86_400.0), ("7d", 604_800.0), ("30d", 2_592_000.0))
_UNITS: Final = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_HEAD: Final = ("BEGAN (UTC)", "PEER", "REASON", "NOTICED", "DOWN", "TRIES", "REPLAY", "DRAINED")


class _Page(msgspec.Struct, frozen=True):
    outages: list[Outage]


def add(subparsers: Any) -> None:
    """Add the command's parser."""
    parser = subparsers.add_parser(
        "outages",
        help="every outage: noticed after, down for, why; availability",
        description="Print every outage, oldest first, and the share of the last hour, day, week"
        " and month in which each link was up.",
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
    parser.add_argument("--json", action="store_true", help="print one object a line")
    parser.set_defaults(run=run)


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
    now = datetime.now(UTC)
    month = WINDOWS[-1][1]
    wanted = arguments.since
    asked = None if wanted is None else max(wanted, month)
    query = {
        name: value
        for name, value in (("peer", arguments.peer), ("since", asked))
        if value is not None
    }
    answer = calls.get(arguments, "/v1/outages" + (f"?{urlencode(query)}" if query else ""))
    found = _decode(answer.body)
    shown = [one for one in found if wanted is None or _ago(one, now) - _down(one, now) <= wanted]
    if arguments.json:
        for one in shown:
            print(msgspec.json.encode(one).decode())
        return exits.FINE
    print("\n".join(outages_text(shown)))
    peers = [arguments.peer] if arguments.peer else sorted({one.peer for one in found})
    for line in availability_text(found, peers, now):
        print(line)
    return exits.FINE


def _decode(body: bytes) -> list[Outage]:
    try:
        return msgspec.json.decode(body, type=_Page).outages
    except msgspec.DecodeError as error:
        raise ClientError(f"expected outages from the daemon: {error}") from None


def _ago(outage: Outage, now: datetime) -> float:
    """Return how long ago it began, in seconds."""
    return (now - datetime.fromisoformat(outage.began)).total_seconds()


def _down(outage: Outage, now: datetime) -> float:
    """Return how long it was or has been down, in seconds."""
    return _ago(outage, now) if outage.down_seconds is None else outage.down_seconds


def outages_text(outages: Sequence[Outage]) -> list[str]:
    """Return the table of outages, 80 columns wide."""
    if not outages:
        return ["no outage is recorded"]
    rows = [
        [
            one.began[5:19].replace("T", " "),
            cut(one.peer, 9),
            cut(one.reason, 12),
            duration(one.noticed_after_seconds),
            "still" if one.down_seconds is None else duration(one.down_seconds),
            number(one.attempts),
            short(one.replayed_records),
            duration(one.drained_seconds),
        ]
        for one in outages
    ]
    return table(_HEAD, rows, frozenset(range(3, len(_HEAD))))


def availability(outages: Iterable[Outage], window: float, now: datetime) -> float:
    """Return the share of the last `window` seconds in which a link was up, 0 to 1."""
    down = 0.0
    for one in outages:
        began = _ago(one, now)
        ended = max(0.0, began - _down(one, now))
        down += max(0.0, min(began, window) - ended)
    return max(0.0, 1.0 - down / window)


def availability_text(outages: Sequence[Outage], peers: Sequence[str], now: datetime) -> list[str]:
    """Return the table of availability by link and window."""
    if not peers:
        return []
    rows = [
        [
            cut(peer, 30),
            *(
                _percent(availability([one for one in outages if one.peer == peer], window, now))
                for _, window in WINDOWS
            ),
        ]
        for peer in peers
    ]
    head = ("AVAILABLE IN THE LAST", *(name for name, _ in WINDOWS))
    return ["", *table(head, rows, frozenset(range(1, 5)))]


def _percent(share: float) -> str:
    """Return a share in percent, never rounded up to 100 %."""
    if share >= 1.0:
        return "100%"
    return f"{min(share * 100, 99.999):.3f}%"
