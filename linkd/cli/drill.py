"""`linkd drill`: faults made on purpose, with a verdict."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import msgspec

from linkd.cli import exits
from linkd.cli.exits import Ended
from linkd.cli.options import add_socket, configuration, socket_path
from linkd.errors import ConfigError

if TYPE_CHECKING:
    from linkd.drill.bounds import Bounds
    from linkd.drill.report import Report

RUNNING: Final = ("blackhole", "oneway", "reset")
MAX_SECONDS: Final = 120.0
DEFAULT_SECONDS: Final = 30.0


def add(subparsers: Any) -> None:
    """Add the command's parser."""
    parser = subparsers.add_parser(
        "drill",
        help="make a fault on purpose, and judge what comes of it",
        description="On a running pair: linkd drill blackhole|oneway|reset --peer NAME. "
        "On a throw-away pair on this machine: linkd drill --lab [NAME ...].",
    )
    add_socket(parser)
    parser.add_argument("names", nargs="*", metavar="NAME", help="the drill; --list names them")
    parser.add_argument("--lab", action="store_true", help="on a throw-away pair; default: all")
    parser.add_argument("--list", action="store_true", help="name every drill, and end")
    parser.add_argument("--peer", metavar="PEER", help="whose link, on a running pair")
    parser.add_argument(
        "--for",
        dest="seconds",
        type=float,
        default=None,
        metavar="SECONDS",
        help=f"how long, on a running pair; at most 120 (default: {DEFAULT_SECONDS:g})",
    )
    parser.add_argument("--channel", metavar="CHANNEL", help="publish numbered messages there")
    parser.add_argument(
        "--far-socket",
        metavar="PATH",
        help="the peer's socket, where it can be reached from here: its end is measured too",
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument(
        "--relay", action="store_true", help="with --lab: do without network namespaces"
    )
    parser.add_argument("--json", action="store_true", help="one report a line")
    parser.add_argument("--svg", metavar="FILE", help="draw what happened into this file")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry out the drills; 1 if any of them falls short."""
    from linkd.drill.faults import DRILLS  # noqa: PLC0415 - other commands start fast

    if arguments.list:
        for name, drill in DRILLS.items():
            print(f"{name:<12} {'      ' if name in RUNNING else '--lab '} {drill.about}")
        return exits.FINE
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    reports = _lab(arguments) if arguments.lab else _running(arguments)
    return _tell(arguments, reports)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """End as by ^C: what was made and started is taken back and ended on the way out."""
    raise KeyboardInterrupt


def _lab(arguments: argparse.Namespace) -> Iterable[Report]:
    """Return the reports of drills on throw-away pairs, as they come."""
    from linkd.drill.faults import DRILLS  # noqa: PLC0415
    from linkd.drill.lab import run_all  # noqa: PLC0415

    names = arguments.names or ["all"]
    if "all" in names:
        names = list(DRILLS)
    unknown = [name for name in names if name not in DRILLS]
    if unknown:
        known = ", ".join(DRILLS)
        raise Ended(exits.USAGE, f"there is no drill {unknown[0]!r}; there is {known}, or all")
    if arguments.peer or arguments.channel or arguments.far_socket or arguments.seconds:
        raise Ended(exits.USAGE, "--peer, --for, --channel, --far-socket are for a running pair")
    progress = _Progress(len(names))
    named = getattr(arguments, "config", None) or os.environ.get("LINKD_CONFIG")
    bounds = _bounds(arguments, required=bool(named)) if named else _defaults()
    return progress.follow(
        run_all([DRILLS[name] for name in names], bounds, progress.say, arguments.relay)
    )


def _running(arguments: argparse.Namespace) -> Iterable[Report]:
    """Return the report of a drill on a running pair, once it was agreed to and is over."""
    from linkd.drill import running  # noqa: PLC0415
    from linkd.drill.asking import Daemon  # noqa: PLC0415
    from linkd.drill.deadman import DrillFailed  # noqa: PLC0415

    request = _request(arguments)
    daemon = Daemon(socket_path(arguments))
    try:
        made = running.plan(request, daemon)
    except DrillFailed as error:
        raise Ended(exits.REFUSED, str(error)) from None
    bounds = _bounds(arguments, required=False)
    sys.stderr.write("\n".join(made.lines(request)) + "\n")
    if not arguments.yes and not _agreed():
        raise Ended(exits.ANSWER_IS_NO, "nothing was done")
    progress = _Progress(1)
    try:
        report = running.run(
            request, made, daemon, bounds, lambda what: progress.say(request.kind, what)
        )
    except DrillFailed as error:
        raise Ended(exits.ANSWER_IS_NO, str(error)) from None
    return progress.follow([report])


def _request(arguments: argparse.Namespace) -> Any:
    """Return what is asked for; raise Ended where it can't be."""
    from linkd.drill.running import Request  # noqa: PLC0415

    if len(arguments.names) != 1 or arguments.names[0] not in RUNNING:
        raise Ended(
            exits.USAGE,
            f"expected one of {', '.join(RUNNING)} for a running pair; other drills need --lab",
        )
    if arguments.relay:
        raise Ended(exits.USAGE, "--relay is for --lab")
    if not arguments.peer:
        raise Ended(exits.USAGE, "expected --peer NAME, or --lab for a throw-away pair")
    seconds = DEFAULT_SECONDS if arguments.seconds is None else arguments.seconds
    if not 1.0 <= seconds <= MAX_SECONDS:
        raise Ended(
            exits.USAGE, f"expected --for from 1 to {MAX_SECONDS:g} seconds, got {seconds:g}"
        )
    if os.geteuid() != 0:
        raise Ended(exits.USAGE, "a drill on a running pair needs root (try sudo); --lab does not")
    return Request(
        kind=arguments.names[0],
        peer=arguments.peer,
        seconds=seconds,
        channel=arguments.channel,
        far_socket=arguments.far_socket,
    )


def _agreed() -> bool:
    """Ask; raise Ended where nobody can be asked."""
    if not sys.stdin.isatty():
        raise Ended(exits.USAGE, "expected --yes, as nobody can be asked here")
    sys.stderr.write("Go on? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _bounds(arguments: argparse.Namespace, required: bool) -> Bounds:
    """Return the configured bounds, or the defaults where there is no readable configuration.

    Raises:
        ConfigError: `required`, and the configuration can't be used.
    """
    from linkd.drill.bounds import Bounds  # noqa: PLC0415

    try:
        config = configuration(arguments)
    except ConfigError:
        if required:
            raise
        return _defaults()
    return Bounds(config.heartbeat, config.reconnect, "this node's configuration")


def _defaults() -> Bounds:
    from linkd.drill.bounds import Bounds  # noqa: PLC0415

    return Bounds()


class _Progress:
    """Tells on standard error what goes on: one line that changes, or elsewhere one a change."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._done = 0
        self._terminal = sys.stderr.isatty()
        self._last = ("", "")

    def say(self, name: str, what: str) -> None:
        """Show what goes on in a drill."""
        line = f"[{self._done + 1}/{self._count}] {name}: {what}"
        if self._terminal:
            sys.stderr.write(f"\r\x1b[K{line[:118]}")
            sys.stderr.flush()
            return
        step = what.partition(", ")[0].partition("; ")[0]
        if (name, step) != self._last:
            self._last = (name, step)
            sys.stderr.write(f"[{self._done + 1}/{self._count}] {name}: {step}\n")

    def follow(self, reports: Iterable[Report]) -> Iterable[Report]:
        """Yield reports, and count them."""
        try:
            for report in reports:
                self._clear()
                yield report
                self._done += 1
        finally:
            self._clear()

    def _clear(self) -> None:
        if self._terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _tell(arguments: argparse.Namespace, reports: Iterable[Report]) -> int:
    """Print reports as they come, draw them, and return the exit code."""
    from linkd.drill.report import summary, text  # noqa: PLC0415
    from linkd.drill.svg import draw  # noqa: PLC0415

    told: list[Report] = []
    for report in reports:
        told.append(report)
        if arguments.json:
            print(msgspec.json.encode(report).decode(), flush=True)
        else:
            print("\n".join([*text(report), ""]), flush=True)
        if arguments.svg:
            try:
                Path(arguments.svg).write_text(draw(told))
            except OSError as error:
                raise Ended(exits.USAGE, f"{arguments.svg}: {error.strerror}") from None
    if not arguments.json and len(told) > 1:
        print("\n".join(summary(told)))
    return exits.ANSWER_IS_NO if any(one.verdict == "fail" for one in told) else exits.FINE
