"""The package for Debian on bare hosts with systemd: installed, paired, upgraded, purged.

Needs what packaging/build has made: LINKD_PACKAGES is its directory. `packaging/try` runs this.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from linkd.version import VERSION
from tests.service.conftest import Pair, carry, wait_link
from tests.support import figures
from tests.support.bare import prepared
from tests.support.machine import Machine, join
from tests.support.needs import need

PACKAGES = os.environ.get("LINKD_PACKAGES")
RELEASES = {"deb12": "bookworm", "deb13": "trixie"}

pytestmark = [
    pytest.mark.service,
    pytest.mark.slow,
    pytest.mark.skipif(PACKAGES is None, reason="LINKD_PACKAGES names no directory of packages"),
]

ROOT = Path(__file__).resolve().parents[2]
HUB = '[node]\nname = "hub"\n[listen]\naddress = "0.0.0.0:9443"\n'
EDGE = '[node]\nname = "edge"\n'

NEXT = "0.9"
STRICT = "0.10"

EVERYTHING = "find / /run /dev/shm -xdev -path /proc -prune -o -print | grep -i linkd || true"


@pytest.fixture(scope="module", params=sorted(RELEASES))
def release(request: pytest.FixtureRequest) -> str:
    need("root", "systemd", "network namespaces", "debootstrap")
    return str(request.param)


@pytest.fixture(scope="module")
def root(release: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the root of a bare host of a release, made ready for systemd."""
    # The package brings them by itself.
    return prepared(RELEASES[release], tmp_path_factory.mktemp("prepared"), "python3", "procps")


@pytest.fixture(scope="module")
def packages(release: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with the package, the next version, and one that refuses to start."""
    assert PACKAGES is not None
    (package,) = Path(PACKAGES).glob(f"linkd_{VERSION}~{release}_*.deb")
    directory = tmp_path_factory.mktemp("packages")
    shutil.copy(package, directory)
    unpacked = directory / "unpacked"
    subprocess.run(["dpkg-deb", "-R", package, unpacked], check=True)
    (module,) = unpacked.glob("opt/linkd/lib/python3.*/site-packages/linkd/version.py")
    shutil.rmtree(module.parent / "__pycache__")
    control = unpacked / "DEBIAN" / "control"
    fields = control.read_text()
    for version, more in ((NEXT, ""), (STRICT, "raise SystemExit('linkd: no such setting')\n")):
        module.write_text(f'VERSION = "{version}"\n{more}')
        control.write_text(re.sub("(?m)^Version: .*", f"Version: {version}~{release}", fields))
        made = directory / package.name.replace(VERSION, version)
        build = ["dpkg-deb", "--root-owner-group", "-Znone", "-b", unpacked, made]
        subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(unpacked)
    return directory


@pytest.fixture
def hosts(root: str, packages: Path, tmp_path: Path) -> Iterator[Pair]:
    with ExitStack() as stack:
        made = []
        for name in ("hub", "edge"):
            (tmp_path / name).mkdir()
            made.append(stack.enter_context(Machine(name, tmp_path / name, root)))
            carry(made[-1], packages, "/root/packages", ".")
            carry(made[-1], ROOT, "/root/source", "scripts", "systemd")
        join(made[0], made[1])
        made[1].sh("echo 10.98.0.1 hub.example.net >>/etc/hosts")
        made[0].sh("echo 10.98.0.1 hub.example.net >>/etc/hosts")
        yield Pair(made[0], made[1])


def test_a_package_and_the_script_leave_each_other_alone(hosts: Pair, release: str) -> None:
    hub, edge = hosts
    package = f"/root/packages/linkd_{VERSION}~{release}_amd64.deb"
    edge.sh("mkdir -p /opt/linkd.releases/one; ln -s linkd.releases/one /opt/linkd")
    refused = edge.run("apt-get", "install", "-y", package, check=False, timeout=300)
    assert refused.returncode != 0
    assert "run it with --uninstall first" in refused.stdout
    assert edge.sh("ls -A /opt/linkd.releases/one") == ""

    hub.run("apt-get", "install", "-y", package, timeout=300)
    hub.write("/etc/linkd/linkd.toml", HUB)
    for arguments in ((), ("--uninstall",), ("--purge", "--yes")):
        refused = hub.run("/root/source/scripts/install", *arguments, check=False)
        assert refused.returncode == 1
        assert "not made by this script" in refused.stderr
    assert hub.sh("linkd check >/dev/null; linkd version") == f"linkd {VERSION}\n"


class Steps:
    """Literal commands, each with the time that it took."""

    def __init__(self, release: str) -> None:
        self._release = release

    def run(self, host: Machine, command: str) -> str:
        begun = time.monotonic()
        script = f"export DEBIAN_FRONTEND=noninteractive; cd /root/packages; {command} 2>&1"
        said = host.run("sh", "-c", script, timeout=300).stdout
        seconds = time.monotonic() - begun
        shown = re.sub("linkd join .*", "linkd join CODE", command)
        figures.tell(f"{self._release} {host.name}# {shown}  ({seconds:.1f} s)")
        return said


def test_two_hosts_are_installed_paired_upgraded_and_purged(hosts: Pair, release: str) -> None:
    hub, edge = hosts
    steps = Steps(release)
    first, following, strict = (
        f"linkd_{version}~{release}_amd64.deb" for version in (VERSION, NEXT, STRICT)
    )
    before = {host: {*host.sh(EVERYTHING).splitlines()} for host in hosts}

    for host, text in ((hub, HUB), (edge, EDGE)):
        said = steps.run(host, f"apt-get install -y ./{first}")
        assert "Next: write /etc/linkd/linkd.toml" in said
        host.write("/etc/linkd/linkd.toml", text)
        steps.run(host, "systemctl enable --now linkd")
    said = steps.run(hub, "linkd invite edge --address hub.example.net:9443 --receive orders")
    code = re.search(r"linkd join (\S+)", said)
    assert code is not None
    assert re.search(r"\bup\b", steps.run(edge, f"linkd join {code[1]}"))
    said = steps.run(edge, "linkd publish orders '{\"id\": 7}' --wait hub")
    assert said == "offset 1, hub has it\n"
    said = steps.run(hub, "linkd subscribe orders --from earliest --count 1")
    assert said == '       1 orders {"id": 7}\n'

    for host in hosts:
        said = steps.run(host, f"apt-get install -y ./{following}")
        assert f"linkd: linkd {NEXT} is running" in said
    wait_link(edge, "hub", "up", 20.0)
    said = steps.run(edge, "linkd publish orders '{\"id\": 8}' --wait hub")
    assert said == "offset 2, hub has it\n"

    installed = edge.sh("dpkg -L linkd")
    assert "/usr/share/man/man1/linkd-status.1.gz" in installed
    assert "/usr/share/bash-completion/completions/linkd" in installed

    # One whose check fails is not started.
    pid = edge.main_pid()
    failed = edge.run("dpkg", "-i", f"/root/packages/{strict}", check=False, timeout=120)
    assert failed.returncode != 0
    assert "no such setting" in failed.stderr
    assert "the one before runs on" in failed.stderr
    assert edge.main_pid() == pid
    steps.run(edge, f"apt-get install -y --allow-downgrades ./{following}")
    wait_link(edge, "hub", "up", 20.0)

    steps.run(edge, "apt-get remove -y linkd")
    kept = "cat /etc/linkd/linkd.toml; ls -d /opt/linkd /var/lib/linkd 2>/dev/null || true"
    assert edge.sh(kept) == f"{EDGE}/var/lib/linkd\n"
    steps.run(edge, f"apt-get install -y ./{following}")
    wait_link(edge, "hub", "up", 20.0)

    for host in hosts:
        steps.run(host, "apt-get purge -y linkd")
        left = "getent passwd linkd || true; systemctl list-units --all --no-legend 'linkd*'"
        assert host.sh(left) == ""
        assert {*host.sh(EVERYTHING).splitlines()} - before[host] == set()
