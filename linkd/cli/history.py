"""`linkd events` and `linkd outages`: changes of links, outages, and the availability of each."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Final
from urllib.parse import urlencode

import msgspec

from linkd.cli import exits, http
from linkd.cli.exits import end_when_gone
from linkd.cli.options import add_socket, socket_path
from linkd.cli.output import duration, json_text, number, print_json, printable, short, table
from linkd.client.errors import NoDaemon, Refused
from linkd.client.http import Answer, call, connected, expect
from linkd.status import Availability, Event, Outage

AGAIN_SECONDS: Final = 0.5
FINE: Final = 200
STARTING: Final = 503
SILENCE_SECONDS: Final = 60.0
"""The daemon sends a comment more often than that; a stream without any is dead."""

_UNITS: Final = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_HEAD: Final = ("BEGAN (UTC)", "PEER", "REASON", "NOTICED", "DOWN", "TRIES", "REPLAY", "DRAINED")


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's description, arguments and options."""
    add_socket(parser)
    (_add_events if parser.prog == "linkd events" else _add_outages)(parser)


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command."""
    return (_events if arguments.command == "events" else _outages)(arguments)


class _Events(msgspec.Struct, frozen=True):
    events: list[Event]
    next: int = 1


def _add_events(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Print the changes of links, the last 10,000, oldest first. The attempts of one"
        " outage that had the same result are one line."
    )
    parser.add_argument(
        "--follow", "-f", action="store_true", help="go on with each change as it happens"
    )
    parser.add_argument("--json", action="store_true", help="print one object a line")


def _events(arguments: argparse.Namespace) -> int:
    """Print the remembered changes, oldest first; with `--follow` each new one as it happens."""
    path = socket_path(arguments)
    page = http.get(arguments, "/v1/events").decode(_Events, "events")
    for event in page.events:
        _print(event, arguments.json)
    if not (page.events or arguments.json or arguments.follow):
        print("no link has changed")
    if arguments.follow:
        end_when_gone(sys.stdout)
        for event in _follow(path, page.next - 1):
            _print(event, arguments.json)
    return exits.OK


def _print(event: Event, as_json: bool) -> None:
    print(json_text(msgspec.json.encode(event)) if as_json else event_text(event), flush=True)


def event_text(event: Event) -> str:
    """Return an event in one line for people."""
    change = f" {event.old or '–'} -> {event.new}" if event.new else ""
    why = f" ({event.reason})" if event.reason else ""
    detail = f": {event.detail}" if event.detail else ""
    if event.until is not None:
        detail += f" ({event.count:,} times, the last at {event.until})"
    return printable(f"{event.time}  {event.peer or '–':<16} {event.event}{change}{why}{detail}")


def _follow(path: str, last: int) -> Iterator[Event]:
    """Yield events after number `last` forever, across restarts of the daemon."""
    while True:
        try:
            if _newest(path) < last:
                last = 0  # its history was lost, and it counts from the beginning
            for event in _stream(path, last):
                last = event.number
                yield event
        except (NoDaemon, Refused) as error:
            if isinstance(error, Refused) and error.status != STARTING:
                raise
            sys.stderr.write(f"linkd: {error}; trying again\n")
        time.sleep(AGAIN_SECONDS)


def _newest(path: str) -> int:
    """Return the number of the daemon's newest event; raise NoDaemon if none runs."""
    return expect(call(path, "GET", "/v1/events")).decode(_Events, "events").next - 1


def _stream(path: str, last: int) -> Iterator[Event]:
    """Yield the events of one event stream until it ends."""
    with connected(path, SILENCE_SECONDS) as exchange:
        exchange.send(
            "GET",
            "/v1/events",
            headers={"Accept": "text/event-stream", "Last-Event-ID": str(last)},
        )
        if exchange.status != FINE:
            expect(Answer(exchange.status, exchange.headers, b"".join(exchange.pieces())))
        for line in exchange.lines():
            if line.startswith(b"data:"):
                yield msgspec.json.decode(line[5:], type=Event)


class _Outages(msgspec.Struct, frozen=True):
    outages: list[Outage]
    availability: list[Availability] = []


def _add_outages(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Print every outage, oldest first, and the share of the last hour, day, week"
        " and month in which each link was up, of the time in which that was measured."
    )
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


def _outages(arguments: argparse.Namespace) -> int:
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
    page = answer.decode(_Outages, "outages")
    if arguments.no_planned:
        page = _Outages([one for one in page.outages if not is_planned(one)], page.availability)
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
