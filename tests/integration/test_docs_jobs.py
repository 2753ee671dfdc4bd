"""The programs of docs/jobs, run on a linked pair."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import SECRET, Daemon
from tests.support.needs import need
from tests.support.pairs import Pair

ROOT = Path(__file__).resolve().parents[2]
KEY = (
    '[[api.key]]\nname = "sensor"\nsecret_file = "{secret}"\npublish = ["telemetry.>"]\n'
    "subscribe = []\n"
)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    command = tmp_path / "linkd"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m linkd "$@"\n')
    command.chmod(0o755)
    with Pair(KEY) as linked:
        yield linked


def programs(page: str, language: str) -> list[str]:
    """Return the programs of a page, in order."""
    text = (ROOT / "docs" / "jobs" / page).read_text()
    found = re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert found
    return found


def start(daemon: Daemon, *command: str, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "LINKD_SOCKET": str(daemon.socket), "PYTHONPATH": str(ROOT), **more},
    )  # fmt: skip


def run(daemon: Daemon, *command: str, **more: str) -> str:
    process = start(daemon, *command, **more)
    out = process.communicate(timeout=25)[0]
    assert process.returncode == 0, out
    return out


def shell(daemon: Daemon, path: Path, example: str, **more: str) -> str:
    return run(daemon, "sh", "-euc", example, PATH=f"{path}:{os.environ['PATH']}", **more)


def test_orders_are_forwarded_once(pair: Pair, tmp_path: Path) -> None:
    publish, bill = programs("forward.md", "python")
    for _ in range(2):  # the second time, as after a crash
        assert run(pair.edge, sys.executable, "-c", publish) == "stored 3\n"
    billed = "billed 4711 47110\nbilled 4712 47120\nbilled 4713 47130\n"
    assert run(pair.hub, sys.executable, "-c", bill) == billed
    (look,) = programs("forward.md", "sh")
    assert re.search(r"billing +4 +0 +0", shell(pair.hub, tmp_path, look))


def test_a_light_is_green_while_the_link_is_up_and_gray_without_a_node(
    pair: Pair, tmp_path: Path
) -> None:
    (program,), (check,) = programs("status-light.md", "python"), programs("status-light.md", "sh")
    assert shell(pair.edge, tmp_path, check).splitlines()[-1] == "on"
    light = start(pair.edge, sys.executable, "-c", program)
    try:
        assert light.stdout is not None
        seen: list[str] = []
        for end, colour in (
            (lambda: None, "green"),
            (pair.hub.kill, "red"),
            (pair.edge.kill, "gray"),
        ):
            end()
            since = len(seen)
            while colour not in seen[since:]:
                seen.append(light.stdout.readline().strip())
                assert seen[-1] in ("green", "red", "gray"), seen
        assert shell(pair.edge, tmp_path, check).splitlines()[-1] == "off"
    finally:
        light.kill()
        light.wait(5)


def test_telemetry_is_ingested(pair: Pair, tmp_path: Path) -> None:
    need("curl")
    publish, ingest = programs("telemetry.md", "python")
    assert run(pair.edge, sys.executable, "-c", publish) == "stored 3\n"
    (post,) = programs("telemetry.md", "sh")
    url = f"http://127.0.0.1:{pair.port}"
    said = shell(pair.edge, tmp_path, post, LINKD_URL=url, LINKD_KEY=SECRET)
    assert '"offset":4' in said
    while pair.edge.link("hub")["backlog_records"]:
        time.sleep(0.02)
    assert run(pair.hub, sys.executable, "-c", ingest).endswith("rows 4\n")
