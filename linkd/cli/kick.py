"""`linkd kick`."""

from __future__ import annotations

import argparse

from linkd.cli import exits, http
from linkd.cli.options import add_socket


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's description, arguments and options."""
    parser.description = (
        "Have the link to a peer try again at once, whatever its delay. A link that is"
        " up is left alone."
    )
    add_socket(parser)
    parser.add_argument("peer", metavar="PEER", help="whose link")


def run(arguments: argparse.Namespace) -> int:
    """Make the link to a peer retry at once, whatever its delay."""
    answer = http.post(arguments, f"/v1/peers/{http.quoted(arguments.peer)}/kick").json()
    if answer.get("state") == "up":
        print(f"{arguments.peer} is up: left alone")
    else:
        print(f"{arguments.peer} is tried again now: see `linkd status {arguments.peer}`")
    return exits.OK
