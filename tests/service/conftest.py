"""Two hosts with linkd installed by scripts/install, under a real systemd, joined by a line."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.daemon import SECRET
from tests.support.lab import ROOT
from tests.support.machine import Machine, host_files, join
from tests.support.needs import lacking, need

SOURCE = "/opt/source"
SYSTEM_PYTHON = "/usr/bin/python3"
API = '[api]\nsocket = "/run/linkd/linkd.sock"\n'
CREDENTIALS = "/run/credentials/linkd.service"
HUB = f"""
[node]
name = "hub"
{API}
[listen]
address = "0.0.0.0:443"
insecure = true
[[peer]]
name = "edge"
secret_file = "{CREDENTIALS}/secret_edge"
"""
EDGE = f"""
[node]
name = "edge"
{API}
[[peer]]
name = "hub"
dial = ["ws://10.98.0.1:443/link"]
insecure = true
secret_file = "/etc/linkd/hub.secret"
"""


class Pair(NamedTuple):
    """The two machines."""

    hub: Machine
    edge: Machine


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with the wheels of linkd and of all it needs."""
    need("root", "systemd", "network namespaces")
    version = "import sys; print(sys.version_info[:2])"
    found = subprocess.run([SYSTEM_PYTHON, "-c", version], capture_output=True, text=True)
    if found.stdout.strip() != str(sys.version_info[:2]):
        lacking(f"a {SYSTEM_PYTHON} of the version that runs the tests, {sys.version_info[:2]}")
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # of all workers, which build them once
    built = shared / "wheels"
    with (shared / "wheels.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not built.exists():
            building = tmp_path_factory.mktemp("building")
            _build(tmp_path_factory.mktemp("source"), building)
            building.rename(built)
    return built


def _build(source: Path, wheels: Path) -> None:
    """Put the wheels of linkd and of all it needs into `wheels`; `source` is an empty directory."""
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "linkd", source / "linkd")
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet")
    subprocess.run([*pip, "--wheel-dir", str(wheels), str(source)], check=True, timeout=900)


def install(machine: Machine, wheels: Path) -> str:
    """Run scripts/install on a machine; return what it said."""
    carry(machine, wheels, "/opt/wheels", ".")
    carry(machine, ROOT, SOURCE, "scripts", "systemd", "conf", "docs", "packaging")
    script = f"{SOURCE}/scripts/install"
    return machine.run(script, "--wheels", "/opt/wheels", timeout=900).stdout


def carry(machine: Machine, directory: Path, to: str, *names: str) -> None:
    """Copy files to a machine, through a pipe: its /tmp, for one, is its own."""
    packed = subprocess.Popen(["tar", "-C", str(directory), "-c", *names], stdout=subprocess.PIPE)
    machine.sh(f"rm -rf {to}; mkdir -p {to}")
    unpack = machine.enter("tar", "-C", to, "-x")
    subprocess.run(unpack, stdin=packed.stdout, check=True, timeout=60)
    assert packed.stdout is not None
    packed.stdout.close()
    assert packed.wait(10) == 0


@pytest.fixture(scope="module")
def bare(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Return two joined machines with linkd installed, but not configured."""
    before = set(host_files())
    marker = tmp_path_factory.mktemp("marker") / "stays"
    marker.write_text("here")
    with ExitStack() as stack:
        made = [
            stack.enter_context(Machine(name, tmp_path_factory.mktemp(name)))
            for name in ("hub", "edge")
        ]
        join(made[0], made[1])
        with ThreadPoolExecutor(2) as pool:
            for said in pool.map(install, made, [wheels, wheels]):
                assert "Next: write /etc/linkd/linkd.toml" in said
        yield Pair(made[0], made[1])
    gone = before - set(host_files())
    assert marker.read_text() == "here", "files of the machine that runs the tests have gone"
    assert not gone, f"gone from the machine that runs the tests: {gone}"


@pytest.fixture
def pair(bare: Pair) -> Iterator[Pair]:
    """Return the machines, configured, running and linked."""
    bare.hub.write("/etc/linkd/linkd.toml", HUB)
    bare.hub.write("/etc/linkd/credentials/edge", SECRET, "0600", "root")
    bare.edge.write("/etc/linkd/linkd.toml", EDGE)
    bare.edge.write("/etc/linkd/hub.secret", SECRET)
    for machine in bare:
        machine.run("systemctl", "reset-failed", "linkd.service", check=False)
        started = machine.run("systemctl", "restart", "linkd.service", check=False)
        assert started.returncode == 0, machine.journal()[-3000:]
    wait_link(bare.edge, "hub", "up", 20.0)
    yield bare
    for machine in bare:
        machine.run("systemctl", "kill", "-s", "CONT", "linkd.service", check=False)
        machine.run("systemctl", "stop", "linkd.service", check=False)
        machine.run("sh", f"{SOURCE}/scripts/restore.sh")


def link(machine: Machine, peer: str) -> dict[str, object]:
    """Return the status of one link, by the command that operators use."""
    said = machine.run("linkd", "status", "--json", check=False)
    if said.returncode != 0 or not said.stdout.strip():
        return {"state": f"linkd status: exit {said.returncode} {said.stderr.strip()}"}
    for found in json.loads(said.stdout)["links"]:
        if found["peer"] == peer:
            return dict(found)
    return {"state": "absent"}


def wait_link(machine: Machine, peer: str, state: str, within: float) -> float:
    """Wait until a link is in a state, or `down`: in any but `up`; return the seconds that took.

    Raises:
        AssertionError: It was not in time; the message has the journal.
    """
    begun = time.monotonic()
    while (found := link(machine, peer))["state"] != state and not (
        state == "down" and found["state"] != "up"
    ):
        waited = time.monotonic() - begun
        assert waited < within, f"{found}\n{machine.journal()[-3000:]}"
        time.sleep(0.1)
    return time.monotonic() - begun
