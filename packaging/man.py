"""Write the manual pages: `python packaging/man.py DIR`.

Makes linkd(1), one page for each command and linkd.toml(5), from the parsers of the commands and
from the table of settings, in `DIR/man1` and `DIR/man5`. Needs linkd and no other library.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from docs.generate import CONFIGURATION, settings
from linkd.cli import COMMANDS, GROUPS
from linkd.cli.completion import about, parsers
from linkd.cli.options import EXAMPLES
from linkd.version import VERSION

EXITS = (
    ("0", "success"),
    ("1", "the answer is no: damage was found, a drill failed, nothing was done without --yes"),
    ("2", "wrong usage, or the configuration can't be used"),
    ("3", "no daemon at the socket"),
    ("4", "the daemon refused it"),
    ("5", "it timed out"),
    ("130", "interrupted by ^C"),
)

FILES = (
    ("/etc/linkd/linkd.toml, /etc/linkd/linkd.d/*.toml", "the configuration, linkd.toml(5)"),
    ("/var/lib/linkd", "the log, keys and certificates (node.state_dir)"),
    ("/run/linkd/linkd.sock", "the daemon's socket (api.socket)"),
)

VARIABLES = (
    ("LINKD_CONFIG", "the configuration file, as -c"),
    ("LINKD_SOCKET", "the daemon's socket, as --socket"),
    ("NO_COLOR", "print no colours"),
)

SAMPLE = """\
[node]
name = "edge-1"

[[peer]]
name = "hub"
dial = ["wss://hub.example.net:9443/link"]
secret_file = "hub.secret"
ca = "hub-ca.crt"
send = ["orders"]
receive = ["commands.>"]
"""


def escaped(text: str) -> str:
    """Return text that roff prints as it is; `code` becomes bold, *emphasis* italic."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    text = text.replace("^", "\\(ha").replace("~", "\\(ti")
    text = re.sub(r"`([^`]+)`", r"\\fB\1\\fR", text).replace("`", "\\(ga")
    text = re.sub(r"\*(\w+)\*", r"\\fI\1\\fR", text)
    text = "".join(one if one.isascii() else f"\\[u{ord(one):04X}]" for one in text)
    return f"\\&{text}" if text.startswith(".") else text


def verbatim(lines: str) -> Iterator[str]:
    """Yield a block that keeps its lines."""
    yield from (".RS 4", ".nf")
    yield from (escaped(line.replace("`", "'")) for line in lines.splitlines())
    yield from (".fi", ".RE")


def entry(name: str, meaning: str) -> Iterator[str]:
    """Yield an entry of a list: a bold term, then its meaning."""
    yield ".TP"
    yield f"\\fB{escaped(name)}\\fR"
    yield escaped(meaning)


def page(name: str, section: int, line: str) -> Iterator[str]:
    """Yield the head of a page."""
    kind = "User Commands" if section == 1 else "File Formats"
    yield f'.TH {escaped(name).upper()} {section} "" "linkd {VERSION}" "{kind}"'
    yield from (".SH NAME", f"{escaped(name)} \\- {escaped(line)}")


def overview() -> Iterator[str]:
    """Yield linkd(1)."""
    yield from page("linkd", 1, "a resilient link between servers")
    yield from (".SH SYNOPSIS", "\\fBlinkd\\fR [\\-c \\fIFILE\\fR] [\\-\\-socket \\fIPATH\\fR]")
    yield from ("\\fICOMMAND\\fR ...", ".SH DESCRIPTION")
    yield escaped(
        "One daemon on each host keeps a link to its peers: it notices a dead path within seconds,"
        " redials for ever, and stores each message once and in order on the other host."
        " Applications publish and read messages through its socket. Each command below has a page"
        " of its own, such as linkd-publish(1), and the same text in `linkd COMMAND --help`."
    )
    for group, names in GROUPS.items():
        yield f".SH {escaped(group).upper()}"
        for name in names:
            yield from entry(f"linkd-{name}(1)", COMMANDS[name][1])
    yield ".SH OPTIONS"
    yield from entry("-c FILE, --config FILE", "the configuration file, before or after COMMAND")
    yield from entry("--socket PATH", "the daemon's socket, before or after COMMAND")
    yield from entry("--version", "print the version")
    for heading, rows in (("EXIT STATUS", EXITS), ("ENVIRONMENT", VARIABLES), ("FILES", FILES)):
        yield f".SH {heading}"
        for term, meaning in rows:
            yield from entry(term, meaning)
    yield escaped("With `linkd status --check`: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN.")
    yield from see_also("linkd.toml(5)")


def command(name: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield the page of a command."""
    yield from page(f"linkd-{name}", 1, COMMANDS[name][1])
    yield from sections(parser, "SH")
    verbs = [one for one in parser._actions if isinstance(one, argparse._SubParsersAction)]
    for action in verbs:
        for verb, below in action.choices.items():
            yield f".SH {escaped(verb).upper()}"
            yield from sections(below, "SS")
    if parser.epilog:
        yield ".SH NOTES"
        yield from (escaped(line) if line else ".PP" for line in parser.epilog.strip().split("\n"))
    if name in EXAMPLES:
        yield ".SH EXAMPLES"
        yield from verbatim("\n".join(EXAMPLES[name]))
    yield from see_also("linkd(1)", "linkd.toml(5)")


def sections(parser: argparse.ArgumentParser, macro: str) -> Iterator[str]:
    """Yield synopsis, description, arguments and options of a parser."""
    parser.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=72)
    yield f".{macro} SYNOPSIS"
    yield from verbatim(re.sub(r"^(usage: | {7})", "", parser.format_usage(), flags=re.MULTILINE))
    yield f".{macro} DESCRIPTION"
    yield escaped(parser.description or "")
    words: list[str] = []
    options: list[str] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for choice in action._choices_actions:
                words += entry(choice.dest, choice.help or "")
            continue
        value = "" if action.nargs == 0 else action.metavar or action.dest
        value = " ".join(value) if isinstance(value, tuple) else value
        if action.choices:
            value = "|".join(map(str, action.choices))
        terms = [f"{one} {value}" if value else one for one in action.option_strings]
        (options if terms else words).extend(
            entry(", ".join(terms or [value]), about(parser, action))
        )
    for heading, lines in (("ARGUMENTS", words), ("OPTIONS", options)):
        if lines:
            yield f".{macro} {heading}"
            yield from lines


def configuration() -> Iterator[str]:
    """Yield linkd.toml(5)."""
    yield from page("linkd.toml", 5, "configuration of linkd")
    yield ".SH DESCRIPTION"
    yield from paragraphs(CONFIGURATION.partition("# Configuration\n")[2])
    for heading, meaning, rows in settings():
        yield from (f".SH {escaped(heading)}", escaped(meaning))
        for row in rows:
            default = f"; default {row.default}" if row.default.startswith("`") else ""
            need = "; required" if row.default == "required" else ""
            change = {"live": "a reload applies it", "restart": "needs a restart"}[row.changes]
            yield from entry(
                row.key, f"{row.meaning} Value: {row.expected}{default}{need}; {change}."
            )
    yield ".SH EXAMPLE"
    yield from verbatim(SAMPLE)
    yield ".SH FILES"
    yield from entry(*FILES[0])
    yield from see_also("linkd(1)", "linkd-check(1)")


def paragraphs(markdown: str) -> Iterator[str]:
    """Yield paragraphs, lists and fenced blocks of Markdown."""
    for part in re.split(r"\n{2,}", re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", markdown.strip())):
        if part.startswith("```"):
            yield from verbatim("\n".join(part.splitlines()[1:-1]))
        elif part.startswith("- "):
            for item in re.split(r"^- ", part, flags=re.MULTILINE)[1:]:
                yield from (".IP \\[u2022] 2", escaped(" ".join(item.split())))
        else:
            yield from (".PP", escaped(" ".join(part.split())))


def see_also(*names: str) -> Iterator[str]:
    """Yield the end of a page."""
    yield from (".SH SEE ALSO", ", ".join(f"\\fB{escaped(name)}\\fR" for name in names))


def pages() -> dict[str, str]:
    """Return every page by its file's name."""
    made = {"linkd.1": overview(), "linkd.toml.5": configuration()}
    for name, parser in parsers().items():
        made[f"linkd-{name}.1"] = command(name, parser)
    return {name: "\n".join(lines) + "\n" for name, lines in made.items()}


def main() -> int:
    """Write the pages into the directories of their sections."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, metavar="DIR", help="where to write them")
    directory = parser.parse_args().directory
    os.environ["NO_COLOR"] = "1"  # from Python 3.14 on argparse colours what a terminal gets
    for name, text in pages().items():
        folder = directory / f"man{name[-1]}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
