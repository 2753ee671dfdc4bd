"""Fuzz one target with atheris: `python -m tests.fuzz.run TARGET SECONDS [INPUT]`.

Without an input it begins with the committed corpus, keeps what finds new ways in a folder of its
own. An input that breaks the target is written to a file that is named; the exit code is then not
0. With an input, that one alone is run.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import atheris

from tests.fuzz.targets import CORPUS, NAMES, load

MAX_INPUT_BYTES = 1024
TIMEOUT_SECONDS = 20


class Counted:
    """A target that counts its inputs.

    Args:
        name: Its name.
        told: A file in which the count so far stands, as text.
    """

    def __init__(self, name: str, told: Path) -> None:
        self._one = load(name)
        self._told = told
        self.inputs = 0
        self._began = time.monotonic()

    def __call__(self, content: bytes) -> None:
        """Run one input."""
        self._one(content)
        self.inputs += 1
        if self.inputs & 1023 == 0:
            self.tell()

    def tell(self) -> None:
        """Note how far it is: libFuzzer ends the process without a word to us."""
        self._told.write_text(f"{self.inputs} {time.monotonic() - self._began:.0f}\n")


def main() -> None:
    """Run."""
    name, seconds = sys.argv[1], int(sys.argv[2])
    with atheris.instrument_imports(include=list(NAMES[name])):
        target = Counted(name, Path(os.environ.get("FUZZ_COUNT") or os.devnull))
    if len(sys.argv) > 3:
        target(Path(sys.argv[3]).read_bytes())
        return
    found = Path(os.environ.get("FUZZ_FOUND") or tempfile.mkdtemp(prefix="linkd-fuzz-found-"))
    found.mkdir(parents=True, exist_ok=True)
    seeds = CORPUS / name
    shutil.copytree(seeds, found, dirs_exist_ok=True)
    arguments = [
        f"-max_total_time={seconds}", f"-max_len={MAX_INPUT_BYTES}", f"-timeout={TIMEOUT_SECONDS}",
        "-rss_limit_mb=1024", "-len_control=10", f"-artifact_prefix={found}.broke-",
        "-print_final_stats=1", "-verbosity=1",
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *arguments, str(found)], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
