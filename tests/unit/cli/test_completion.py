"""The scripts for shells name every command and option, and bash and fish take them."""

from __future__ import annotations

import re
import subprocess

import pytest

from linkd.cli import COMMANDS, completion, main
from tests.support.needs import need


def completed(*words: str) -> list[str]:
    """Return what bash offers for the last word."""
    need("bash")
    typed = " ".join(f"'{word}'" for word in words)
    lines = [
        "ZSH_VERSION=; linkd() { echo hub; }",
        completion.script(),
        f"COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; _linkd; echo ${{COMPREPLY[@]}}",
    ]
    bash = ["bash", "-u", "-c", "\n".join(lines)]
    done = subprocess.run(bash, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.split()


def test_commands_options_and_peers() -> None:
    assert completed("linkd", "") == sorted(COMMANDS)
    assert completed("linkd", "sub") == ["subscribe"]
    assert completed("linkd", "status", "--w") == ["--watch"]
    assert completed("linkd", "kick", "h") == ["hub"]
    assert completed("linkd", "version", "h") == []
    assert {"--consumer", "--from"} <= set(completed("linkd", "subscribe", "--"))


def test_the_manual_page_has_every_command_and_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "--man"]) == 0
    page = capsys.readouterr().out
    for name in COMMANDS:
        assert f"\n.SS linkd {name}\n" in page
    assert page.count("\n.SS ") == len(COMMANDS)
    assert "\\-\\-consumer NAME" in page
    assert "linkd publish orders '{\"id\": 7}' \\-\\-wait hub" in page, "the examples"
    # A line that begins with one of these is a request or vanishes, but for those of the page.
    requests = {line.split(" ")[0] for line in page.splitlines() if line[:1] in (".", "'")}
    assert requests == {".TH", ".SH", ".SS", ".B", ".PP", ".nf", ".fi"}


def test_the_manual_page_is_roff_without_a_warning() -> None:
    need("groff")
    checked = ["groff", "-man", "-Tutf8", "-ww", "-z"]
    done = subprocess.run(
        checked, input=completion.manual_page(), capture_output=True, text=True, timeout=20
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_it_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion"]) == 0
    assert capsys.readouterr().out == completion.script()


def test_fish_gets_every_command_and_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "--fish"]) == 0
    script = capsys.readouterr().out
    assert script == completion.fish_script()
    for name, parser in completion._parsers().items():
        assert f"-n 'not __linkd_in' -a {name} -d '" in script
        long = [each for each in parser._option_string_actions if each.startswith("--")]
        for option in long:
            line = rf"^complete -c linkd -n '__linkd_in {name}' .*-l {option[2:]} .*-d '.+'$"
            assert re.search(line, script, re.MULTILINE), option
    for line in script.splitlines():
        quotes = re.sub(r'"[^"]*"|\\.', "", line).count("'")
        assert quotes % 2 == 0 or line.startswith("#"), line


def in_fish(typed: str) -> dict[str, str]:
    """Return what fish offers for a command line, with the descriptions."""
    need("fish")
    program = f"function linkd; echo hub; end\n{completion.fish_script()}\ncomplete -C '{typed}'"
    done = subprocess.run(
        ["fish", "--no-config", "-c", program], capture_output=True, text=True, timeout=20
    )
    assert (done.returncode, done.stderr) == (0, "")
    offered = [line.partition("\t") for line in done.stdout.splitlines()]
    return {word: about for word, _, about in offered}


def test_fish_offers_commands_options_and_peers() -> None:
    assert sorted(in_fish("linkd ")) == sorted(COMMANDS)
    assert in_fish("linkd sub") == {"subscribe": COMMANDS["subscribe"][1]}
    assert list(in_fish("linkd status --w")) == ["--watch"]
    assert list(in_fish("linkd -c file --socket path kick h")) == ["hub"]
    assert in_fish("linkd version h") == {}
    assert {"--consumer", "--from"} <= set(in_fish("linkd subscribe --"))
    assert "/etc/hostname" in in_fish("linkd check --config /etc/hostna")
