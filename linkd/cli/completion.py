"""`linkd completion`: completion scripts for shells, and the manual page."""

from __future__ import annotations

import argparse
import importlib
from typing import Any, Final

from linkd.cli import exits

_SCRIPT: Final = """\
# Put into ~/.bashrc: eval "$(linkd completion)"; for zsh the same in ~/.zshrc.
[ -n "$ZSH_VERSION" ] && autoload -Uz bashcompinit && bashcompinit
_linkd() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} command= each
  for each in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
    case $each in -*) ;; *) command=$each; break ;; esac
  done
  case $command in
{cases}
    *) COMPREPLY=($(compgen -W "{commands}" -- "$word")); return ;;
  esac
  case $word in
    -*) COMPREPLY=($(compgen -W "$options" -- "$word")) ;;
    *) [ -z "$peers" ] || peers=$(linkd completion --peers 2>/dev/null)
       COMPREPLY=($(compgen -W "$peers" -- "$word")) ;;
  esac
}}
complete -o default -F _linkd linkd
"""

_FISH: Final = """\
# Put into ~/.config/fish/config.fish: linkd completion --fish | source
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
complete -c linkd -n '__linkd_in {peers}' -a '(linkd completion --peers 2>/dev/null)'
{lines}
"""

_PAGE: Final = """\
.TH LINKD 8 "" "linkd {version}" "System Manager's Manual"
.SH NAME
linkd \\- a resilient link between servers
.SH SYNOPSIS
.B linkd
[\\-c FILE] [\\-\\-socket PATH] COMMAND ...
.SH DESCRIPTION
One daemon on each host keeps a link to its peers: it notices a dead path in seconds, redials, and
delivers each message once and in order. `linkd help` lists the commands by purpose.
.SH COMMANDS
{commands}
.SH EXIT STATUS
0 success; 1 a check, a drill or the service failed; 2 wrong usage or configuration; 3 no daemon
answers; 4 the daemon refused it; 5 it took too long; 130 interrupted.
With `linkd status \\-\\-check`: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN.
.SH FILES
/etc/linkd/linkd.toml, /etc/linkd/linkd.d/*.toml, /var/lib/linkd, /run/linkd/linkd.sock
"""

_WITH_PEER: Final = frozenset({"status", "outages", "kick", "resync", "revoke", "drill"})
"""Commands whose next word is a peer's name."""


_FILES: Final = frozenset({"FILE", "PATH", "DIR"})
"""What the value of an option is called where it is a file."""


def add(subparsers: Any) -> None:
    """Add the command's parser."""
    parser = subparsers.add_parser(
        "completion",
        help="print what bash, zsh or fish needs to complete commands",
        description='Print a script for bash and zsh: eval "$(linkd completion)"; for fish: linkd'
        " completion --fish | source.",
    )
    from linkd.cli.options import add_socket  # noqa: PLC0415

    add_socket(parser)
    parser.add_argument("--fish", action="store_true", help="print the script for fish")
    parser.add_argument("--peers", action="store_true", help="print the names of all peers")
    parser.add_argument("--man", action="store_true", help="print the manual page linkd(8)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the script, the manual page, or the peers' names, one a line."""
    if arguments.man:
        print(manual_page(), end="")
        return exits.OK
    if arguments.peers:
        from linkd.cli import http  # noqa: PLC0415

        for link in http.get(arguments, "/v1/status").json()["links"]:
            print(link["peer"])
        return exits.OK
    print(fish_script() if arguments.fish else script(), end="")
    return exits.OK


def script() -> str:
    """Return the script; commands and options are taken from the parsers."""
    parsers = _parsers()
    cases = []
    for name, each in sorted(parsers.items()):
        options = sorted(word for action in each._actions for word in action.option_strings)
        peers = "yes" if name in _WITH_PEER else ""
        cases.append(f'    {name}) local options="{" ".join(options)}" peers={peers} ;;')
    return _SCRIPT.format(cases="\n".join(cases), commands=" ".join(sorted(parsers)))


def fish_script() -> str:
    """Return the script for fish; commands, options and their help are taken from the parsers."""
    from linkd.cli import COMMANDS  # noqa: PLC0415

    lines = []
    for name, parser in sorted(_parsers().items()):
        about = _quoted(COMMANDS[name][1])
        lines.append(f"complete -c linkd -n 'not __linkd_in' -a {name} -d {about}")
        for action in parser._actions:
            words = [f"complete -c linkd -n '__linkd_in {name}'"]
            words += [
                f"-{'l' if option.startswith('--') else 's'} {option.lstrip('-')}"
                for option in action.option_strings
            ]
            if action.choices:
                words.append(f"-a {_quoted(' '.join(map(str, action.choices)))}")
            if action.option_strings and action.nargs != 0:
                names_file = action.metavar in _FILES
                words.append("-rF" if names_file else "-x")
            if len(words) > 1:
                lines.append(" ".join([*words, f"-d {_quoted(action.help or '')}"]))
    return _FISH.format(peers=" ".join(sorted(_WITH_PEER)), lines="\n".join(lines))


def _quoted(text: str) -> str:
    """Return text as one word of fish."""
    escaped = text.replace("%%", "%").replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def manual_page() -> str:
    """Return linkd(8) in roff: the help of every command."""
    from linkd import __version__  # noqa: PLC0415
    from linkd.cli import COMMANDS  # noqa: PLC0415

    parsers = _parsers()
    commands = []
    for name, (_, line) in COMMANDS.items():
        parsers[name].formatter_class = _wide
        help_lines = _roff(parsers[name].format_help().rstrip())
        commands += [f".SS linkd {name}", f"{_roff(line)}.", ".PP", ".nf", help_lines, ".fi"]
    return _PAGE.format(version=__version__, commands="\n".join(commands))


def _wide(prog: str) -> argparse.HelpFormatter:
    """Format for a page of 80 columns, whatever the terminal."""
    return argparse.HelpFormatter(prog, width=72)


def _roff(text: str) -> str:
    """Return lines of text that roff prints verbatim."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join(
        f"\\&{line}" if line[:1] in (".", "'") else line for line in escaped.split("\n")
    )


def _parsers() -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each command."""
    from linkd.cli import COMMANDS  # noqa: PLC0415  # which loads this module
    from linkd.cli.options import StrictParser  # noqa: PLC0415

    subparsers = StrictParser(prog="linkd").add_subparsers(parser_class=StrictParser)
    for module in sorted({module for module, _ in COMMANDS.values()}):
        importlib.import_module(f"linkd.cli.{module}").add(subparsers)
    return dict(subparsers.choices)
