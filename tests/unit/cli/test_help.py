"""Every command, verb, argument and option says in `--help` what it is for."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator

import pytest

from linkd import cli


def parsers(
    parser: argparse.ArgumentParser,
) -> Iterator[tuple[argparse.ArgumentParser, str | None]]:
    """Yield each parser below `parser` with its line in the list above it, verbs too."""
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            continue
        lines = {choice.dest: choice.help for choice in action._choices_actions}
        for name, below in action.choices.items():
            yield below, lines.get(name)
            yield from parsers(below)


def whole(command: str) -> Iterator[tuple[argparse.ArgumentParser, str | None]]:
    for parser, line in parsers(cli._parser(command)):
        if parser.prog.split()[1] == command:
            yield parser, line


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_everything_is_described(command: str) -> None:
    found = list(whole(command))
    assert found
    for parser, line in found:
        assert line, f"{parser.prog}: no line in the list of commands"
        assert parser.description, f"{parser.prog}: no description"
        assert parser.description.endswith("."), parser.prog
        for action in parser._actions:
            where = f"{parser.prog}: {'/'.join(action.option_strings) or action.dest}"
            if isinstance(action, argparse._SubParsersAction):
                continue
            assert action.help, where
            assert action.help != argparse.SUPPRESS, where
            assert len(action.help.split()) > 1, where


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_the_line_of_a_command_is_the_same_before_and_after_it_is_loaded(command: str) -> None:
    lines = {parser.prog: line for parser, line in whole(command)}
    assert lines[f"linkd {command}"] == cli.COMMANDS[command][1]


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_fits_eighty_columns(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "82")
    for parser, _ in whole(command):
        assert cli.main([*parser.prog.split()[1:], "--help"]) == 0
        assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


@pytest.mark.parametrize("words", [[], ["help"], ["--help"]])
def test_without_a_command_it_lists_them(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert all(f"    {name} " in printed.out for name in cli.COMMANDS)
    assert max(map(len, printed.out.splitlines())) <= 82
    assert next(line for line in printed.out.splitlines() if line.endswith(":")) == "look:"


def test_examples_are_lines_that_the_parsers_take(capsys: pytest.CaptureFixture[str]) -> None:
    for command in cli.COMMANDS:
        assert cli.main([command, "--help"]) == 0
        _, found, examples = capsys.readouterr().out.partition("\nexamples:\n")
        for line in examples.splitlines():
            words = shlex.split(line.partition("&&")[0].rpartition("|")[2])
            if words[0] == "linkd":
                cli._parser(words[1]).parse_args(words[1:])
        assert found or command in ("kick", "resync", "peers", "revoke", "run", "version")


def test_help_of_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["help", "publish"]) == 0
    helped = capsys.readouterr().out
    assert cli.main(["publish", "--help"]) == 0
    assert capsys.readouterr().out == helped


@pytest.mark.parametrize(
    ("word", "said"),
    [
        (
            "publsh",
            "there is no command 'publsh' (did you mean 'publish'?): `linkd help` lists them",
        ),
        ("xyzzy", "there is no command 'xyzzy': `linkd help` lists them"),
    ],
)
def test_an_unknown_command_names_the_nearest(
    word: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([word]) == 2
    assert capsys.readouterr().err == f"linkd: {said}\n"


@pytest.mark.parametrize(
    ("words", "prog", "said"),
    [
        (["status", "--wtch"], "linkd status", "there is no option --wtch (did you mean --watch?)"),
        (
            ["log", "stat", "--jsn"],
            "linkd log stat",
            "there is no option --jsn (did you mean --json?)",
        ),
        (["--sokcet=x", "status"], "linkd", "there is no option --sokcet (did you mean --socket?)"),
        (["version", "--xyzzy"], "linkd", "unrecognized arguments: --xyzzy"),
        (["version", "-y"], "linkd", "unrecognized arguments: -y"),
    ],
)
def test_an_unknown_option_names_the_nearest(
    words: list[str], prog: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"{prog}: error: {said}"


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (["log", "verif"], "; did you mean 'verify'?"),
        (["run", "--log-level", "dbug"], "; did you mean 'debug'?"),
        (["log", "xyz"], ")"),
    ],
)
def test_a_wrong_choice_names_the_nearest(
    words: list[str], near: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"invalid choice: '{words[-1]}' (choose from " in said  # quotes follow in some versions
    assert said.endswith(near)
