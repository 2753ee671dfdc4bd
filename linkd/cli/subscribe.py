"""`linkd subscribe`: print messages as they arrive."""

from __future__ import annotations

import argparse
import re
import sys

from linkd.cli import exits
from linkd.cli.options import add_socket
from linkd.cli.status import fetch_status
from linkd.client.options import MAX_OFFSET
from linkd.protocol.channels import check_patterns


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's description, arguments and options."""
    parser.description = (
        "Print messages as they come, until --count, ^C or the end of a pipe; goes on"
        " over restarts of the daemon."
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
        type=_consumer,
        metavar="NAME",
        help="go on where that consumer stood, and acknowledge what is printed",
    )
    parser.add_argument(
        "--from",
        dest="start",
        type=_start,
        default=None,
        metavar="earliest|latest|OFFSET",
        help="where to begin; with a consumer only where that is new (default: latest)",
    )
    parser.add_argument("--count", type=_count, metavar="N", help="end after so many messages")
    parser.add_argument("--json", action="store_true", help="print one object a line")


def _consumer(text: str) -> str:
    from linkd.config.settings import CONSUMER_NAME_PATTERN  # noqa: PLC0415 - only here

    if re.fullmatch(CONSUMER_NAME_PATTERN, text):
        return text
    raise argparse.ArgumentTypeError(
        f"{text[:63]!r} is no consumer's name: expected 1 to 63 letters, digits, '.', '_' or '-',"
        " the first a letter or a digit"
    )


def _start(text: str) -> int | str:
    if text in ("earliest", "latest"):
        return text
    if text.isascii() and text.isdigit() and int(text) <= MAX_OFFSET:
        return int(text)
    raise argparse.ArgumentTypeError(f"expected earliest, latest or an offset, got {text!r}")


def _count(text: str) -> int:
    if text.isascii() and text.isdigit():
        return int(text)
    raise argparse.ArgumentTypeError(f"expected how many messages, got {text!r}")


def _start_notice(arguments: argparse.Namespace) -> str | None:
    """Return a notice about the start of reading, if the caller may expect another."""
    status = fetch_status(arguments)
    log, name = status.log, arguments.consumer
    # One that a linkd before owners made goes on at its cursor for the first that asks.
    owners = ("socket", "unowned")
    found = {one.owner: one.next for one in status.consumers if one.name == name}
    known = [found[owner] for owner in owners if owner in found]
    if known:
        goes_on = f"consumer {name!r} goes on at offset {known[0]:,}; --from does not count"
        return None if arguments.start is None else goes_on
    if isinstance(arguments.start, int) and arguments.start > log.next:
        return (
            f"offset {arguments.start:,} is not there yet: the log's next offset is"
            f" {log.next:,}; waiting for what comes, from there on"
        )
    if name and arguments.start is None:
        return (
            f"new consumer {name!r} begins now, at offset {log.next:,};"
            " --from earliest prints what is there"
        )
    return None


def run(arguments: argparse.Namespace) -> int:
    """Print records until `--count`, ^C or a closed pipe, across restarts of the daemon."""
    from linkd.cli.streaming import follow  # noqa: PLC0415 - the loop is loaded where it is used

    if arguments.count == 0:
        return exits.OK
    check_patterns(arguments.patterns)  # before a notice, which would promise what is refused
    if arguments.consumer or isinstance(arguments.start, int):
        notice = _start_notice(arguments)
        if notice is not None:
            sys.stderr.write(f"linkd: {notice}\n")
    if arguments.start is None:
        arguments.start = "latest"
    follow(arguments, sys.stdout)
    return exits.OK
