"""Fuzz one target with atheris, in this process: `python -m tests.fuzz.run TARGET [INPUT]`.

Without an input it begins with the committed corpus and keeps what finds new ways in a folder of
its own. An input that breaks the target is written to a file that is named; the exit code is then
not 0. With an input, that one alone is run. `tests.fuzz.shares` runs many of these side by side.
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import atheris

from tests.fuzz.targets import CORPUS, NAMES, beside, load

TIMEOUT_SECONDS = 3600
"""By the clock on the wall, which runs on while others have the processor or this is stopped."""

MOST_PROCESSOR_SECONDS = 2.0
"""An input that costs more is a mistake."""


class Counted:
    """A target that counts its inputs and looks at what each one costs.

    Args:
        name: Its name.
        told: A file in which the count so far stands, as text.
    """

    def __init__(self, name: str, told: Path) -> None:
        self._one = load(name)
        self._told = told
        self.inputs = 0

    def __call__(self, content: bytes) -> None:
        """Run one input.

        Raises:
            AssertionError: It took more of the processor's time than anything may.
        """
        began = time.process_time()
        self._one(content)
        took = time.process_time() - began
        assert took < MOST_PROCESSOR_SECONDS, f"took {took:.1f} s of the processor"
        self.inputs += 1
        if self.inputs & 4095 == 0:
            self._told.write_text(str(self.inputs))


def arguments() -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(prog="tests.fuzz.run", description="Fuzz one target.")
    parser.add_argument("target", choices=sorted(NAMES))
    parser.add_argument("input", nargs="?", type=Path, help="run this file alone")
    parser.add_argument("--inputs", type=int, default=-1, help="end after so many")
    parser.add_argument("--seconds", type=int, default=0, help="end after so long; 0: never")
    parser.add_argument("--seed", type=int, default=1, help="of what is tried")
    parser.add_argument("--most", type=int, default=1024, help="bytes of an input")
    return parser.parse_args()


def main() -> None:
    """Run."""
    asked = arguments()
    name = asked.target
    with atheris.instrument_imports(include=list(NAMES[name]), exclude=beside(name)):
        target = Counted(name, Path(os.environ.get("FUZZ_COUNT") or os.devnull))
    if asked.input is not None:
        target(asked.input.read_bytes())
        return
    found = Path(os.environ.get("FUZZ_FOUND") or tempfile.mkdtemp(prefix="linkd-fuzz-found-"))
    shutil.copytree(CORPUS / name, found, dirs_exist_ok=True)
    options = [
        f"-runs={asked.inputs}", f"-max_total_time={asked.seconds}", f"-seed={asked.seed}",
        f"-max_len={asked.most}", f"-timeout={TIMEOUT_SECONDS}", "-rss_limit_mb=1024",
        "-len_control=10", f"-artifact_prefix={found}.broke-", "-print_final_stats=1",
        "-verbosity=1",
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *options, str(found)], target)
    gc.collect()
    gc.freeze()
    atheris.Fuzz()


if __name__ == "__main__":
    main()
