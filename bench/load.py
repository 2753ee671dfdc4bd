"""The load: one C client for all systems, compiled when first used (load.c)."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("load.c")


@functools.cache
def program() -> str:
    """Compile the load and return its path.

    Raises:
        RuntimeError: There is no C compiler, or it refuses.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise RuntimeError(
            "the load needs a C compiler (Debian, Ubuntu: apt install gcc libc6-dev)"
        )
    folder = tempfile.mkdtemp(prefix="linkd-load-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    target = Path(folder) / "load"
    done = subprocess.run(
        [compiler, "-O2", "-o", str(target), str(SOURCE)], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"the load does not compile: {done.stderr[-500:]}")
    return str(target)


def start(protocol: str, **options: Any) -> subprocess.Popen[str]:
    """Start a load; options are those of load.c, True for a bare one."""
    command = [program(), "--proto", protocol]
    for name, value in options.items():
        if value is True:
            command.append(f"--{name}")
        elif value not in (None, False):
            command += [f"--{name}", str(value)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, errors="replace")


def finish(running: subprocess.Popen[str], within: float = 180.0) -> dict[str, Any]:
    """Wait for a load and return what it measured.

    Raises:
        RuntimeError: It failed, or does not end; the message says what it said.
    """
    try:
        out, err = running.communicate(timeout=within)
    except subprocess.TimeoutExpired:
        running.kill()
        running.communicate()
        raise RuntimeError(f"the load did not end within {within:g} s") from None
    if running.returncode:
        raise RuntimeError(err.strip() or f"the load ended with {running.returncode}")
    found: dict[str, Any] = json.loads(out)
    found["said"] = err.strip()
    return found


def load(protocol: str, **options: Any) -> dict[str, Any]:
    """Run a load to its end; see `start`."""
    return finish(start(protocol, **options))
