"""docs/how-to/several-hubs.md, typed on bare hosts with systemd: every block, in its order.

Needs what packaging/build has made: LINKD_PACKAGES is its directory. `packaging/try` runs this.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.bare import prepared
from tests.support.machine import Machine, bridge
from tests.support.needs import need

PACKAGES = os.environ.get("LINKD_PACKAGES")

pytestmark = [
    pytest.mark.service,
    pytest.mark.slow,
    pytest.mark.skipif(PACKAGES is None, reason="LINKD_PACKAGES names no directory of packages"),
]

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "how-to" / "several-hubs.md"
ADDRESSES = {
    "lb": "10.0.0.5",
    "hub-a": "10.0.0.11",
    "hub-b": "10.0.0.12",
    "hub-c": "10.0.0.13",
    "pg1": "10.0.0.21",
    "pg2": "10.0.0.22",
    "edge-1": "10.0.0.99",
}
SCP = """#!/bin/sh
# scp between the machines of a test: [-r] FILE ... HOST:DIR, or HOST:FILE DIR
set -eu
pid() { cat "{pids}/${1#root@}"; }
enter() { exec nsenter -t "$(pid "$1")" -m -r -w -- sh -euc "$2" sh "$3"; }
[ "$1" != -r ] || shift
case $1 in
*:*)
    file=${1#*:}
    (enter "${1%%:*}" 'cd "$(dirname "$1")"; tar -c "$(basename "$1")"' "$file") | tar -x -C "$2" ;;
*)
    for to; do :; done
    while [ $# -gt 1 ]; do
        unpack='cd /root; cd "${1:-.}"; exec tar -x --no-same-owner'
        tar -c -C "$(dirname "$1")" "$(basename "$1")" | (enter "${to%%:*}" "$unpack" "${to#*:}")
        shift
    done ;;
esac
"""


def blocks() -> Iterator[tuple[list[str], str]]:
    """Yield each block of the page with the hosts that its first line names."""
    for block in re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        first, _, rest = block.partition("\n")
        assert first.startswith("# "), block
        yield first[2:].split(", "), rest


class Typist:
    """Types the blocks, as an administrator who reads the page.

    Args:
        machines: The hosts by name.
        directory: The administrator's clone, with `conf` and `dist`.
    """

    def __init__(self, machines: dict[str, Machine], directory: Path) -> None:
        self._machines, self._directory = machines, directory
        self._code = ""
        self.said: list[str] = []
        assert PACKAGES is not None
        (directory / "clone").mkdir()
        (directory / "clone" / "conf").symlink_to(ROOT / "conf")
        (directory / "clone" / "dist").symlink_to(Path(PACKAGES).resolve())
        (directory / "pids").mkdir()
        for name, machine in machines.items():
            (directory / "pids" / name).write_text(str(machine.pid))
        (directory / "bin").mkdir()
        scp = directory / "bin" / "scp"
        scp.write_text(SCP.replace("{pids}", str(directory / "pids")))
        scp.chmod(0o755)

    def type(self, host: str, block: str) -> str:
        """Type a block on a host and return all that it said."""
        begun = time.monotonic()
        if host == "your machine":
            said = self._at_home(block)
        else:
            if host.startswith("the hub that has "):
                host = self._holder(host.rpartition(" ")[2])
            block = block.replace("linkd join CODE", f"linkd join {self._code}")
            script = f"export DEBIAN_FRONTEND=noninteractive HOME=/root; cd; exec 2>&1\n{block}"
            command = ("bash", "-euo", "pipefail", "-c", script)
            done = self._machines[host].run(*command, check=False, timeout=300)
            said = done.stdout
            if done.returncode:
                journal = self._machines[host].sh("journalctl -n 40 -o short --no-pager")
                pytest.fail(f"{host}: {block}\n{said}\n{journal}", pytrace=False)
        self.said.append(said)
        print(f"== {host}, {time.monotonic() - begun:.1f} s\n{block}-- said\n{said}", flush=True)
        code = re.search(r"linkd join (\S+)", said)
        if code is not None:
            self._code = code[1]
        return said

    def _at_home(self, block: str) -> str:
        cluster = self._directory / "clone" / "cluster"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=cluster if cluster.exists() else cluster.parent,
            env={**os.environ, "PATH": f"{self._directory}/bin:{os.environ['PATH']}"},
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def _holder(self, edge: str) -> str:
        """Return the hub that has the edge, as any of them shows it within seconds."""
        for _ in range(60):
            links = json.loads(self._machines["hub-a"].sh("linkd status --json"))["links"]
            for link in links:
                if (link["peer"], link["state"]) == (edge, "up"):
                    return str(link["instance"])
            time.sleep(0.25)
        raise AssertionError(f"no hub has {edge}")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the root of bare hosts of Debian 12; apt has what the page installs."""
    need("root", "systemd", "network namespaces", "debootstrap")
    installs = ("python3", "procps", "postgresql", "redis-server", "haproxy")
    return prepared("bookworm", tmp_path_factory.mktemp("prepared"), *installs)


def test_the_page_is_typed(root: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        machines = {}
        for name in ADDRESSES:
            (tmp_path / name).mkdir()
            machines[name] = stack.enter_context(Machine(name, tmp_path / name, root))
            machines[name].sh(f"hostname {name}; hostname >/etc/hostname")
        bridge(machines, ADDRESSES)
        typist = Typist(machines, tmp_path)
        for hosts, block in blocks():
            for host in hosts:
                typist.type(host, block)
    said = "".join(typist.said)
    for words in (
        r"pg2 +\| sync",
        r"# /etc/linkd/linkd.toml, .*: fine",
        r"cluster.bus: Redis 7\S+ at rediss://lb:6379, with TLS, with a password",
        r"hub-a \(here\) +up",
        r"hub is up at wss://hub.example.net:9443/link",
        r"offset 1, hub has it",
        r"1 orders \{\"id\": 1\}",
        r"edge-1 +up .* hub-[abc]",
        r"offset 2, hub has it",
        r"offset 3, hub has it",
    ):
        assert re.search(words, said), words
