"""`linkd log`: look into the log, verify it, trim it; set one up in PostgreSQL."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from linkd.cli import exits, http
from linkd.cli.exits import CommandError
from linkd.cli.options import add_config, add_socket, configuration
from linkd.cli.output import disk_stalled, number, plural, print_json, size
from linkd.cli.status import fetch_status
from linkd.client.errors import NoDaemon
from linkd.errors import ConfigError
from linkd.status import LogStatus

if TYPE_CHECKING:
    from linkd.log.inspect import Stat, Verified


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's description, arguments and options."""
    parser.description = "Look into the node's log, verify it, trim it; set one up in PostgreSQL."
    verbs = parser.add_subparsers(metavar="VERB", dest="verb", required=True)
    stat = verbs.add_parser(
        "stat",
        help="what is in the log; without a daemon, from its files",
        description="Print what is in the log, as the daemon reports it; without a daemon, or"
        " with --dir, read from the files.",
    )
    stat.add_argument("--json", action="store_true", help="print an object")
    verify = verbs.add_parser(
        "verify",
        help="read every file and report damage",
        description="Read every file of the log, beside a running daemon or without one, and"
        " report damage. Exit code 1 if anything is damaged.",
    )
    verify.add_argument("--json", action="store_true", help="print an object")
    verify.add_argument("--segment", metavar="FILE", help="read only this segment of the log")
    trim = verbs.add_parser(
        "trim",
        help="delete records below an offset",
        description="Delete records below an offset, owed ones too, in whole files: peers and"
        " consumers that wanted them get a gap notice. Without --yes it only counts them.",
    )
    trim.add_argument(
        "--before", type=_offset, required=True, metavar="OFFSET", help="delete the records below"
    )
    trim.add_argument(
        "--yes", action="store_true", help="do it; without it only print what would be done"
    )
    for verb in (stat, verify, trim):
        add_socket(verb)
    _add_postgresql(verbs)
    for offline in (stat, verify):
        offline.add_argument("--dir", metavar="DIR", help="the log's directory, read as files")


def run(arguments: argparse.Namespace) -> int:
    """Carry out one of the verbs."""
    verbs = {"stat": _stat, "verify": _verify, "trim": _trim, "copy": _copy}
    return verbs.get(arguments.verb, _init)(arguments)


def _add_postgresql(verbs: Any) -> None:
    """Add the verbs for a log in PostgreSQL."""
    owner = (
        "the connection string of the tables' owner, which may create a schema; default: as the"
        " daemon connects"
    )
    init = verbs.add_parser(
        "init",
        help="create the tables of a log in PostgreSQL",
        description="Create the tables of a log in the database of [log.postgresql], as their"
        " owner, and let the daemon's role use them. Does nothing where they are there.",
    )
    migrate = verbs.add_parser(
        "migrate",
        help="bring the tables in PostgreSQL to this version's format",
        description="Bring the tables in PostgreSQL to the format of this version, as their owner,"
        " while linkd is stopped; grant the daemon's role what it needs.",
    )
    for verb in (init, migrate):
        verb.add_argument("--dsn", metavar="DSN", help=owner)
    copy = verbs.add_parser(
        "copy",
        help="copy the log into PostgreSQL, or back into files",
        description="Copy the log and its cursors into PostgreSQL, or back into files, while"
        " linkd is stopped.",
    )
    copy.add_argument(
        "--to", choices=("postgresql", "segments"), required=True, help="where the log goes"
    )
    for verb in (init, migrate, copy):
        add_config(verb)


def _init(arguments: argparse.Namespace) -> int:
    """Create the tables, or check them."""
    config = configuration(arguments)
    initialise, _, _ = _setup()
    print(initialise(config.log, arguments.dsn))
    return exits.OK


def _copy(arguments: argparse.Namespace) -> int:
    """Copy the log to the other engine."""
    config = configuration(arguments)
    _, copy_in, copy_out = _setup()
    from linkd.host import lock_state_dir  # noqa: PLC0415 - only where it is needed

    state = Path(config.node.state_dir)
    held = lock_state_dir(str(state))
    try:
        copy = copy_in if arguments.to == "postgresql" else copy_out
        print(copy(config.log, state, config.node.name, print))
    finally:
        os.close(held)
    return exits.OK


def _setup() -> Any:
    """Return the functions that create tables and copy logs; psycopg may be missing."""
    try:
        from linkd.log.postgresql.setup import (  # noqa: PLC0415 - psycopg is optional
            copy_in,
            copy_out,
            initialise,
        )
    except ImportError as error:
        raise CommandError(
            f"it needs psycopg ({error}): install linkd-daemon[postgresql]"
        ) from None
    return initialise, copy_in, copy_out


def _offset(text: str) -> int:
    if text.isascii() and text.isdigit():
        return int(text)
    raise argparse.ArgumentTypeError(f"expected an offset, got {text!r}")


def _stat(arguments: argparse.Namespace) -> int:
    """Print the state of the log, from the daemon or without one from its files."""
    absent = None
    if arguments.dir is None:
        try:
            log = fetch_status(arguments).log
        except NoDaemon as error:
            absent = error
        else:
            if arguments.json:
                print_json(log)
            else:
                _print_log(log)
            return exits.OK
    from linkd.log import stat  # noqa: PLC0415 - only where the files are read

    try:
        found = stat(_directory(arguments))
    except (ConfigError, CommandError) as error:
        if absent is None:
            raise
        raise CommandError(f"{absent}; and of its files: {error}", exits.NO_DAEMON) from None
    if arguments.json:
        print_json(found)
    else:
        print("\n".join(stat_text(found)))
    return exits.OK


def stat_text(found: Stat) -> list[str]:
    """Return the content of the files, in lines of text."""
    held = f"{plural(found.records, 'record')} in {plural(found.segments, 'segment')}"
    return [
        f"log {found.id or 'without an id'}: {_reach(found.first, found.next)}",
        f"{held}, {size(found.bytes)}",
        *(f"  {channel}: {plural(count, 'record')}" for channel, count in found.channels.items()),
    ]


def _reach(first: int, next: int) -> str:
    """Return which offsets there are."""
    if next <= first:
        return f"empty, the next offset is {next:,}"
    return f"{plural(next - first, 'offset')}, {first:,} to {next - 1:,}"


def _print_log(log: LogStatus) -> None:
    """Print the daemon's report on its log."""
    print(f"log {log.id}: {_reach(log.first, log.next)}")
    print(f"{size(log.bytes)} of {size(log.max_bytes)}")
    if log.full:
        print(f"publishes are refused: {log.full}")
    if log.stalled_seconds is not None:
        print(disk_stalled(log.stalled_seconds))
    for loss in log.losses:
        print(loss)


def _verify(arguments: argparse.Namespace) -> int:
    """Read every file of the log; return 1 if anything is damaged."""
    from linkd.log import verify, verify_segment  # noqa: PLC0415 - only where the files are read

    if arguments.segment is not None:
        directory = Path(arguments.segment)
        found = verify_segment(directory)
    else:
        directory = _directory(arguments)
        found = verify(directory)
    if arguments.json:
        print_json(found)
    else:
        print("\n".join(verified_text(found, directory)))
    return exits.OK if found.sound else exits.NEGATIVE


def verified_text(found: Verified, directory: Path) -> list[str]:
    """Return what was read and its damage, in lines of text."""
    read = (
        f"{plural(found.segments, 'segment')}, {plural(found.records, 'record')},"
        f" {size(found.bytes)} in {directory}"
    )
    notes = [f"  note: {one}" for one in found.notes]
    if found.sound:
        return [f"no damage found; read and checked: {read}", *notes]
    what = [f"  {one}" for one in found.damage]
    return [f"DAMAGED, see below; what is readable: {read}", *what, *notes]


def _trim(arguments: argparse.Namespace) -> int:
    """Print how many records are below an offset; with `--yes` delete them."""
    answer = http.post(
        arguments,
        "/v1/log/trim",
        {"before": arguments.before, "confirmed": bool(arguments.yes)},
    ).json()
    below = number(arguments.before)
    owed = f"{number(answer['owed'])} below it still owed to a peer or consumer"
    if not arguments.yes:
        print(f"up to {plural(answer['records'], 'record')} below {below} would go, {owed}")
        print("nothing was changed; add --yes to do it")
        return exits.NEGATIVE
    if answer["records"]:
        print(f"deleted {plural(answer['records'], 'record')} below {below}, {owed}")
    else:
        print(f"nothing to delete: only whole files go, and none is entirely below {below}")
    return exits.OK


def _directory(arguments: argparse.Namespace) -> Path:
    """Return the log's directory.

    Raises:
        CommandError: There is no such directory.
    """
    if arguments.dir is not None:
        directory = Path(arguments.dir)
    else:
        directory = Path(configuration(arguments).node.state_dir) / "log"
    try:
        names = [path.name for path in directory.iterdir()]
        if "lock" in names or "identity" in names or any(one.endswith(".log") for one in names):
            return directory
        problem = "it has no log"
    except OSError as error:
        problem = error.strerror or str(error)
    raise CommandError(f"{directory}: {problem}; use --dir or -c to name the log's directory")
