"""`linkd consumers`: list or delete named consumers."""

from __future__ import annotations

import argparse
from typing import Any

import msgspec

from linkd.cli import calls, exits
from linkd.cli.options import add_socket
from linkd.cli.text import cut, number, table


def add(subparsers: Any) -> None:
    """Add the command's parser."""
    parser = subparsers.add_parser(
        "consumers",
        help="list or delete named consumers",
        description="List the named consumers: the next offset that each wants, and how far it is"
        " behind the log's end.",
    )
    add_socket(parser)
    parser.add_argument("--delete", metavar="NAME", help="forget this consumer and its cursor")
    parser.add_argument("--json", action="store_true", help="print one object a line")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """List the consumers: next offset, and how many offsets lie between it and the log's end."""
    if arguments.delete is not None:
        calls.delete(arguments, f"/v1/consumers/{calls.quoted(arguments.delete)}")
        return exits.FINE
    found = calls.get(arguments, "/v1/consumers").json()["consumers"]
    if arguments.json:
        for one in found:
            print(msgspec.json.encode(one).decode())
    elif found:
        rows = [
            [cut(str(one["name"]), 40), number(one["next"]), number(one.get("lag_records"))]
            for one in found
        ]
        print("\n".join(table(("CONSUMER", "NEXT OFFSET", "BEHIND"), rows, frozenset((1, 2)))))
    else:
        print("no consumer has a name here")
    return exits.FINE
