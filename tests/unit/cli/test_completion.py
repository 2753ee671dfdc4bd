"""The scripts for shells name every command and option, and the shells take them."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest

from linkd.cli import COMMANDS, completion, main
from tests.support.needs import need


def completed(*words: str) -> list[str]:
    """Return what bash offers for the last word."""
    need("bash")
    typed = " ".join(f"'{word}'" for word in words)
    lines = [
        "linkd() { echo hub; }",
        completion.bash_script(),
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
    assert completed("linkd", "log", "s") == ["stat"]
    assert completed("linkd", "drill", "black") == ["blackhole"]
    assert completed("linkd", "publish", "--wait", "h") == ["hub"]
    assert completed("linkd", "run", "--log-level", "d") == ["debug"]
    assert completed("linkd", "log", "verify", "--segment", "s") == [], "bash offers files"
    assert completed("linkd", "-c", "file", "--socket", "path", "kick", "h") == ["hub"]
    assert completed("linkd", "-c", "s") == []
    assert completed("linkd", "--v") == ["--version"]
    assert {"--consumer", "--from"} <= set(completed("linkd", "subscribe", "--"))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_it_is_printed(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert capsys.readouterr().out == getattr(completion, f"{shell}_script")()


def test_without_a_shell_it_names_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion"]) == 2
    assert capsys.readouterr().err == "linkd: expected a shell: bash, zsh, fish\n"


def test_fish_gets_every_command_and_option() -> None:
    script = completion.fish_script()
    for name, parser in completion.parsers().items():
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
    assert list(in_fish("linkd log s")) == ["stat"]
    assert list(in_fish("linkd publish --wait h")) == ["hub"]
    assert list(in_fish("linkd run --log-level d")) == ["debug"]


def in_zsh(*words: str) -> list[str]:
    """Return what zsh offers for the last word; `_describe` and `_files` print what they get."""
    need("zsh")
    typed = " ".join(f"'{word}'" for word in words)
    program = [
        "compdef() { :; }; linkd() { echo hub; }; _files() { echo FILES; }",
        "_describe() { print -rl -- ${(P)${@[-1]}}; }",
        completion.zsh_script(),
        f"words=({typed}); CURRENT={len(words)}; _linkd",
    ]
    zsh = ["zsh", "-f", "-c", "\n".join(program)]
    done = subprocess.run(zsh, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_zsh_gets_commands_options_and_peers() -> None:
    assert in_zsh("linkd", "") == [f"{name}:{COMMANDS[name][1]}" for name in sorted(COMMANDS)]
    assert "--watch:redraw every second until ^C" in in_zsh("linkd", "status", "--w")
    assert in_zsh("linkd", "-c", "file", "kick", "h") == ["hub"]
    assert in_zsh("linkd", "-c", "s") == ["FILES"]
    assert in_zsh("linkd", "version", "h") == ["FILES"]
    assert in_zsh("linkd", "log", "verify", "--segment", "s") == ["FILES"]
    assert in_zsh("linkd", "log", "s") == ["stat", "verify", "trim", "init", "migrate", "copy"]
    assert in_zsh("linkd", "publish", "--wait", "h") == ["hub"]
    assert in_zsh("linkd", "run", "--log-level", "d") == ["debug", "info", "warn", "error"]
    offered = [line.partition(":")[0] for line in in_zsh("linkd", "subscribe", "-")]
    assert offered == list(completion.parsers()["subscribe"]._option_string_actions)


class Terminal:
    """A shell on a terminal of its own, where someone types."""

    def __init__(self, *command: str, directory: Path) -> None:
        own = {"TERM": "dumb", "HOME": str(directory), "ZDOTDIR": str(directory)}
        child, self.file = pty.fork()
        if child == 0:
            os.chdir(directory)
            os.execvpe(command[0], command, {**os.environ, **own})
        self.child = child
        self.seen = ""

    def type(self, text: str, until: str) -> None:
        """Type a text, then wait for what it brings."""
        self.seen = ""
        os.write(self.file, text.encode())
        ends = time.monotonic() + 20
        while until not in self.seen:
            readable, _, _ = select.select([self.file], [], [], max(0, ends - time.monotonic()))
            assert readable, (until, self.seen)
            self.seen += os.read(self.file, 65536).decode(errors="replace")

    def close(self) -> None:
        os.kill(self.child, signal.SIGKILL)
        os.waitpid(self.child, 0)
        os.close(self.file)


@pytest.mark.parametrize(
    ("shell", "command", "load"),
    [
        ("bash", ("bash", "--norc", "--noprofile", "-i"), ". ./script"),
        ("zsh", ("zsh", "-d", "-f", "-i"), "autoload -Uz compinit; compinit -u -D; . ./script"),
    ],
)
def test_a_typed_tab_completes(
    shell: str, command: tuple[str, ...], load: str, tmp_path: Path
) -> None:
    """A function in place of the program prints the words that it gets."""
    need(shell)
    (tmp_path / "script").write_text(getattr(completion, f"{shell}_script")())
    terminal = Terminal(*command, directory=tmp_path)
    try:
        function = 'linkd() { if [ "$1" = completion ]; then echo hub; else echo "got=$*="; fi; }'
        terminal.type(f"{load}; {function}; echo rea''dy\n", "ready")
        got = "got=subscribe orders --consumer billing="
        terminal.type("linkd subs\torders --cons\tbilling\n", got)
        terminal.type("linkd -c scri\tkick h\t\n", "got=-c script kick hub=")
    finally:
        terminal.close()
