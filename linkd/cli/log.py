"""`linkd log`: look into the log, verify it, trim it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import msgspec

from linkd.cli import calls, exits
from linkd.cli.options import add_socket, configuration
from linkd.cli.status import decode
from linkd.cli.text import number, plural, size
from linkd.client.errors import NoDaemon
from linkd.status import LogStatus


def add(subparsers: Any) -> None:
    """Add the command's parser with its three verbs."""
    parser = subparsers.add_parser("log", help="look into the log, verify it, trim it")
    verbs = parser.add_subparsers(metavar="VERB", dest="verb", required=True)
    stat = verbs.add_parser("stat", help="what lies in the log; without a daemon, from its files")
    stat.add_argument("--json", action="store_true", help="as an object")
    verify = verbs.add_parser("verify", help="read every file and say what is damaged")
    verify.add_argument("--json", action="store_true", help="as an object")
    trim = verbs.add_parser("trim", help="delete records below an offset")
    trim.add_argument("--before", type=int, required=True, metavar="OFFSET")
    trim.add_argument(
        "--yes", action="store_true", help="do it; without it only told what would be"
    )
    for verb, function in ((stat, _stat), (verify, _verify), (trim, _trim)):
        add_socket(verb)
        verb.set_defaults(run=function)
    for offline in (stat, verify):
        offline.add_argument("--dir", metavar="DIR", help="the log's directory, read as files")


def _stat(arguments: argparse.Namespace) -> int:
    """Print what the daemon says of its log; without a daemon, what the files say."""
    if arguments.dir is None:
        try:
            log = decode(calls.get(arguments, "/v1/status").body).log
        except NoDaemon:
            pass
        else:
            if arguments.json:
                print(msgspec.json.encode(log).decode())
            else:
                _print_log(log)
            return exits.FINE
    from linkd.log import stat  # noqa: PLC0415 - only where the files are read

    _print(stat(_directory(arguments)), arguments.json)
    return exits.FINE


def _print_log(log: LogStatus) -> None:
    """Print what the daemon says of its log."""
    offsets = plural(log.next - log.first, "offset")
    print(f"log {log.id}: {offsets}, {log.first:,} to {log.next - 1:,}")
    print(f"{size(log.bytes)} of {size(log.max_bytes)}")
    if log.full:
        print(f"publishes are refused: {log.full}")
    for loss in log.losses:
        print(loss)


def _verify(arguments: argparse.Namespace) -> int:
    """Read every file of the log; the answer is no (1) where something is damaged."""
    from linkd.log import verify  # noqa: PLC0415 - only where the files are read

    found = verify(_directory(arguments))
    _print(found, arguments.json)
    return exits.FINE if found.sound else exits.ANSWER_IS_NO


def _trim(arguments: argparse.Namespace) -> int:
    """Tell how many records lie below an offset; with `--yes` delete them."""
    answer = calls.post(
        arguments,
        "/v1/log/trim",
        {"before": arguments.before, "confirmed": bool(arguments.yes)},
    ).json()
    told = f"{plural(answer['records'], 'record')} below {number(arguments.before)}"
    owed = f"{number(answer['owed'])} of them still owed to a peer or consumer"
    if arguments.yes:
        print(f"deleted {told}, {owed}")
        return exits.FINE
    print(f"{told} would go, {owed}")
    print("nothing was changed; add --yes to do it")
    return exits.ANSWER_IS_NO


def _directory(arguments: argparse.Namespace) -> Path:
    """Return where the log's files lie."""
    if arguments.dir is not None:
        return Path(arguments.dir)
    return Path(configuration(arguments).node.state_dir) / "log"


def _print(found: Any, as_json: bool) -> None:
    """Print a struct, one field a line, or as JSON."""
    if as_json:
        print(msgspec.json.encode(found).decode())
        return
    for name, value in msgspec.to_builtins(found).items():
        if isinstance(value, list):
            for one in value:
                print(f"{name}: {one}")
        else:
            print(f"{name}: {value:,}" if isinstance(value, int) else f"{name}: {value}")
