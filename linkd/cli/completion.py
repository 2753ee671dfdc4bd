"""`linkd completion`: scripts that complete commands, options and peers in bash, zsh and fish."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from linkd.cli import exits
from linkd.cli.exits import CommandError
from linkd.cli.options import add_socket

_BASH: Final = """\
# Put into ~/.bashrc: eval "$(linkd completion bash)"
_linkd() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} last=${{COMP_WORDS[COMP_CWORD-1]}}
  local command= options= words= skip= each
  COMPREPLY=()
  for each in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
    if [ -n "$skip" ]; then skip=; continue; fi
    case $each in
      -c|--config|--socket) skip=yes ;;
      -*) ;;
      *) command=$each; break ;;
    esac
  done
  [ -z "$skip" ] || return 0  # a file: readline completes it
  case $command in
{commands}
  esac
  case $command:$last in
{values}
    *) case $word in
      -*) words=$options ;;
      *) [ "$words" != peers ] || words=$(linkd completion --peers 2>/dev/null) ;;
    esac ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _linkd linkd
"""

_ZSH: Final = """\
#compdef linkd
# Put into ~/.zshrc, after compinit: source <(linkd completion zsh)
# or save it as _linkd in a directory of $fpath.
_linkd() {{
  local command= skip= each
  local -a options names
  for each in "${{(@)words[2,CURRENT-1]}}"; do
    if [[ -n $skip ]]; then skip=; continue; fi
    case $each in
      (-c|--config|--socket) skip=yes ;;
      (-*) ;;
      (*) command=$each; break ;;
    esac
  done
  if [[ -n $skip ]]; then _files; return; fi
  case $command in
{commands}
  esac
  case $command:${{words[CURRENT-1]}} in
{values}
  esac
  if [[ ${{words[CURRENT]}} == -* ]]; then _describe -o option options; return; fi
  [[ $names != peers ]] || names=(${{(f)"$(linkd completion --peers 2>/dev/null)"}})
  if (( $#names )); then _describe word names; else _files; fi
}}
if [[ $funcstack[1] == _linkd ]]; then _linkd "$@"; else compdef _linkd linkd; fi
"""

_FISH: Final = """\
# Put into ~/.config/fish/config.fish: linkd completion fish | source
function __linkd_in
    set -l words (commandline -opc)
    set -e words[1]
    while set -q words[1]
        switch $words[1]
            case -c --config --socket
                set -q words[2]; and set -e words[2]
            case '-*'
            case '*'
                test (count $argv) = 0; or contains -- $words[1] $argv
                return
        end
        set -e words[1]
    end
    return 1
end
complete -c linkd -f
complete -c linkd -n 'not __linkd_in' -s c -l config -rF -d 'configuration file'
complete -c linkd -n 'not __linkd_in' -l socket -rF -d "the daemon's socket"
complete -c linkd -n 'not __linkd_in' -l version -d 'print the version'
{lines}
"""

_PEERS: Final = "(linkd completion --peers 2>/dev/null)"

_WITH_PEER: Final = frozenset({"status", "outages", "kick", "resync", "revoke"})
"""Commands whose next word is a peer's name."""

_FILES: Final = frozenset({"FILE", "PATH", "DIR"})
"""What the value of an option is called where it is a file."""

_GLOBAL: Final = "-c --config --socket --version -h --help"


class Option(NamedTuple):
    """An option of a command."""

    names: tuple[str, ...]
    about: str
    value: str | None
    """What its value is called; None: it takes none."""
    choices: tuple[str, ...]


class Command(NamedTuple):
    """A command, with the options of its verbs."""

    name: str
    about: str
    options: tuple[Option, ...]
    words: tuple[str, ...]
    """The words that may follow, `("peers",)` for the names of peers, or none."""


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's description, arguments and options."""
    parser.description = (
        "Print a script that completes commands, options and the names of peers. Its"
        " first lines show where it belongs."
    )
    add_socket(parser)
    parser.add_argument(
        "shell", nargs="?", choices=("bash", "zsh", "fish"), help="the shell that reads the script"
    )
    parser.add_argument("--peers", action="store_true", help="print the names of all peers")


def run(arguments: argparse.Namespace) -> int:
    """Print the script, or the peers' names, one a line."""
    if arguments.peers:
        from linkd.cli import http  # noqa: PLC0415 - the scripts need no daemon

        for link in http.get(arguments, "/v1/status").json()["links"]:
            print(link["peer"])
        return exits.OK
    scripts = {"bash": bash_script, "zsh": zsh_script, "fish": fish_script}
    if arguments.shell is None:
        raise CommandError(f"expected a shell: {', '.join(scripts)}")
    print(scripts[arguments.shell](), end="")
    return exits.OK


def bash_script() -> str:
    """Return the script for bash; commands and options are taken from the parsers."""
    found = commands()
    lines = [f'    \'\') options="{_GLOBAL}" words="{" ".join(each.name for each in found)}" ;;']
    for each in found:
        options = " ".join(name for option in each.options for name in option.names)
        lines.append(f'    {each.name}) options="{options}" words="{" ".join(each.words)}" ;;')
    values = []
    for places, option in _values(found):
        if option.value in _FILES:
            values.append(f"    {places}) return 0 ;;")
        elif option.value == "PEER":
            values.append(f"    {places}) words=$(linkd completion --peers 2>/dev/null) ;;")
        else:
            values.append(f'    {places}) words="{" ".join(option.choices)}" ;;')
    return _BASH.format(commands="\n".join(lines), values="\n".join(values))


def zsh_script() -> str:
    """Return the script for zsh, with a description of each command and option."""
    found = commands()
    top = " ".join(_described(each.name, each.about) for each in found)
    lines = [f"    ('') names=({top}) options=({_GLOBAL}) ;;"]
    for each in found:
        options = " ".join(
            _described(name, option.about) for option in each.options for name in option.names
        )
        lines.append(f"    ({each.name}) options=({options}) names=({' '.join(each.words)}) ;;")
    values = []
    for places, option in _values(found):
        if option.value in _FILES:
            values.append(f"    ({places}) _files; return ;;")
        else:
            names = "peers" if option.value == "PEER" else " ".join(option.choices)
            values.append(f"    ({places}) names=({names}) ;;")
    return _ZSH.format(commands="\n".join(lines), values="\n".join(values))


def fish_script() -> str:
    """Return the script for fish, with a description of each command and option."""
    lines = []
    for each in commands():
        inside = f"complete -c linkd -n '__linkd_in {each.name}'"
        lines.append(
            f"complete -c linkd -n 'not __linkd_in' -a {each.name} -d {_quoted(each.about)}"
        )
        if each.words:
            words = _PEERS if each.words == ("peers",) else " ".join(each.words)
            lines.append(f"{inside} -a {_quoted(words)}")
        for option in each.options:
            names = [
                f"-{'l' if name.startswith('--') else 's'} {name.lstrip('-')}"
                for name in option.names
            ]
            if option.value is not None:
                names.append("-rF" if option.value in _FILES else "-x")
            if option.choices or option.value == "PEER":
                offered = " ".join(option.choices) or _PEERS
                names.append(f"-a {_quoted(offered)}")
            lines.append(" ".join([inside, *names, f"-d {_quoted(option.about)}"]))
    return _FISH.format(lines="\n".join(lines))


def commands() -> list[Command]:
    """Return every command with the options that its parser has."""
    from linkd.cli import COMMANDS  # noqa: PLC0415 - which loads this module

    found = []
    for name, parser in sorted(parsers().items()):
        options: dict[tuple[str, ...], Option] = {}
        words: tuple[str, ...] = ("peers",) if name in _WITH_PEER else ()
        for action in _actions(parser):
            choices = tuple(map(str, action.choices or ()))
            if action.option_strings:
                value = None if action.nargs == 0 else str(action.metavar or action.dest)
                key = tuple(action.option_strings)
                options[key] = Option(key, about(parser, action), value, choices)
            else:
                words = words or choices
        if name == "drill":
            from linkd.cli.drill import LIVE_DRILLS  # noqa: PLC0415 - loaded already

            words = LIVE_DRILLS
        found.append(Command(name, COMMANDS[name][1], tuple(options.values()), words))
    return found


def about(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """Return the help of an argument or option, with its default filled in."""
    return parser._get_formatter()._expand_help(action) if action.help else ""


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each command."""
    from linkd.cli import COMMANDS  # noqa: PLC0415 - which loads this module
    from linkd.cli.options import StrictParser  # noqa: PLC0415

    subparsers = StrictParser(prog="linkd").add_subparsers(parser_class=StrictParser)
    for name, (module, _) in COMMANDS.items():
        importlib.import_module(f"linkd.cli.{module}").add(subparsers.add_parser(name))
    return dict(subparsers.choices)


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield the actions of a parser and of the verbs below it."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _actions(below)


def _values(found: Iterable[Command]) -> Iterator[tuple[str, Option]]:
    """Yield each option with a value, after the patterns `COMMAND:OPTION` of shells."""
    for each in found:
        for option in each.options:
            if option.value is not None:
                yield "|".join(f"{each.name}:{name}" for name in option.names), option


def _described(name: str, about: str) -> str:
    """Return a name and its description as one word of zsh's `_describe`."""
    return "'" + f"{name}:{about}".replace("'", "'\\''") + "'"


def _quoted(text: str) -> str:
    """Return text as one word of fish."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
