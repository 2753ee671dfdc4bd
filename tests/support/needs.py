"""Say what the machine lacks: a skip with its name, or a failure where everything must run."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from linkd.drill.deadman import admin_path
from linkd.drill.testbed import faketime


def lacking(what: str) -> None:
    """Skip the test that runs, naming what the machine lacks; fail it when LINKD_REQUIRE_ALL=1."""
    if os.environ.get("LINKD_REQUIRE_ALL") == "1":
        pytest.fail(f"this machine lacks {what}, and LINKD_REQUIRE_ALL=1", pytrace=False)
    pytest.skip(f"this machine lacks {what}")


def need(*names: str) -> None:
    """Skip or fail the test that runs unless the machine has everything that is named."""
    for name in names:
        probe = PROBES.get(name)
        if not (probe() if probe is not None else which(name) is not None):
            lacking(name)


def which(program: str) -> str | None:
    """Return the path of a program, looked for in the administrator's directories too."""
    return shutil.which(program, path=admin_path())


def works(*command: str) -> bool:
    """Return whether a command ends well within 10 s."""
    try:
        return subprocess.run(command, capture_output=True, timeout=10).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


@functools.cache
def namespaces() -> bool:
    """Return whether hosts can be made: as root, or rootless in a user namespace."""
    options = "-nm" if os.geteuid() == 0 else "-Urnm"
    return works("unshare", options, "sh", "-c", "PATH=$PATH:/usr/sbin:/sbin ip link set lo up")


@functools.cache
def packet_filter() -> bool:
    """Return whether iptables works in a network namespace of ours."""
    options = "-nm" if os.geteuid() == 0 else "-Urnm"
    check = "PATH=$PATH:/usr/sbin:/sbin; iptables -w 5 -S && ip6tables -w 5 -S"
    return namespaces() and works("unshare", options, "sh", "-c", check)


PROBES: dict[str, Callable[[], bool]] = {
    "network namespaces": namespaces,
    "iptables in a network namespace": packet_filter,
    "libfaketime": lambda: faketime() is not None,
    "Django": lambda: find_spec("django") is not None,
    "root": lambda: os.geteuid() == 0,
    "systemd": lambda: Path("/lib/systemd/systemd").exists(),
}
