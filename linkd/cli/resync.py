"""`linkd resync`: restart a link whose two ends no longer know each other's logs."""

from __future__ import annotations

import argparse

from linkd.cli import exits, http
from linkd.cli.options import add_socket
from linkd.cli.output import printable


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's description, arguments and options."""
    parser.description = (
        "Restart a link whose two ends no longer know each other's logs. Without"
        " --yes it only prints what would be sent again or lost."
    )
    add_socket(parser)
    parser.add_argument("peer", metavar="PEER", help="whose link")
    parser.add_argument(
        "--yes", action="store_true", help="do it; without it only print what would be done"
    )


def run(arguments: argparse.Namespace) -> int:
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
