"""`linkd consumers`: list, delete or move named consumers."""

from __future__ import annotations

import argparse
from urllib.parse import quote

from linkd.cli import exits, http
from linkd.cli.options import add_socket
from linkd.cli.output import cut, number, print_json, table


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's description, arguments and options."""
    parser.description = (
        "List the named consumers as OWNER/NAME: the next offset that each wants, how"
        " many records of its patterns it has yet to read, and how many offsets of all channels"
        " there are up to the log's end. The owner is the key that has the name, or `socket`;"
        " a NAME without an owner is the socket's."
    )
    add_socket(parser)
    change = parser.add_mutually_exclusive_group()
    change.add_argument(
        "--delete", metavar="OWNER/NAME", help="forget this consumer and its cursor"
    )
    change.add_argument(
        "--move",
        nargs=2,
        metavar=("OLD/NAME", "NEW/NAME"),
        help="give a consumer another owner or name: for a renamed key, or an application that"
        " calls with a key from now on",
    )
    parser.add_argument("--json", action="store_true", help="print one object a line")


def run(arguments: argparse.Namespace) -> int:
    """List the consumers: next offset, records to read, and distance to the end of the log."""
    if arguments.delete is not None:
        http.delete(arguments, _path(arguments.delete))
        return exits.OK
    if arguments.move is not None:
        old, new = arguments.move
        owner, name = _split(new)
        http.post(arguments, _path(old, "/move"), {"owner": owner, "name": name})
        return exits.OK
    found = http.get(arguments, "/v1/consumers").json()["consumers"]
    if arguments.json:
        for one in found:
            print_json(one)
    elif found:
        rows = [
            [
                cut(f"{one['owner']}/{one['name']}", 60),
                number(one["next"]),
                number(one.get("pending_records")),
                number(one.get("lag_records")),
            ]
            for one in found
        ]
        head = ("CONSUMER", "NEXT OFFSET", "TO READ", "OFFSETS TO END")
        print("\n".join(table(head, rows, frozenset((1, 2, 3)))))
    else:
        print("no consumer has a name here")
    return exits.OK


def _split(given: str) -> tuple[str, str]:
    """Return owner and name of a consumer; a name alone is the socket's."""
    owner, slash, name = given.partition("/")
    return (owner, name) if slash else ("socket", owner)


def _path(given: str, action: str = "") -> str:
    """Return the path of a consumer, or of an action on it."""
    owner, name = _split(given)
    return f"/v1/consumers/{http.quoted(name)}{action}?owner={quote(owner, safe='')}"
