"""The README's "Two hosts in five minutes", typed as it is printed, on two hosts with systemd."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from tests.service.conftest import Pair, wait_link
from tests.support import figures

pytestmark = [pytest.mark.service, pytest.mark.slow]

README = Path(__file__).resolve().parents[2] / "README.md"


def blocks(language: str) -> list[str]:
    """Return the blocks of the section, in order."""
    section = README.read_text().split("## Two hosts in five minutes")[1].split("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def command(words: str) -> str:
    """Return the line of the section that has these words, without `sudo` and its comment."""
    (line,) = [line for block in blocks("") for line in block.splitlines() if words in line]
    return re.sub(r"\s{2,}#.*", "", line).removeprefix("sudo ")


def test_each_step_shows_what_the_page_says_within_three_minutes(bare: Pair) -> None:
    begun = time.monotonic()
    hub, edge = bare
    try:
        for machine, text in zip(bare, blocks("toml"), strict=True):
            machine.sh("echo '10.98.0.1 hub.example.net' >>/etc/hosts")
            machine.write("/etc/linkd/linkd.toml", text)
            machine.sh("systemctl enable --now linkd")
        code = re.search(r"linkd join (\S+)", hub.sh(command("linkd invite")))
        assert code is not None
        joined = edge.sh(f"{command('linkd join').replace('CODE', code[1])} 2>&1")
        assert re.search(r"\bup\b", joined), joined
        assert hub.journal().count("link.up") == 1
        sent = edge.sh(command("linkd publish"))
        assert sent == "offset 1, hub has it\n"
        shown = hub.sh(f"{command('linkd subscribe')} --count 1")
        first = time.monotonic() - begun
        assert shown == '       1 orders {"id": 7}\n'
        wait_link(edge, "hub", "up", 5.0)
        assert re.search(r"^hub +up", edge.sh("linkd status"), re.MULTILINE)
        for machine in bare:
            address = machine.sh(command("linkd token"))
            assert re.fullmatch(r"http://127\.0\.0\.1:9480/\?token=\S+\n", address)
        figures.tell(
            f"quick start: the first message was shown after {first:.1f} s, installed hosts"
        )
        assert first < 180
    finally:
        for machine in bare:
            machine.run("systemctl", "disable", "--now", "linkd.service", check=False)
            machine.run("sh", "-c", "rm -rf /etc/linkd/linkd.d/* /var/lib/linkd/*")
