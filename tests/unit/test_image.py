"""packaging/Containerfile, its entry point and the compose example keep what their page promises.

packaging/try_image.py runs the image itself.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from linkd.config import load

ROOT = Path(__file__).resolve().parents[2]
PACKAGING = ROOT / "packaging"
CONTAINERFILE = (PACKAGING / "Containerfile").read_text()
COMPOSE = (PACKAGING / "compose" / "compose.yml").read_text()


def test_the_image_runs_linkd_as_a_user_that_is_not_root() -> None:
    last = CONTAINERFILE.rpartition("\nFROM ")[2]
    assert re.findall(r"^USER (.*)$", last, re.MULTILINE) == ["10001:10001"]
    entry = json.loads(re.findall(r"^ENTRYPOINT (.*)$", last, re.MULTILINE)[0])
    assert entry == ["container-entrypoint"]
    assert json.loads(re.findall(r"^CMD (.*)$", last, re.MULTILINE)[0])[:2] == ["linkd", "run"]


def test_no_anonymous_volume_hides_that_none_was_given() -> None:
    assert not re.search(r"^VOLUME", CONTAINERFILE, re.MULTILINE)


def test_the_context_of_the_build_has_all_that_is_copied() -> None:
    allowed = (ROOT / ".dockerignore").read_text().splitlines()
    for words in re.findall(r"^COPY (?!--from)(.*)$", CONTAINERFILE, re.MULTILINE):
        for source in words.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert f"!{source}" in allowed, source


def test_the_compose_example_is_hardened_and_its_files_are_there() -> None:
    for line in ("read_only: true", "cap_drop: [ALL]", '"no-new-privileges:true"'):
        assert line in COMPOSE
    grace = re.search(r"stop_grace_period: (\d+)s", COMPOSE)
    assert grace is not None
    assert int(grace[1]) > 5
    services = COMPOSE.partition("\nservices:")[2]
    files = re.findall(r"- \./([\w.-]+\.toml):/etc/linkd/linkd\.toml:ro", services)
    assert files == ["hub.toml", "edge-1.toml"]
    for file in files:
        config = load([PACKAGING / "compose" / file])
        assert file == f"{config.node.name}.toml"
        assert f"\n  {config.node.name}:\n" in services
        assert config.node.state_dir == "/var/lib/linkd"
    assert len(re.findall(r"state:/var/lib/linkd\b", services)) == len(files)


def test_the_page_has_the_commands_of_the_compose_example() -> None:
    page = (ROOT / "docs" / "how-to" / "containers.md").read_text()
    commands = re.findall(r"^#   (docker compose .*)$", COMPOSE, re.MULTILINE)
    assert len(commands) == 5
    assert "\n".join(commands) in page


def enter(tmp_path: Path, mounted: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the entry point with a `mountpoint` that finds this, and a `linkd` that answers."""
    for name, answer in (("mountpoint", f"[ $2 = {mounted} ]"), ("linkd", 'echo "linkd $*"')):
        tool = tmp_path / name
        tool.write_text(f"#!/bin/sh\n{answer}\n")
        tool.chmod(0o755)
    return subprocess.run(
        [str(PACKAGING / "container-entrypoint"), *words],
        capture_output=True,
        text=True,
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )


def test_the_daemon_is_refused_without_a_volume_and_the_message_says_which(tmp_path: Path) -> None:
    done = enter(tmp_path, "/other", "linkd", "run", "--log-format", "json")
    assert (done.returncode, done.stdout) == (2, "")
    assert "/var/lib/linkd is no volume" in done.stderr
    assert "--volume linkd-state:/var/lib/linkd" in done.stderr


@pytest.mark.parametrize(
    ("mounted", "words"),
    [("/var/lib/linkd", ("linkd", "run")), ("/other", ("linkd", "version"))],
    ids=["with a volume", "another command"],
)
def test_all_else_is_run_as_it_is(tmp_path: Path, mounted: str, words: tuple[str, ...]) -> None:
    done = enter(tmp_path, mounted, *words)
    assert (done.returncode, done.stdout) == (0, " ".join(words) + "\n")
