"""`linkd subscribe`: print messages as they come."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from linkd.cli import exits
from linkd.cli.options import add_socket


def add(subparsers: Any) -> None:
    """Add the command's parser."""
    parser = subparsers.add_parser("subscribe", help="print messages as they come")
    add_socket(parser)
    parser.add_argument("patterns", nargs="+", metavar="PATTERN", help="*: one word, >: the rest")
    parser.add_argument("--consumer", default="", metavar="NAME", help="with a lasting cursor")
    parser.add_argument(
        "--from",
        dest="start",
        type=_start,
        default="latest",
        metavar="earliest|latest|OFFSET",
        help="where to begin; with a consumer only where that is new (default: latest)",
    )
    parser.add_argument("--count", type=int, metavar="N", help="end after so many")
    parser.add_argument("--json", action="store_true", help="one object a line")
    parser.set_defaults(run=run)


def _start(text: str) -> int | str:
    if text in ("earliest", "latest"):
        return text
    if text.isascii() and text.isdigit():
        return int(text)
    raise argparse.ArgumentTypeError(f"expected earliest, latest or an offset, got {text!r}")


def run(arguments: argparse.Namespace) -> int:
    """Print records until `--count`, ^C, or a closed pipe; goes on over restarts of the daemon."""
    from linkd.cli.following import follow  # noqa: PLC0415 - the loop is loaded where it is used

    if arguments.count is not None and arguments.count <= 0:
        return exits.FINE
    follow(arguments, sys.stdout)
    return exits.FINE
