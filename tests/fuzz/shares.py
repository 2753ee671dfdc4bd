"""Fuzz targets until so many inputs were tried: `python -m tests.fuzz.shares --inputs N TARGET...`.

A target's inputs are split into shares. Each share is a process of its own (`tests.fuzz.run`) with
a seed of its own; they give what finds new ways to each other through one folder. How long inputs
may be differs from share to share: a course of events that is short costs little, and most of what
can break breaks in a few events.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from tests.fuzz.targets import NAMES

MOST_BYTES = (1024, 32, 64, 32, 256, 32, 64, 32)
"""How long inputs may be, by share; the ninth share begins anew. The longer, the fewer: a share's
inputs have about the same bytes in all."""

SHARES_A_PROCESS = 8
"""Into how many shares the inputs are split for each process that runs at a time."""

_EXECUTED = re.compile(r"^stat::number_of_executed_units:\s+(\d+)$", re.MULTILINE)


class Share(msgspec.Struct):
    """A process that runs.

    Attributes:
        number: Its place among the shares of its target; its seed too.
        process: It.
        began: Monotonic seconds.
        said: Its output.
        counted: Where it notes its inputs as it goes.
    """

    number: int
    process: subprocess.Popen[bytes]
    began: float
    said: Path
    counted: Path

    def inputs(self) -> int:
        """Return how many inputs it tried: libFuzzer's own count, or the last that was noted."""
        stated = _EXECUTED.findall(self.said.read_text(errors="replace"))
        if stated:
            return int(stated[-1])
        return int(self.counted.read_text() or 0) if self.counted.exists() else 0


class Run:
    """One target's shares.

    Args:
        name: The target.
        asked: What the command line says.
    """

    def __init__(self, name: str, asked: argparse.Namespace) -> None:
        self._name = name
        self._asked = asked
        self._began = time.monotonic()
        self.inputs = 0
        self.broke: list[Path] = []

    @property
    def seconds(self) -> float:
        """How long it has run."""
        return time.monotonic() - self._began

    def go(self) -> None:
        """Run shares, some at a time, until there were enough inputs or the time is over."""
        waiting = self._sizes()
        running: list[Share] = []
        try:
            while running or waiting:
                while waiting and len(running) < self._asked.processes and not self.broke:
                    number = self._asked.seed + len(waiting) - 1
                    running.append(self._start(number, waiting.pop()))
                time.sleep(0.2)
                for share in [one for one in running if one.process.poll() is not None]:
                    running.remove(share)
                    self._ended(share)
                if self.broke or self._left() == 0:
                    waiting.clear()
        finally:
            for share in running:
                share.process.kill()
                share.process.wait()
                self._ended(share)

    def _sizes(self) -> list[int]:
        """Return how many inputs each share is to try; -1 where only the time bounds them."""
        inputs, processes = self._asked.inputs, self._asked.processes
        if inputs <= 0:
            return [-1] * processes
        count = min(processes * SHARES_A_PROCESS, max(1, inputs // 1000))
        weights = [1 / _most(self._asked.seed + place) for place in range(count)]
        return [round(inputs * weight / sum(weights)) + 1 for weight in weights]

    def _left(self) -> int:
        """Return how many seconds are left; a day where nothing bounds them."""
        seconds = self._asked.seconds
        return max(0, int(seconds - self.seconds)) if seconds else 86_400

    def _start(self, number: int, inputs: int) -> Share:
        found = self._asked.found
        said, counted = (found / f"{self._name}.{number}.{kind}" for kind in ("out", "count"))
        counted.unlink(missing_ok=True)
        environment = {
            **os.environ, "FUZZ_FOUND": str(found / self._name), "FUZZ_COUNT": str(counted)
        }  # fmt: skip
        command = [
            sys.executable, "-m", "tests.fuzz.run", self._name, f"--inputs={inputs}",
            f"--seconds={max(1, self._left())}", f"--seed={number}",
            f"--most={_most(number)}",
        ]  # fmt: skip
        with said.open("wb") as out:
            process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
        return Share(number, process, time.monotonic(), said, counted)

    def _ended(self, share: Share) -> None:
        """Count a share's inputs in, and note it in the tally."""
        inputs, code = share.inputs(), share.process.returncode
        self.inputs += inputs
        if code not in (0, -9):
            self.broke.append(share.said)
        with (self._asked.found / f"{self._name}.tally").open("a") as tally:
            took = time.monotonic() - share.began
            tally.write(f"share={share.number} inputs={inputs} seconds={took:.0f} code={code}\n")


def _most(number: int) -> int:
    """Return how many bytes an input of a share may have."""
    return MOST_BYTES[number % len(MOST_BYTES)]


def main() -> int:
    """Run; return 1 if a target broke."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description="Fuzz linkd's decoders.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(NAMES))
    parser.add_argument("--inputs", type=int, default=0, help="so many a target")
    parser.add_argument("--seconds", type=int, default=0, help="at most so long a target (60)")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="at a time")
    parser.add_argument("--seed", type=int, default=8, help="of the last share")
    parser.add_argument(
        "--found", type=Path, default=Path(tempfile.gettempdir(), "linkd-fuzz"),
        help="where what was found is kept",
    )  # fmt: skip
    asked = parser.parse_args()
    if unknown := [name for name in asked.targets if name not in NAMES]:
        parser.error(f"no such target: {', '.join(unknown)}")
    asked.seconds = asked.seconds or (0 if asked.inputs else 60)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # So that nothing outlives it.
    asked.found.mkdir(parents=True, exist_ok=True)
    print(f"{'target':<15} {'inputs':>12} {'seconds':>8}  outcome", flush=True)
    broke = 0
    for name in asked.targets or NAMES:
        run = Run(name, asked)
        run.go()
        outcome = f"broke, see {run.broke[0]}" if run.broke else "ok"
        print(f"{name:<15} {run.inputs:>12} {run.seconds:>8.0f}  {outcome}", flush=True)
        broke |= bool(run.broke)
    return broke


if __name__ == "__main__":
    sys.exit(main())
