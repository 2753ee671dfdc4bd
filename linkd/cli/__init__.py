"""The `linkd` command: commands in modules by subject, loaded on demand for a fast start."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from linkd.cli import exits
from linkd.cli.exits import CommandError, ReaderGone
from linkd.cli.options import StrictParser, add_socket
from linkd.client.errors import NoDaemon, TimedOut
from linkd.errors import ConfigError, LinkdError
from linkd.version import VERSION

__all__ = ["main"]

COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("run", "run the node in the foreground"),
    "check": ("check", "check the configuration and show what is in force"),
    "status": ("status", "the state of every link"),
    "instances": ("instances", "the instances that serve this node"),
    "publish": ("publish", "publish one message, or one a line"),
    "subscribe": ("subscribe", "print messages as they come"),
    "consumers": ("consumers", "list, delete or move named consumers"),
    "events": ("history", "changes of links"),
    "outages": ("history", "every outage: noticed after, down for, why; availability"),
    "kick": ("links", "have a link try again at once"),
    "log": ("log", "look into the log, verify it, trim it, keep it in PostgreSQL"),
    "token": ("token", "a token that opens one connection, or the dashboard"),
    "drill": ("drill", "inject a fault and judge the outcome"),
    "resync": ("links", "restart a diverged link"),
    "drain": ("links", "end all links ahead of a restart or maintenance"),
    "invite": ("pairing", "make a code that lets another node join"),
    "join": ("pairing", "join a node by its code"),
    "peers": ("pairing", "list the peers that were paired"),
    "revoke": ("pairing", "take a pairing back"),
    "report": ("report", "write one file for a bug report, without secrets"),
    "completion": ("completion", "print what bash, zsh or fish needs to complete commands"),
    "version": ("run", "print the version"),
}
"""Command: its module in `linkd.cli`, and one line of help.

A module has `add(parser)`, which adds description, arguments and options, and `run(arguments)`,
which returns the exit code.
"""

GROUPS: dict[str, tuple[str, ...]] = {
    "look": ("status", "instances", "events", "outages", "consumers", "log", "peers", "report"),
    "messages": ("publish", "subscribe", "token"),
    "set up": ("check", "invite", "join", "revoke", "completion"),
    "act on a link": ("kick", "resync", "drill"),
    "the daemon": ("run", "drain", "version"),
}
"""The commands as `linkd help` lists them."""

_TAKES_VALUE = ("-c", "--config", "--socket")

_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF, errno.EROFS)
"""Errors of an output that can't be written any more: a full disk, a closed terminal."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; raises only for a bug.

    Args:
        argv: What follows the program's name; None: the process's.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    _open_streams()
    try:
        command = _command(words)
        if command == "help":  # linkd help, linkd help COMMAND
            words = [*words[words.index("help") + 1 :], "--help"]
            command = _command(words)
        if command is None and (not words or {"-h", "--help"} & {*words}):
            print(_overview())
            return exits.OK
        if command is not None and command not in COMMANDS:
            raise CommandError(_unknown(command))
        arguments = _parser(command).parse_args(words)
        code = int(_loaded(arguments.command).run(arguments))
        sys.stdout.flush()
        return code
    except (BrokenPipeError, ReaderGone):
        _close_quietly()
        return exits.OK
    except KeyboardInterrupt:
        return exits.INTERRUPTED
    except SystemExit as end:  # The parser has printed the error, or its help.
        return end.code if isinstance(end.code, int) else exits.USAGE
    except UnicodeEncodeError as error:
        return _report(CommandError(f"expected UTF-8, got {error.object!r}"))
    except (CommandError, ConfigError, LinkdError) as error:
        return _report(error)
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        _close_quietly()
        return _report(CommandError(f"cannot write the output: {error.strerror}"))


def _report(error: Exception) -> int:
    """Print an error, each of a configuration's on its own line, and return its exit code."""
    message = str(error) or type(error).__name__
    if isinstance(error, NoDaemon) and message.startswith("no daemon at "):
        message += "; `systemctl status linkd` shows whether it runs, --socket names another"
    with contextlib.suppress(OSError):  # The exit code still reports it.
        for line in message.splitlines() if isinstance(error, ConfigError) else [message]:
            sys.stderr.write(f"linkd: {line}\n")
    if isinstance(error, CommandError):
        return error.code
    if isinstance(error, ConfigError):
        return exits.USAGE
    if isinstance(error, NoDaemon):
        return exits.NO_DAEMON
    if isinstance(error, TimedOut):
        return exits.TIMED_OUT
    return exits.REFUSED


def _command(words: Sequence[str]) -> str | None:
    """Return the first word that is neither an option nor an option's value."""
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word in _TAKES_VALUE:
            skip = True
        elif not word.startswith("-"):
            return word
    return None


def _overview() -> str:
    """Return the list of commands, grouped by purpose."""
    lines = [
        "usage: linkd [-c FILE] [--socket PATH] COMMAND ...",
        "",
        "A resilient link between servers. `linkd COMMAND --help` has options and examples.",
    ]
    for group, names in GROUPS.items():
        lines += ["", f"{group}:", *(f"    {name:<12} {COMMANDS[name][1]}" for name in names)]
    return "\n".join(lines)


def _unknown(command: str) -> str:
    """Return the error for an unknown command."""
    near = difflib.get_close_matches(command, COMMANDS, 1)
    meant = f" (did you mean {near[0]!r}?)" if near else ""
    return f"there is no command {command[:60]!r}{meant}: `linkd help` lists them"


def _parser(command: str | None) -> argparse.ArgumentParser:
    """Return a parser that knows `command` in full and the others by name."""
    parser = StrictParser(prog="linkd", description="A resilient link between servers.")
    parser.add_argument("--version", action="version", version=f"linkd {VERSION}")
    add_socket(parser)
    subparsers = parser.add_subparsers(
        metavar="COMMAND", dest="command", required=True, parser_class=StrictParser
    )
    for name, (_, line) in COMMANDS.items():
        below = subparsers.add_parser(name, help=line)
        if name == command:
            _loaded(name).add(below)
    return parser


def _loaded(command: str) -> ModuleType:
    """Import a command's module; a ^C meanwhile takes effect afterwards.

    A ^C while an extension module is being loaded can crash the process.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return importlib.import_module(f"linkd.cli.{COMMANDS[command][0]}")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _open_streams() -> None:
    """Replace missing standard streams (`2>&-`) by /dev/null, so that writes don't fail."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - for the process


def _close_quietly() -> None:
    """Discard the interpreter's last flush: the reader of our output is gone."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
