"""`linkd events`: changes of links, past or as they happen."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from typing import Final

import msgspec

from linkd.cli import exits, http
from linkd.cli.exits import end_when_gone
from linkd.cli.options import add_socket, socket_path
from linkd.cli.output import json_text, printable
from linkd.client.errors import NoDaemon, Refused
from linkd.client.http import Answer, call, connected, expect
from linkd.status import Event

AGAIN_SECONDS: Final = 0.5
FINE: Final = 200
STARTING: Final = 503
SILENCE_SECONDS: Final = 60.0
"""The daemon sends a comment more often than that; a stream without any is dead."""


class _Page(msgspec.Struct, frozen=True):
    events: list[Event]
    next: int = 1


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's description, arguments and options."""
    parser.description = (
        "Print the changes of links, the last 10,000, oldest first. The attempts of one"
        " outage that had the same result are one line."
    )
    add_socket(parser)
    parser.add_argument(
        "--follow", "-f", action="store_true", help="go on with each change as it happens"
    )
    parser.add_argument("--json", action="store_true", help="print one object a line")


def run(arguments: argparse.Namespace) -> int:
    """Print the remembered changes, oldest first; with `--follow` each new one as it happens."""
    path = socket_path(arguments)
    page = http.get(arguments, "/v1/events").decode(_Page, "events")
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
    return expect(call(path, "GET", "/v1/events")).decode(_Page, "events").next - 1


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
