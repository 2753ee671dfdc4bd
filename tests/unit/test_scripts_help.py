"""The scripts for developers tell by `--help` what they can, before they install anything."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.lab import ROOT

MODULES = {
    "soak": "tests.campaign.soak",
    "campaign": "tests.campaign",
    "conformance": "tests.conformance.suite",
    "fuzz": "tests.fuzz.shares",
    "bench": "",
    "demo": "",
}
OPTION = re.compile(r"--[a-z][a-z-]*")


def run(name: str, *words: str, venv: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / "scripts" / name), *words],
        capture_output=True,
        text=True,
        timeout=20,
        env={"PATH": "/usr/bin:/bin", "LINKD_VENV": str(venv)},
    )


@pytest.mark.parametrize("name", MODULES)
def test_help_needs_no_environment(name: str, tmp_path: Path) -> None:
    for word in ("--help", "-h"):
        done = run(name, word, venv=tmp_path / "venv")
        assert (done.returncode, done.stderr) == (0, "")
        assert "set -eu" not in done.stdout
        assert "xit" in done.stdout, "the exit codes"
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize(("name", "module"), [pair for pair in MODULES.items() if pair[1]])
def test_help_names_every_option(name: str, module: str, tmp_path: Path) -> None:
    real = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
    )
    assert real.returncode == 0, real.stderr
    options = set(OPTION.findall(real.stdout)) - {"--help"}
    assert len(options) > 3
    told = set(OPTION.findall(run(name, "--help", venv=tmp_path).stdout))
    assert options - told == set()
    assert told - options - {"--help"} == set()


def test_the_readme_names_them_all() -> None:
    readme = (ROOT / "README.md").read_text()
    for name in MODULES:
        assert f"scripts/{name}" in readme, name
    for named in re.findall(r"scripts/([a-z.]+)", readme):
        assert (ROOT / "scripts" / named).exists(), named


def test_the_demonstration_takes_no_arguments(tmp_path: Path) -> None:
    done = run("demo", "--fast", venv=tmp_path / "venv")
    assert (done.returncode, done.stdout) == (2, "")
    assert "takes no arguments, got --fast" in done.stderr
    assert not (tmp_path / "venv").exists()
