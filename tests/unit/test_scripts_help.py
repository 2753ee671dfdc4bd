"""The scripts for developers tell by `--help` what they can, before they install anything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.lab import ROOT

MODULES = {
    "soak": "tests.chaos.soak",
    "campaign": "tests.chaos",
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
    for named in re.findall(r"scripts/([a-z.-]+)", readme):
        assert (ROOT / "scripts" / named).exists(), named


def test_the_demo_refuses_an_unknown_argument(tmp_path: Path) -> None:
    done = run("demo", "--fast", venv=tmp_path / "venv")
    assert (done.returncode, done.stdout) == (2, "")
    assert "expected --install or --relay, got --fast" in done.stderr
    assert not (tmp_path / "venv").exists()


def offer(preset: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `packages demo` of scripts/environment with a table of one package that nobody has."""
    script = f"""
        set -eu
        {preset}
        . "{ROOT}/scripts/environment"
        package_table='demo nobody-has-this 5 nobody-has-this the reason'
        packages demo
        echo went on
    """
    return subprocess.run(
        ["sh", "-c", script, str(ROOT / "scripts" / "demo")],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
        env={"PATH": "/usr/bin:/bin", **environment},
    )


def test_without_a_terminal_missing_packages_are_named_and_the_script_goes_on() -> None:
    done = offer("")
    assert (done.returncode, done.stdout) == (0, "went on\n")
    assert "nobody-has-this" in done.stderr
    assert done.stderr.count("\n") == 1
    assert "--install" in done.stderr or "lacks" in done.stderr


@pytest.mark.parametrize(
    ("preset", "environment"),
    [("INSTALL=1", {}), ("", {"CI": "true"}), ("", {"LINKD_REQUIRE_ALL": "1"})],
    ids=["--install", "CI", "LINKD_REQUIRE_ALL"],
)
def test_where_they_are_wanted_they_are_installed_without_asking(
    tmp_path: Path, preset: str, environment: dict[str, str]
) -> None:
    log = tmp_path / "log"
    for name in ("apt-get", "sudo", "id"):
        tool = tmp_path / name
        tool.write_text(f'#!/bin/sh\necho "{name} $*" >>{log}\n')
        tool.chmod(0o755)
    (tmp_path / "id").write_text("#!/bin/sh\necho 1000\n")
    done = offer(preset, **(environment | {"PATH": f"{tmp_path}:/usr/bin:/bin"}))
    assert (done.returncode, done.stdout) == (0, "went on\n"), done.stderr
    (call,) = [line for line in log.read_text().splitlines() if line.startswith("sudo ")]
    assert call.endswith("nobody-has-this") or "nobody-has-this" in log.read_text()


FAKE_PYTEST = """#!/bin/sh
# Stands in for the Python of the environment: answers one run of pytest after the other.
number=$(($(cat "{here}/count" 2>/dev/null || echo 0) + 1))
echo "$number" >"{here}/count"
echo "$*" >>"{here}/calls"
cat "{here}/out.$number" 2>/dev/null
exit "$(cat "{here}/code.$number" 2>/dev/null || echo 0)"
"""
ONE = "FAILED tests/unit/test_a.py::test_b[x y] - assert 1 == 2\n"


def scripted(tmp_path: Path, *runs: tuple[int, str]) -> tuple[int, str, list[str]]:
    """Run scripts/test with a pytest that ends so; return its code, what it printed, the calls."""
    binary = tmp_path / "venv" / "bin"
    binary.mkdir(parents=True)
    (binary / "python").write_text(FAKE_PYTEST.format(here=tmp_path))
    (binary / "python").chmod(0o755)
    sources = [(ROOT / name).read_bytes() for name in ("setup.cfg", "pyproject.toml")]
    words = ["cksum"]
    summed = subprocess.run(words, input=b"".join(sources), capture_output=True, check=True)
    (tmp_path / "venv" / ".linkd-stamp").write_text(f"{summed.stdout.decode().strip()} [test]\n")
    for number, (code, out) in enumerate(runs, 1):
        (tmp_path / f"code.{number}").write_text(str(code))
        (tmp_path / f"out.{number}").write_text(out)
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "node").write_text("#!/bin/sh\nexit 1\n")
    (tools / "node").chmod(0o755)
    done = subprocess.run(
        [str(ROOT / "scripts" / "test")],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        env={"PATH": f"{tools}:{os.environ['PATH']}", "LINKD_VENV": str(tmp_path / "venv")},
    )
    calls = (tmp_path / "calls").read_text().splitlines()
    return done.returncode, done.stdout + done.stderr, calls


def test_all_passed_is_exit_0(tmp_path: Path) -> None:
    code, said, calls = scripted(tmp_path, *[(0, "1 passed\n")] * 3)
    assert code == 0, said
    assert said.endswith("test: all passed\n")
    parallel, waiting, timing = calls
    assert parallel.endswith("-m not timing and not (lab or service or slow or web)")
    assert waiting.endswith("-m not timing and (lab or service or slow or web)")
    assert timing.endswith("-m timing")


def test_what_fails_is_run_again_alone_and_listed(tmp_path: Path) -> None:
    code, said, calls = scripted(tmp_path, (1, ONE), (0, ""), (0, ""), (0, "1 passed\n"))
    assert code == 0, said
    assert calls[3] == "-m pytest tests/unit/test_a.py::test_b[x y]"
    assert "== 1 tests were run again, alone:\ntests/unit/test_a.py::test_b[x y]\n" in said


def test_what_fails_again_has_failed(tmp_path: Path) -> None:
    code, said, _ = scripted(tmp_path, (0, ""), (0, ""), (1, ONE), (1, ONE))
    assert code == 1
    assert "test: failed: timing" in said


@pytest.mark.parametrize(
    "out",
    [
        "ERROR tests/unit/test_a.py - no such module\n",
        "interrupted\n",
        "",
        "".join(ONE.replace("x y", str(number)) for number in range(11)),
    ],
    ids=["does not import", "no names", "nothing", "too many"],
)
def test_what_names_no_test_or_too_many_is_not_run_again(tmp_path: Path, out: str) -> None:
    code, said, calls = scripted(tmp_path, (2, out), (0, ""), (0, ""))
    assert (code, len(calls)) == (1, 3)
    assert "test: failed: parallel" in said
