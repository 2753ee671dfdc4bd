"""`linkd kick`, `linkd resync`, `linkd drain`: what an operator does to links."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Final

from linkd.cli import exits, http
from linkd.cli.exits import CommandError
from linkd.cli.options import add_socket, wait_seconds
from linkd.cli.output import duration, plural, printable
from linkd.status import DrainStatus

POLL_SECONDS: Final = 0.05
PROGRESS_SECONDS: Final = 1.0

CLOSE_SECONDS: Final = 5.0
"""Seconds for the links to close once they end; a peer that does not answer is cut after 3 s."""


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's description, arguments and options."""
    add_socket(parser)
    {"linkd kick": _add_kick, "linkd resync": _add_resync, "linkd drain": _add_drain}[parser.prog](
        parser
    )


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command."""
    return {"kick": _kick, "resync": _resync, "drain": _drain}[arguments.command](arguments)


def _add_kick(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Have the link to a peer try again at once, whatever its delay. A link that is"
        " up is left alone."
    )
    parser.add_argument("peer", metavar="PEER", help="whose link")


def _kick(arguments: argparse.Namespace) -> int:
    """Make the link to a peer retry at once, whatever its delay."""
    answer = http.post(arguments, f"/v1/peers/{http.quoted(arguments.peer)}/kick").json()
    if answer.get("state") == "up":
        print(f"{arguments.peer} is up: left alone")
    else:
        print(f"{arguments.peer} is tried again now: see `linkd status {arguments.peer}`")
    return exits.OK


def _add_resync(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Restart a link whose two ends no longer know each other's logs. Without"
        " --yes it only prints what would be sent again or lost."
    )
    parser.add_argument("peer", metavar="PEER", help="whose link")
    parser.add_argument(
        "--yes", action="store_true", help="do it; without it only print what would be done"
    )


def _resync(arguments: argparse.Namespace) -> int:
    """Print what a resync would send again or lose, and return 1; with `--yes` do it."""
    answer = http.post(
        arguments,
        f"/v1/peers/{http.quoted(arguments.peer)}/resync",
        {"confirmed": bool(arguments.yes)},
    ).json()
    print(printable(str(answer.get("message", ""))))
    if arguments.yes:
        return exits.OK
    print("nothing was changed; add --yes to do it")
    return exits.NEGATIVE


def _add_drain(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Take no new links, exchange the acknowledgements that are owed, end all links"
        " with a time to come back, and wait until they are gone. /readyz answers 503 meanwhile;"
        " the API works as before, and what is published waits in the log. The node drains until"
        " --undo or a restart. Of several instances ([cluster]) the one that answers drains: its"
        " links go to the others, and another one dials. Exit: 0 all links are gone, 5 some are"
        " left."
    )
    parser.add_argument(
        "--timeout",
        type=wait_seconds,
        default=10.0,
        metavar="SECONDS",
        help="end the links after so many seconds even if acknowledgements are missing (default:"
        " 10); nothing is lost, the rest is sent once the link is back",
    )
    parser.add_argument(
        "--retry-after",
        type=wait_seconds,
        default=1.0,
        metavar="SECONDS",
        help="when the peers should come back (default: 1); a peer with several URLs for this node"
        " tries the next one at once",
    )
    parser.add_argument("--undo", action="store_true", help="take links again")


def _drain(arguments: argparse.Namespace) -> int:
    """Drain the node and wait; with `--undo` end the drain."""
    if arguments.undo:
        was = http.get(arguments, "/v1/drain").decode(DrainStatus, "a drain")
        http.delete(arguments, "/v1/drain")
        print("links are taken again" if was.draining else "the node was not draining")
        return exits.OK
    began = time.monotonic()
    wanted = {"timeout": arguments.timeout, "retry_after": arguments.retry_after}
    now = http.post(arguments, "/v1/drain", wanted).decode(DrainStatus, "a drain")
    limit = began + arguments.timeout + CLOSE_SECONDS
    shown = ""
    shown_at = began
    try:
        while now.draining and not now.done and time.monotonic() < limit:
            time.sleep(POLL_SECONDS)
            now = http.get(arguments, "/v1/drain").decode(DrainStatus, "a drain")
            line = _drain_progress(now)
            is_due = time.monotonic() - shown_at >= PROGRESS_SECONDS
            if is_due and line != shown and not now.done:
                sys.stderr.write(f"linkd: {line}\n")
                shown, shown_at = line, time.monotonic()
    except KeyboardInterrupt:
        sys.stderr.write("linkd: the node goes on draining; `linkd drain --undo` ends that\n")
        raise
    return _drain_result(now, arguments.timeout)


def _drain_progress(now: DrainStatus) -> str:
    line = f"draining: {plural(now.links, 'link')} left"
    if now.unacknowledged:
        line += f", {now.unacknowledged:,} of them with acknowledgements owed"
    return line


def _drain_result(now: DrainStatus, timeout: float) -> int:
    """Print how the drain ended, and return the exit code."""
    if not now.draining:
        raise CommandError("somebody else has ended the drain", exits.NEGATIVE)
    if not now.done:
        raise CommandError(
            f"{plural(now.links, 'link')} left after {duration(timeout + CLOSE_SECONDS)};"
            " the node goes on draining",
            exits.TIMED_OUT,
        )
    owed = ""
    if now.owed_records:
        wait = "waits" if now.owed_records == 1 else "wait"
        owed = f"; {plural(now.owed_records, 'owed record')} {wait} in the log"
    print(f"drained in {duration(now.seconds)}, all links have ended{owed}")
    return exits.OK
