"""The dead man's switch: a separate process that injects a fault and removes it in every case.

It removes the fault when its time is over, on request, on SIGTERM, and when the process that
started it is gone: even by kill -9, since the pipe between them then ends. It has a session of its
own, so that a closed terminal does not affect it. Because it injects the fault itself, no fault
ever exists without a process that removes it. It also kills the processes that carry its mark in
their environment, and removes directories.

It runs as a plain script with the standard library alone. Orders come as JSON lines on standard
input, each is answered by one on standard output.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Final, Self

PREFIX: Final = "linkd-"
"""Directories that it may remove have names that begin so."""

MARK: Final = "LINKD_DRILL"
"""The environment variable that marks the processes to kill."""

TRIES: Final = 5
_KILL_SECONDS: Final = 10.0
_COMMAND_SECONDS: Final = 40.0
_ANSWER_SECONDS: Final = 60.0


class DrillFailed(RuntimeError):
    """A fault could not be injected or removed; the message has the command and its output.

    (No `LinkdError`: this module runs as a script, without the package.)
    """


def admin_path() -> str:
    """Return PATH with the administrator's directories."""
    return os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"


def _marked(mark: str) -> list[int]:
    """Return the processes that carry a mark."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
    return found


class _SwitchProcess:
    """What the switch must undo, and how."""

    def __init__(self, mark: str) -> None:
        self._mark = mark
        self._undo: list[list[str]] = []
        self._directories: list[str] = []
        self._deadline: float | None = None

    def serve(self) -> None:
        """Carry out orders until the end."""
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
        """Carry out one order, and answer."""
        if "remove" in order:
            self._directories.append(order["remove"])
        if "begin" in order:
            self._undo = order["undo"]
            for command in order["begin"]:
                problem = _run(command)
                if problem is not None:
                    _run_all(self._undo, 1)
                    self._undo = []
                    _answer({"failed": f"{' '.join(command)}: {problem}"})
                    return
            self._deadline = time.monotonic() + order["seconds"]
        _answer({"at": time.monotonic()})

    def _finish(self) -> None:
        """Undo everything; idempotent."""
        undo, self._undo = self._undo, []
        failed, gone = _run_all(undo, TRIES)
        ended = time.monotonic()
        while (pids := _marked(self._mark)) and time.monotonic() < ended + _KILL_SECONDS:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        for directory in self._directories:
            if Path(directory).name.startswith(PREFIX):
                shutil.rmtree(directory, ignore_errors=True)
        _answer({"at": ended, "gone": gone, **({"failed": failed} if failed else {})})


def _run(command: Sequence[str]) -> str | None:
    """Run a command; return the error, or None."""
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
    """Return whether a removal failed because the rule is gone, as after a flush by others."""
    if "-D" not in command:
        return False
    problem = _run(["-C" if word == "-D" else word for word in command])
    return problem is not None and "does a matching rule exist" in problem


def _run_all(commands: Sequence[Sequence[str]], tries: int) -> tuple[str, bool]:
    """Run commands, failing ones up to `tries` times.

    Returns:
        The remaining errors, and whether rules to be removed were already gone.
    """
    left = list(commands)
    problems: list[str] = []
    gone = False
    for attempt in range(tries):
        if attempt:
            time.sleep(0.5)
        results = [(command, _run(command)) for command in left]
        absent = [command for command, wrong in results if wrong is not None and _is_gone(command)]
        gone = gone or bool(absent)
        results = [(command, wrong) for command, wrong in results if command not in absent]
        left = [command for command, wrong in results if wrong is not None]
        problems = [
            f"{' '.join(command)}: {wrong}" for command, wrong in results if wrong is not None
        ]
        if not left:
            break
    return "; ".join(problems), gone


def _answer(answer: dict[str, Any]) -> None:
    """Write an answer, if the reader still exists."""
    with contextlib.suppress(OSError):
        os.write(1, json.dumps(answer).encode() + b"\n")


class ChildProcess:
    """A process that obeys orders, a JSON line each, answered by one; a context that ends it.

    Args:
        command: What to run.
        name: For messages.
        answer_seconds: How long an answer may take.
        stderr: Where its errors go; None: to ours.
        env: Its environment; None: ours.

    Attributes:
        pid: Its process id.
    """

    def __init__(
        self,
        command: Sequence[str],
        name: str,
        answer_seconds: float = 10.0,
        stderr: int | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            cwd="/",
            env=env,
            start_new_session=True,
        )
        self.pid = self._process.pid
        self._name, self._answer_seconds = name, answer_seconds
        self._rest = b""

    def order(self, **order: Any) -> dict[str, Any]:
        """Give an order and return the answer.

        Raises:
            DrillFailed: The process has ended or does not answer.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise DrillFailed(f"the {self._name} has ended: {error}") from None
        answer = self.answer(self._answer_seconds)
        if answer is None:
            raise DrillFailed(f"the {self._name} does not answer")
        return answer

    def answer(self, within: float) -> dict[str, Any] | None:
        """Return the next answer, or None if there is none in time; raise DrillFailed."""
        assert self._process.stdout is not None
        end = time.monotonic() + within
        while b"\n" not in self._rest:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                return None
            piece = os.read(self._process.stdout.fileno(), 65_536)
            if not piece:
                raise DrillFailed(f"the {self._name} has ended")
            self._rest += piece
        line, self._rest = self._rest.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Kill it, and wait for its end."""
        self._process.kill()
        self._end(5.0)

    def _end(self, within: float) -> None:
        """Close the pipes, and wait."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(within)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Switch(ChildProcess):
    """The switch, as the command uses it; a context that undoes everything.

    Attributes:
        mark: Processes whose environment has it as `MARK` end with the switch.
        was_gone: Whether others had removed rules before.
    """

    def __init__(self) -> None:
        """Start the switch, with nothing to undo yet."""
        self.mark = f"{os.getpid()}-{secrets.token_hex(8)}"
        # Not marked itself: a switch undoes its faults even if another one kills its command.
        plain = {name: value for name, value in os.environ.items() if name != MARK}
        own = [sys.executable, "-I", str(Path(__file__).resolve()), self.mark]
        super().__init__(own, "dead man's switch", _ANSWER_SECONDS, subprocess.DEVNULL, plain)
        self.was_gone = False

    def fault(
        self, begin: Sequence[Sequence[str]], undo: Sequence[Sequence[str]], seconds: float
    ) -> float:
        """Inject a fault by commands; other commands remove it after `seconds` at the latest.

        Returns:
            When the fault began, monotonic seconds.

        Raises:
            DrillFailed: A command failed; what was done is undone.
        """
        return self._moment(self.order(begin=begin, undo=undo, seconds=seconds))

    def remove(self, directory: str) -> None:
        """Remove this directory with the switch; its name begins with PREFIX."""
        self.order(remove=directory)

    def over(self, within: float) -> float | None:
        """Wait up to `within` seconds for the end of the fault; return when it ended, or None.

        Raises:
            DrillFailed: The fault could not be removed; the message has the output of the system.
        """
        answer = self.answer(within)
        return None if answer is None else self._moment(answer)

    def end(self) -> float:
        """Undo everything now; return when the fault ended, monotonic seconds.

        Raises:
            DrillFailed: It could not be undone, or the switch has already ended.
        """
        return self._moment(self.order(end=True))

    def close(self) -> None:
        """Undo everything that is left, and wait for the process."""
        self._end(TRIES * _COMMAND_SECONDS)

    def _moment(self, answer: dict[str, Any]) -> float:
        """Return the time in an answer; raise DrillFailed if it reports a failure."""
        self.was_gone = self.was_gone or bool(answer.get("gone"))
        if "failed" in answer:
            raise DrillFailed(str(answer["failed"]))
        return float(answer["at"])


def _main() -> None:
    """Run as the switch."""

    def terminated(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(0)

    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, terminated)
    keeper = _SwitchProcess(sys.argv[1])
    try:
        keeper.serve()
    except SystemExit:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        keeper._finish()


if __name__ == "__main__":
    _main()
