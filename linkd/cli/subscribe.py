"""`linkd subscribe`: print messages as they come."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from linkd.cli import calls, exits
from linkd.cli.options import add_socket
from linkd.cli.status import decode


def add(subparsers: Any) -> None:
    """Add the command's parser."""
    parser = subparsers.add_parser(
        "subscribe",
        help="print messages as they come",
        description="Print messages as they come, until --count, ^C or the end of a pipe; goes on"
        " over restarts of the daemon.",
    )
    add_socket(parser)
    parser.add_argument(
        "patterns",
        nargs="+",
        metavar="PATTERN",
        help="a channel, or a pattern: * is one word, > is the rest (quote it)",
    )
    parser.add_argument(
        "--consumer",
        default="",
        metavar="NAME",
        help="go on where that consumer stood, and acknowledge what is printed",
    )
    parser.add_argument(
        "--from",
        dest="start",
        type=_start,
        default="latest",
        metavar="earliest|latest|OFFSET",
        help="where to begin; with a consumer only where that is new (default: latest)",
    )
    parser.add_argument("--count", type=_count, metavar="N", help="end after so many messages")
    parser.add_argument("--json", action="store_true", help="print one object a line")
    parser.set_defaults(run=run)


def _start(text: str) -> int | str:
    if text in ("earliest", "latest"):
        return text
    if text.isascii() and text.isdigit():
        return int(text)
    raise argparse.ArgumentTypeError(f"expected earliest, latest or an offset, got {text!r}")


def _count(text: str) -> int:
    if text.isascii() and text.isdigit():
        return int(text)
    raise argparse.ArgumentTypeError(f"expected how many messages, got {text!r}")


def _tell_where(arguments: argparse.Namespace) -> None:
    """Say so where the log does not go as far as the offset asked for: it begins at the end."""
    status = decode(calls.get(arguments, "/v1/status").body)
    stands = any(
        (one.owner, one.name) == ("socket", arguments.consumer) for one in status.consumers
    )
    if arguments.start > status.log.next and not stands:
        sys.stderr.write(
            f"linkd: offset {arguments.start:,} is not there yet: the log's next offset is"
            f" {status.log.next:,}; waiting for what comes, from there on\n"
        )


def run(arguments: argparse.Namespace) -> int:
    """Print records until `--count`, ^C, or a closed pipe; goes on over restarts of the daemon."""
    from linkd.cli.following import follow  # noqa: PLC0415 - the loop is loaded where it is used

    if arguments.count == 0:
        return exits.FINE
    if isinstance(arguments.start, int):
        _tell_where(arguments)
    follow(arguments, sys.stdout)
    return exits.FINE
