"""`linkd completion`: what bash or zsh needs to complete commands, options and peers' names."""

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

_WITH_PEER: Final = frozenset({"status", "outages", "kick", "resync", "revoke", "drill"})
"""Commands whose next word is a peer's name."""


def add(subparsers: Any) -> None:
    """Add the command's parser."""
    parser = subparsers.add_parser(
        "completion",
        help="print what bash or zsh needs to complete commands",
        description='Print a script for bash and zsh: eval "$(linkd completion)".',
    )
    from linkd.cli.options import add_socket  # noqa: PLC0415

    add_socket(parser)
    parser.add_argument("--peers", action="store_true", help="print the names of all peers")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the script, or with `--peers` the peers' names, one a line."""
    if arguments.peers:
        from linkd.cli import calls  # noqa: PLC0415

        for link in calls.get(arguments, "/v1/status").json()["links"]:
            print(link["peer"])
        return exits.FINE
    print(script(), end="")
    return exits.FINE


def script() -> str:
    """Return the script; commands and options are taken from the parsers."""
    from linkd.cli import COMMANDS  # noqa: PLC0415  # which loads this module

    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers()
    for module in sorted({module for module, _ in COMMANDS.values()}):
        importlib.import_module(f"linkd.cli.{module}").add(subparsers)
    cases = []
    for name, each in sorted(subparsers.choices.items()):
        options = sorted(word for action in each._actions for word in action.option_strings)
        peers = "yes" if name in _WITH_PEER else ""
        cases.append(f'    {name}) local options="{" ".join(options)}" peers={peers} ;;')
    return _SCRIPT.format(cases="\n".join(cases), commands=" ".join(sorted(subparsers.choices)))
