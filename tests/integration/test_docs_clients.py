"""Every example of docs/clients/python.md and cli.md, run against a real daemon."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from linkd.drill.testbed import free_port
from tests.support.daemon import Daemon

ROOT = Path(__file__).resolve().parents[2]


def examples(page: str, language: str) -> list[str]:
    text = (ROOT / "docs" / "clients" / page).read_text()
    found = re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert found
    return found


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with Daemon("edge-1", "") as running:
        yield running


def run(daemon: Daemon, *command: str, path: str = "") -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=30, check=False, cwd="/",
        env={
            **os.environ,
            "LINKD_SOCKET": str(daemon.socket),
            "PYTHONPATH": str(ROOT),
            "PATH": f"{path}:{os.environ['PATH']}",
        },
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    # The examples before have made the consumer.
    assert re.sub(r"linkd: consumer .* goes on at offset .*\n", "", done.stderr) == ""
    return done.stdout


@pytest.mark.parametrize("example", examples("python.md", "python"))
def test_python(daemon: Daemon, example: str) -> None:
    assert run(daemon, sys.executable, "-c", example)


def test_cli(daemon: Daemon, tmp_path: Path) -> None:
    """In order: the second example reads what the first has published."""
    command = tmp_path / "linkd"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m linkd "$@"\n')
    command.chmod(0o755)
    for example in examples("cli.md", "sh"):
        assert run(daemon, "bash", "-euo", "pipefail", "-c", example, path=str(tmp_path))


def test_the_examples_say_what_they_promise(daemon: Daemon) -> None:
    said = run(daemon, sys.executable, "-c", examples("python.md", "python")[1])
    assert said.startswith("10000 stored, in order: True\n10000 more, from ")
    assert run(daemon, sys.executable, "-c", examples("python.md", "python")[-1]) == "all there\n"


@pytest.mark.slow
def test_the_tour(tmp_path: Path) -> None:
    """Every line of docs/tutorial.md, in order, in one shell."""
    text = (ROOT / "docs" / "tutorial.md").read_text().replace("19443", str(free_port()))
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    command = tmp_path / "linkd"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m linkd "$@"\n')
    command.chmod(0o755)
    python = tmp_path / "python3"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    end = "trap 'for end in CONT TERM; do kill -$end $(jobs -p) 2>/dev/null || true; done' EXIT\n"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", end + "\n".join(blocks) + "\nwait\n"],
        capture_output=True, text=True, timeout=100, check=False, cwd=tmp_path,
        env={
            **{name: value for name, value in os.environ.items() if "LINKD" not in name},
            "PYTHONPATH": str(ROOT),
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
        },
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    for words in (
        "hub.toml: fine", "offset 1, hub has it", '1 orders {"id": 1}', "offset 2, edge-1 has it",
        "hub   DOWN", "stopped planned", "socket/billing            6",
        "link down: the peer said goodbye", "silence: nothing was heard for 2.0 s", '{"id": 5}',
        "".join(f"billing order {number} from edge-1\n" for number in (1, 2, 3, 4)),
    ):  # fmt: skip
        assert words in done.stdout, f"{words}\n{done.stdout}"
