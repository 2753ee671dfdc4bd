"""The dead man's switch: a process of its own that makes a fault and takes it back, come what may.

It does so when its time is over, when it is told to, when it gets SIGTERM, and when the process
that started it is gone: also by kill -9, for then the pipe between them ends. It stands in a
session of its own, so that a closed terminal does not touch it. Because it makes the fault itself,
there is no moment in which a fault is there and nobody to take it back.

It runs as a plain script with the standard library alone. Orders come as JSON lines on standard
input, each is answered by one on standard output.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Final, Self

PREFIX: Final = "linkd-drill-"
"""Directories that it may remove have names that begin so."""

TRIES: Final = 5
_COMMAND_SECONDS: Final = 40.0
_ANSWER_SECONDS: Final = 60.0


class DrillFailed(Exception):
    """A fault could not be made or taken back; the message says what was tried and what was said.

    (No `LinkdError`: this module runs as a script, without the package.)
    """


def admin_path() -> str:
    """Return PATH with the administrator's directories."""
    return os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"


def started_at(pid: int) -> str | None:
    """Return when a process started, in the kernel's ticks; None if there is none of that pid."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return stat.rpartition(")")[2].split()[19]


class _SwitchProcess:
    """What the process keeps, and how it takes it back."""

    def __init__(self) -> None:
        self._undo: list[list[str]] = []
        self._pids: list[tuple[int, str]] = []
        self._directories: list[str] = []
        self._deadline: float | None = None

    def serve(self) -> None:
        """Obey orders until the end."""
        rest = b""
        while True:
            left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
            if not select.select([0], [], [], left)[0]:
                self._finish()
                return
            piece = os.read(0, 65_536)
            if not piece:
                self._finish()
                return
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                order = json.loads(line)
                if "end" in order:
                    self._finish()
                    return
                self._obey(order)

    def _obey(self, order: dict[str, Any]) -> None:
        """Do one order, and answer."""
        if "kill" in order:
            pid, start = order["kill"]
            self._pids.append((pid, start))
        if "forget" in order:
            self._pids = [entry for entry in self._pids if entry[0] != order["forget"]]
        if "remove" in order:
            self._directories.append(order["remove"])
        if "begin" in order:
            self._undo = order["undo"]
            for command in order["begin"]:
                said = _run(command)
                if said is not None:
                    _run_all(self._undo, 1)
                    self._undo = []
                    _tell({"failed": f"{' '.join(command)}: {said}"})
                    return
            self._deadline = time.monotonic() + order["seconds"]
        _tell({"at": time.monotonic()})

    def _finish(self) -> None:
        """Take everything back; again is harmless."""
        undo, self._undo = self._undo, []
        failed, gone = _run_all(undo, TRIES)
        ended = time.monotonic()
        for pid, start in reversed(self._pids):
            if started_at(pid) == start:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
        for directory in self._directories:
            if Path(directory).name.startswith(PREFIX):
                shutil.rmtree(directory, ignore_errors=True)
        _tell({"at": ended, "gone": gone, **({"failed": failed} if failed else {})})


def _run(command: Sequence[str]) -> str | None:
    """Run a command; return what went wrong, or None."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=_COMMAND_SECONDS,
            env={**os.environ, "PATH": admin_path()},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return None
    return (done.stderr or done.stdout).strip() or f"exit {done.returncode}"


def _is_gone(command: Sequence[str]) -> bool:
    """Tell whether a command that removes a rule failed because there is none: somebody's flush."""
    if "-D" not in command:
        return False
    said = _run(["-C" if word == "-D" else word for word in command])
    return said is not None and "does a matching rule exist" in said


def _run_all(commands: Sequence[Sequence[str]], tries: int) -> tuple[str, bool]:
    """Run commands, those that fail up to `tries` times.

    Returns:
        What still went wrong, and whether rules to be removed were gone already.
    """
    left = list(commands)
    said: list[str] = []
    gone = False
    for attempt in range(tries):
        if attempt:
            time.sleep(0.5)
        results = [(command, _run(command)) for command in left]
        absent = [command for command, wrong in results if wrong is not None and _is_gone(command)]
        gone = gone or bool(absent)
        results = [(command, wrong) for command, wrong in results if command not in absent]
        left = [command for command, wrong in results if wrong is not None]
        said = [f"{' '.join(command)}: {wrong}" for command, wrong in results if wrong is not None]
        if not left:
            break
    return "; ".join(said), gone


def _tell(answer: dict[str, Any]) -> None:
    """Answer, if anybody is still there."""
    with contextlib.suppress(OSError):
        os.write(1, json.dumps(answer).encode() + b"\n")


class Switch:
    """The switch, seen from the command; a context that takes everything back.

    Attributes:
        pid: Of its process.
        was_gone: Whether rules were gone before it removed them.
    """

    def __init__(self) -> None:
        """Start it; it keeps nothing yet."""
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(Path(__file__).resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        self.pid = self._process.pid
        self.was_gone = False
        self._rest = b""

    def fault(
        self, begin: Sequence[Sequence[str]], undo: Sequence[Sequence[str]], seconds: float
    ) -> float:
        """Make a fault by commands, to be taken back by others after `seconds` at the latest.

        Returns:
            When it was there, monotonic seconds.

        Raises:
            DrillFailed: A command failed; what was done is taken back.
        """
        return self._order(begin=begin, undo=undo, seconds=seconds)

    def keep(self, pid: int) -> None:
        """Have a process ended when all ends."""
        start = started_at(pid)
        if start is not None:
            self._order(kill=[pid, start])

    def forget(self, pid: int) -> None:
        """Leave a process alone: it has ended."""
        self._order(forget=pid)

    def remove(self, directory: str) -> None:
        """Have a directory removed when all ends; its name begins with PREFIX."""
        self._order(remove=directory)

    def over(self, within: float) -> float | None:
        """Wait up to `within` seconds for its end; return when the fault ended, or None.

        Raises:
            DrillFailed: The fault could not be taken back; the message has what the system said.
        """
        answer = self._answer(within)
        return None if answer is None else self._moment(answer)

    def end(self) -> float:
        """Take everything back now; return when the fault was gone, monotonic seconds.

        Raises:
            DrillFailed: It could not be taken back, or the switch has ended already.
        """
        return self._order(end=True)

    def close(self) -> None:
        """Take everything back if that is still to do, and wait for the process."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(TRIES * _COMMAND_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _order(self, **order: Any) -> float:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise DrillFailed(f"the dead man's switch has ended: {error}") from None
        answer = self._answer(_ANSWER_SECONDS)
        if answer is None:
            raise DrillFailed("the dead man's switch does not answer")
        return self._moment(answer)

    def _answer(self, within: float) -> dict[str, Any] | None:
        assert self._process.stdout is not None
        end = time.monotonic() + within
        while b"\n" not in self._rest:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                return None
            piece = os.read(self._process.stdout.fileno(), 65_536)
            if not piece:
                raise DrillFailed("the dead man's switch has ended")
            self._rest += piece
        line, self._rest = self._rest.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _moment(self, answer: dict[str, Any]) -> float:
        """Return the time in an answer; raise DrillFailed where it reports a failure."""
        self.was_gone = self.was_gone or bool(answer.get("gone"))
        if "failed" in answer:
            raise DrillFailed(str(answer["failed"]))
        return float(answer["at"])


def _main() -> None:
    """Be the switch."""

    def terminated(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(0)

    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, terminated)
    keeper = _SwitchProcess()
    try:
        keeper.serve()
    except SystemExit:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        keeper._finish()


if __name__ == "__main__":
    _main()
