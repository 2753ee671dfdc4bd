"""`linkd drill`: deliberate faults, with a verdict."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import msgspec

from linkd.cli import exits
from linkd.cli.exits import CommandError, end_when_gone
from linkd.cli.options import add_socket, config_path, configuration, socket_path
from linkd.cli.output import json_text
from linkd.errors import ChannelRefused, ConfigError
from linkd.protocol.channels import check_channel

if TYPE_CHECKING:
    from linkd.drill.report import Bounds, Report
    from linkd.drill.runner import Stage
    from linkd.drill.testbed import DrillNode, Testbed

LIVE_DRILLS: Final = ("blackhole", "oneway", "reset")
MAX_SECONDS: Final = 120.0
DEFAULT_SECONDS: Final = 30.0
LAB_BYTES: Final = 128 << 20
"""Twice what a log leaves free."""

LOCKS: Final = Path("/run")
"""Root's: no other user can hold the lock of a drill, which only root may run."""

_FILTER_SECONDS: Final = 20.0
_COMMAND_SECONDS: Final = 20.0
_STAGES: Final[dict[Stage, str]] = {
    "before": "before the fault",
    "during": "at the end of the fault",
    "after": "after the fault",
}
_ENDS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_EXITS: Final = """\
The fault is always removed, whatever happens to this command.

Exit: 0 all passed or were skipped, 1 one fell short or could not be carried
out, 2 usage, 3 no daemon at the socket, 4 the link is not there, not up or
being drilled already, 130 interrupted.
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's description, arguments and options."""
    parser.description = (
        "On a running pair: linkd drill blackhole|oneway|reset --peer NAME.\n"
        "On a throw-away pair on this machine: linkd drill --lab [NAME ...]."
    )
    parser.epilog = _EXITS
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
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
        help=f"how long, on a running pair, 1 to 120 (default: {DEFAULT_SECONDS:g})",
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
    parser.add_argument(
        "--show",
        action="store_true",
        help="with --lab: print status, outages and log lines of both nodes as it goes",
    )
    parser.add_argument("--json", action="store_true", help="one report a line")


def run(arguments: argparse.Namespace) -> int:
    """Carry out the drills; return 1 if any of them fails."""
    from linkd.drill.scenarios import DRILLS  # noqa: PLC0415 - other commands start fast

    if arguments.list:
        for name, drill in DRILLS.items():
            print(f"{name:<12} {'      ' if name in LIVE_DRILLS else '--lab '} {drill.about}")
        return exits.OK
    for number in _ENDS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, _interrupt)
    end_when_gone(sys.stdout)
    reports = _lab(arguments) if arguments.lab else _running(arguments)
    return _print_reports(arguments, reports)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """Exit; faults are removed and processes ended on the way out.

    Only once: repeated ^C would interrupt the cleanup.
    """
    for number in _ENDS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _lab(arguments: argparse.Namespace) -> Iterable[Report]:
    """Yield the reports of drills on throw-away pairs."""
    from linkd.drill.report import Bounds  # noqa: PLC0415
    from linkd.drill.runner import run_all, show_nothing  # noqa: PLC0415
    from linkd.drill.scenarios import DRILLS  # noqa: PLC0415

    names = arguments.names or ["all"]
    if "all" in names:
        names = list(DRILLS)
    unknown = [name for name in names if name not in DRILLS]
    if unknown:
        known = ", ".join(DRILLS)
        raise CommandError(f"there is no drill {unknown[0]!r}; there is {known}, or all")
    asked = (arguments.peer, arguments.channel, arguments.far_socket, arguments.seconds)
    if any(option is not None for option in asked):
        raise CommandError("--peer, --for, --channel, --far-socket are for a running pair")
    if arguments.show and arguments.json:
        raise CommandError("--show is for people, --json for programs: choose one")
    _check_free_space()
    progress = _Progress(len(names))
    show = partial(_show, progress) if arguments.show else show_nothing
    bounds = _bounds(arguments, required=True) if config_path(arguments) else Bounds()
    return progress.follow(
        run_all([DRILLS[name] for name in names], bounds, progress.show, arguments.relay, show)
    )


def _show(progress: _Progress, stage: Stage, pair: Testbed) -> None:
    """Print what the linkd command reports of both nodes at a stage of the fault."""
    progress.clear()
    for end in (pair.edge, pair.hub):
        _print_command(end, _STAGES[stage], "status")
    if stage == "after":
        _print_command(pair.edge, _STAGES[stage], "outages")
        for end in (pair.edge, pair.hub):
            print(f"$ journalctl -u linkd | grep link    # on {end.name}")
            lines = (end.directory / "log").read_text(errors="replace").splitlines()
            print("\n".join(line for line in lines if " link." in line), end="\n\n")
    sys.stdout.flush()


def _print_command(end: DrillNode, stage: str, command: str) -> None:
    """Run a linkd command at one end of the pair and print it with its output."""
    from linkd.drill.testbed import package_environment  # noqa: PLC0415

    own = [sys.executable, "-m", "linkd", command, "--socket", end.daemon.socket]
    done = subprocess.run(
        own, capture_output=True, text=True, timeout=_COMMAND_SECONDS, env=package_environment()
    )
    print(f"$ linkd {command}    # on {end.name}, {stage}\n{done.stdout}{done.stderr}")


def _check_free_space() -> None:
    """Raise CommandError if the temporary directory is full: a pair could not even report it."""
    directory = tempfile.gettempdir()
    free = shutil.disk_usage(directory).free
    if free < LAB_BYTES:
        raise CommandError(
            f"{directory} has {free >> 20} MiB free, a throw-away pair needs {LAB_BYTES >> 20} MiB:"
            " set TMPDIR to another directory",
            exits.NEGATIVE,
        )


def _running(arguments: argparse.Namespace) -> Iterable[Report]:
    """Run a drill on a running pair, after confirmation; return its report."""
    from linkd.drill import live  # noqa: PLC0415
    from linkd.drill.deadman import DrillFailed  # noqa: PLC0415
    from linkd.drill.monitor import DaemonClient  # noqa: PLC0415

    request = _request(arguments)
    daemon = DaemonClient(socket_path(arguments))
    try:
        made = live.plan(request, daemon)
    except DrillFailed as error:
        raise CommandError(str(error), exits.REFUSED) from None
    if request.far_socket is not None:
        _check_far_socket(request.far_socket, request.peer)
    bounds = _bounds(arguments, required=False)
    _write("\n".join(made.lines(request)) + "\n")
    if not arguments.yes and not _confirmed():
        raise CommandError("nothing was done", exits.NEGATIVE)
    with _drill_lock():
        _check_packet_filter(made.far.address)
        progress = _Progress(1)
        try:
            report = live.run(
                request, made, daemon, bounds, lambda what: progress.show(request.kind, what)
            )
        except DrillFailed as error:
            note = "; its rules are removed now" if _remove_leftover_rules(made.undo) else ""
            raise CommandError(f"{error}{note}", exits.NEGATIVE) from None
        return progress.follow([_note_daemon_gaps(report)])


def _note_daemon_gaps(report: Report) -> Report:
    """Return the report, marked if a daemon was gone meanwhile."""
    from linkd.drill.monitor import GONE  # noqa: PLC0415

    gone = [end.name for end in report.ends if any(one.state == GONE for one in end.states)]
    if not gone:
        return report
    note = f"the daemon of {', '.join(gone)} did not answer for a while: drill again while it runs"
    return msgspec.structs.replace(report, why=f"{note}; {report.why}")


def _request(arguments: argparse.Namespace) -> Any:
    """Return the request; raise CommandError if it is impossible."""
    from linkd.drill.live import Request  # noqa: PLC0415

    if len(arguments.names) != 1 or arguments.names[0] not in LIVE_DRILLS:
        raise CommandError(
            f"expected one of {', '.join(LIVE_DRILLS)} for a running pair; other drills need --lab"
        )
    for option in ("relay", "show"):
        if getattr(arguments, option):
            raise CommandError(f"--{option} is for --lab")
    if not arguments.peer:
        raise CommandError("expected --peer NAME, or --lab for a throw-away pair")
    seconds = DEFAULT_SECONDS if arguments.seconds is None else arguments.seconds
    if not 1.0 <= seconds <= MAX_SECONDS:
        raise CommandError(f"expected --for from 1 to {MAX_SECONDS:g} seconds, got {seconds:g}")
    if arguments.channel is not None:
        try:
            check_channel(arguments.channel)
        except ChannelRefused as error:
            raise CommandError(str(error)) from None
    if os.geteuid() != 0:
        raise CommandError("a drill on a running pair needs root (try sudo); --lab does not")
    return Request(
        kind=arguments.names[0],
        peer=arguments.peer,
        seconds=seconds,
        channel=arguments.channel,
        far_socket=arguments.far_socket,
    )


def _confirmed() -> bool:
    """Ask for confirmation; raise CommandError without a terminal."""
    if not (sys.stdin.isatty() and sys.stderr.isatty() and _write("Go on? [y/N] ")):
        raise CommandError("no terminal to ask on: pass --yes")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _check_far_socket(socket: str, peer: str) -> None:
    """Raise CommandError if the daemon at the far socket is another than the peer.

    Raises:
        ClientError: There is none.
    """
    from linkd.drill.monitor import DaemonClient  # noqa: PLC0415

    node = DaemonClient(socket).status().node
    if node != peer:
        raise CommandError(f"expected the socket of {peer} at {socket}, got that of {node}")


@contextlib.contextmanager
def _drill_lock() -> Iterator[None]:
    """Lock this network against other drills; raise CommandError if one is running.

    The lock is a file that only root can open, named after the network namespace, because the
    packet filter's rules belong to it. The kernel frees it when its process ends, however it ends.
    """
    path = LOCKS / f"linkd-drill-{Path('/proc/self/ns/net').stat().st_ino}.lock"
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CommandError(
            f"{path}: {error.strerror}: no lock, so no drill", exits.REFUSED
        ) from None
    with os.fdopen(lock):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.stat().st_ino != os.fstat(lock).st_ino:  # one that a drill has removed just now
                raise BlockingIOError
        except OSError:
            raise CommandError(
                "a drill is under way on this host: wait until it is over", exits.REFUSED
            ) from None
        try:
            yield
        finally:
            path.unlink()


def _check_packet_filter(address: str) -> None:
    """Raise CommandError if this host's packet filter can't be used, or has a fault on this link.

    Two faults at once would be judged wrongly as one.

    Args:
        address: The peer's.
    """
    from linkd.drill.live import programs, tool_for  # noqa: PLC0415

    tool = tool_for(address)
    found = programs(tool)
    if not found:
        raise CommandError(f"{tool} is missing (Debian: apt install iptables)", exits.NEGATIVE)
    for program in found:
        _check_no_fault_rules(program, address)


def _check_no_fault_rules(tool: str, address: str) -> None:
    """Raise CommandError if a program of the packet filter can't be used, or lists a fault."""
    from linkd.drill.deadman import admin_path  # noqa: PLC0415
    from linkd.drill.live import MARK  # noqa: PLC0415

    found = shutil.which(tool, path=admin_path()) or tool
    try:
        listed = subprocess.run(
            [found, "-w", "5", "-S"], capture_output=True, text=True, timeout=_FILTER_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CommandError(f"{tool} can't be used: {error}", exits.NEGATIVE) from None
    if listed.returncode != 0:
        problem = listed.stderr.strip().partition("\n")[0] or f"exit {listed.returncode}"
        raise CommandError(f"{tool} can't be used: {problem}", exits.NEGATIVE)
    if f"{MARK}:" in listed.stdout:
        raise CommandError(
            "a drill is under way on this host: wait until it is over; rules left by a killed "
            f"drill are listed by `{tool} -S | grep {MARK}` and removed by `restore.sh --drills`",
            exits.REFUSED,
        )
    if any("linkd-drop:" in line and f" {address}/" in line for line in listed.stdout.splitlines()):
        raise CommandError(
            f"drop.sh drops packets of {address}: run restore.sh first", exits.REFUSED
        )


def _remove_leftover_rules(undo: Sequence[Sequence[str]]) -> bool:
    """Remove the rules that a killed dead man's switch left; return whether there were any."""
    from linkd.drill.deadman import admin_path  # noqa: PLC0415

    environment = {**os.environ, "PATH": admin_path()}
    done = [
        subprocess.run(command, capture_output=True, timeout=_FILTER_SECONDS * 2, env=environment)
        for command in undo
    ]
    return any(one.returncode == 0 for one in done)


def _write(text: str) -> bool:
    """Write to standard error; return whether it worked: a drill does not end without a reader."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        return False
    return True


def _bounds(arguments: argparse.Namespace, required: bool) -> Bounds:
    """Return the configured bounds, or the defaults where there is no readable configuration.

    Raises:
        ConfigError: `required`, and the configuration can't be used.
    """
    from linkd.drill.report import Bounds  # noqa: PLC0415

    try:
        config = configuration(arguments)
    except ConfigError:
        if required:
            raise
        return Bounds()
    return Bounds(config.heartbeat, config.reconnect, "this node's configuration")


class _Progress:
    """Shows progress on standard error: on a terminal in one line, else a line for each step."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._done = 0
        self._terminal = sys.stderr.isatty()
        self._last = ("", "")

    def show(self, name: str, what: str) -> None:
        """Show a step of a drill."""
        line = f"[{self._done + 1}/{self._count}] {name}: {what}"
        if self._terminal:
            _write(f"\r\x1b[K{line[:118]}")
            return
        step = what.partition(", ")[0].partition("; ")[0]
        if (name, step) != self._last:
            self._last = (name, step)
            _write(f"[{self._done + 1}/{self._count}] {name}: {step}\n")

    def follow(self, reports: Iterable[Report]) -> Iterable[Report]:
        """Yield reports, and count them."""
        try:
            for report in reports:
                self.clear()
                yield report
                self._done += 1
        finally:
            self.clear()

    def clear(self) -> None:
        """Remove the progress line from a terminal."""
        if self._terminal:
            _write("\r\x1b[K")


def _print_reports(arguments: argparse.Namespace, reports: Iterable[Report]) -> int:
    """Print reports as they arrive, and return the exit code."""
    from linkd.drill.report import summary, text  # noqa: PLC0415

    done: list[Report] = []
    for report in reports:
        done.append(report)
        if arguments.json:
            print(json_text(msgspec.json.encode(report)), flush=True)
        else:
            print("\n".join([*text(report), ""]), flush=True)
    if not arguments.json and len(done) > 1:
        print("\n".join(summary(done)))
    return exits.NEGATIVE if any(one.verdict == "fail" for one in done) else exits.OK
