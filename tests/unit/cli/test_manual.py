"""The manual pages name every command, option and setting, and groff finds nothing wrong."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from linkd.cli import COMMANDS, completion
from linkd.cli.options import EXAMPLES
from linkd.config.validation import tables
from tests.support.needs import need

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def man() -> ModuleType:
    spec = importlib.util.spec_from_file_location("man", ROOT / "packaging" / "man.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages(man: ModuleType) -> dict[str, str]:
    made: dict[str, str] = man.pages()
    return made


def plain(page: str) -> str:
    """Return a page without roff's escapes."""
    page = re.sub(r"\\f.|\\&", "", page).replace("\\-", "-").replace("\\(aq", "'")
    return page.replace("\\(ha", "^").replace("\\e", "\\")


def test_there_is_a_page_for_each_command(pages: dict[str, str]) -> None:
    assert {*pages} == {"linkd.1", "linkd.toml.5", *(f"linkd-{name}.1" for name in COMMANDS)}
    overview = plain(pages["linkd.1"])
    for name, (_, line) in COMMANDS.items():
        assert f"\nlinkd-{name}(1)\n{line}\n" in overview
        assert f".SH NAME\nlinkd-{name} - {line}\n" in plain(pages[f"linkd-{name}.1"])


def test_every_option_and_example_of_a_command_is_there(pages: dict[str, str]) -> None:
    for each in completion.commands():
        page = plain(pages[f"linkd-{each.name}.1"])
        for option in each.options:
            for name in option.names:
                assert re.search(rf"^(-.*, )?{name}(?![\w-])", page, re.MULTILINE), name
        for line in EXAMPLES.get(each.name, ()):
            assert f"\n{line}\n" in page


def test_every_setting_is_there(pages: dict[str, str]) -> None:
    page = plain(pages["linkd.toml.5"])
    for heading, struct in tables():
        _, found, rest = page.partition(f"\n.SH {heading}\n")
        assert found, heading
        section = rest.partition("\n.SH ")[0]
        headings = {name for name, _ in tables()}
        for field in msgspec.structs.fields(struct):
            path = f"{heading.strip('[]')}.{field.encode_name}"
            if not {f"[{path}]", f"[[{path}]]"} & headings:
                assert f"\n.TP\n{field.encode_name}\n" in section, path


def test_no_line_is_taken_for_a_request(pages: dict[str, str]) -> None:
    known = {".TH", ".SH", ".SS", ".PP", ".TP", ".IP", ".RS", ".RE", ".nf", ".fi"}
    for name, page in pages.items():
        requests = {line.split(" ")[0] for line in page.splitlines() if line[:1] in (".", "'")}
        assert requests <= known, name
        assert page.isascii(), name


def test_what_roff_would_change_is_escaped(man: ModuleType) -> None:
    text = ".a 'b' \\c `d-e` *live* … ^~"
    assert man.escaped(text) == (
        "\\&.a \\(aqb\\(aq \\ec \\fBd\\-e\\fR \\fIlive\\fR \\[u2026] \\(ha\\(ti"
    )


def test_groff_finds_nothing_wrong_in_the_pages_that_are_written(tmp_path: Path) -> None:
    need("groff")
    made = [sys.executable, "-B", str(ROOT / "packaging" / "man.py"), str(tmp_path)]
    subprocess.run(made, check=True, timeout=30)
    written = sorted(tmp_path.glob("man[15]/*"))
    assert len(written) == len(COMMANDS) + 2
    for page in written:
        done = subprocess.run(
            ["groff", "-man", "-Tutf8", "-ww", "-z", str(page)],
            capture_output=True, text=True, timeout=20,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, ""), page.name
    printed = subprocess.run(
        ["groff", "-man", "-Tutf8", "-P-cbou", str(tmp_path / "man5" / "linkd.toml.5")],
        capture_output=True, text=True, timeout=20, check=True,
    ).stdout  # fmt: skip
    assert "`" not in printed
    assert "ping_interval" in printed
