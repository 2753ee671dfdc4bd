"""scripts/install: again, taken back, removed, purged."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest

from tests.service.conftest import EDGE, SOURCE, Pair, install, link, wait_link
from tests.support.machine import Machine

pytestmark = [pytest.mark.service, pytest.mark.slow]

INSTALL = f"{SOURCE}/scripts/install"


def release(machine: Machine) -> str:
    """Return which environment is in use."""
    return machine.sh("readlink -f /opt/linkd").strip()


def broken(wheels: Path, directory: Path) -> Path:
    """Return wheels like these, but with a linkd that does not become ready."""
    copy = directory / "broken"
    shutil.copytree(wheels, copy)
    wheel = next(copy.glob("linkd-*.whl"))
    whole = wheel.rename(directory / "whole.whl")
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(wheel, "w") as new:
        for name in old.namelist():
            text = old.read(name)
            if name == "linkd/daemon.py":
                text = b"raise SystemExit('linkd: broken on purpose')\n"
            new.writestr(name, text)
    return copy


def test_again_it_upgrades_and_leaves_the_configuration_alone(pair: Pair, wheels: Path) -> None:
    before = release(pair.edge)
    modes = "stat -c '%n %U %G %a' /etc/linkd /etc/linkd/* /usr/local/bin/linkd"
    listed = pair.edge.sh(modes)
    said = install(pair.edge, wheels)
    assert "is running" in said
    assert release(pair.edge) != before
    assert pair.edge.sh(modes) == listed
    assert "/etc/linkd root linkd 750" in listed
    assert ".SS linkd status" in pair.edge.sh("cat /usr/local/share/man/man8/linkd.8")
    assert pair.edge.sh("cat /etc/linkd/linkd.toml") == EDGE
    wait_link(pair.edge, "hub", "up", 15.0)
    assert len(pair.edge.sh("ls /opt/linkd.releases").split()) == 2


def test_an_upgrade_that_is_not_ready_is_taken_back(
    pair: Pair, wheels: Path, tmp_path: Path
) -> None:
    before, kept = release(pair.edge), pair.edge.sh("ls /opt/linkd.releases")
    with pytest.raises(RuntimeError, match="went back to the version"):
        install(pair.edge, broken(wheels, tmp_path))
    assert release(pair.edge) == before
    pair.edge.wait_active()
    wait_link(pair.edge, "hub", "up", 15.0)
    assert pair.edge.sh("ls /opt/linkd.releases") == kept


def test_uninstall_keeps_what_is_yours_and_purge_does_not(pair: Pair, wheels: Path) -> None:
    pair.edge.run(INSTALL, "--uninstall")
    left = pair.edge.sh(
        "ls -d /etc/linkd/linkd.toml /var/lib/linkd /opt/linkd* 2>/dev/null || true"
    )
    assert left.split() == ["/etc/linkd/linkd.toml", "/var/lib/linkd"]
    for path in ("/usr/local/bin/linkd", "/usr/local/share/man/man8/linkd.8"):
        assert pair.edge.run("test", "-L", path, check=False).returncode != 0
    assert pair.edge.show("linkd.service", "LoadState") == "not-found"

    assert "is running" in install(pair.edge, wheels)
    wait_link(pair.edge, "hub", "up", 15.0)
    refused = pair.edge.run(INSTALL, "--purge", check=False)
    assert refused.returncode == 1
    assert "use --yes" in refused.stderr
    assert "hub" in refused.stdout
    assert link(pair.edge, "hub")["state"] == "up"
    pair.edge.run(INSTALL, "--purge", "--yes")
    left = pair.edge.sh(
        "ls -d /etc/linkd /var/lib/linkd /opt/linkd* 2>/dev/null || true; id linkd 2>&1 || true"
    )
    assert "no such user" in left
    assert "/linkd" not in left
    assert "Next: write" in install(pair.edge, wheels)


def test_wrong_usage_and_no_privilege(bare: Pair) -> None:
    assert bare.edge.run(INSTALL, "--fast", check=False).returncode == 2
    assert bare.edge.run(INSTALL, "--wheels", "/nowhere", check=False).returncode == 2
    plain = ["setpriv", "--reuid", "65534", "--clear-groups", INSTALL]
    done = bare.edge.run(*plain, check=False)
    assert done.returncode == 1
    assert "needs root" in done.stderr
