"""Every link inside the project's pages leads somewhere: to a file that is there, to a heading."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(
    r"(?<!!)\[[^\]\[]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)|<\w+[^>]* src(?:set)?=\"([^\"]+)\""
)
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
ELSEWHERE = re.compile(r"^[a-z][a-z0-9+.-]*:")
PATHS = re.compile(r"`((?:docs|conf|scripts|systemd|tests|linkd|bench)/[\w./-]*\w)`")


def pages() -> list[Path]:
    found: list[Path] = []
    if shutil.which("git"):
        words = ["git", "-C", str(ROOT), "ls-files", "*.md"]
        listed = subprocess.run(words, capture_output=True, text=True, check=False)
        found = [ROOT / line for line in listed.stdout.splitlines()]
    found = found or [p for p in ROOT.rglob("*.md") if not {"node_modules", ".venv"} & {*p.parts}]
    return sorted(page for page in found if page.exists())


def prose(text: str) -> str:
    """Return a page without its blocks of code."""
    return FENCE.sub("", text)


@cache
def anchors(page: Path) -> frozenset[str]:
    """Return the anchors of a page's headings, as the usual renderers make them."""
    made: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", prose(page.read_text()), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        number, unique = 0, name
        while unique in made:
            number += 1
            unique = f"{name}-{number}"
        made.add(unique)
    return frozenset(made)


def broken(page: Path) -> list[str]:
    """Return what the page's links miss, a sentence each."""
    missing = []
    for match in LINK.finditer(re.sub(r"`[^`]*`", "``", prose(page.read_text()))):
        target = match[1] or match[2] or match[3]
        if ELSEWHERE.match(target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists():
            missing.append(f"{target}: no such file")
        elif anchor and anchor not in anchors(file):
            missing.append(f"{target}: no such heading")
    return missing


PAGES = pages()


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken(page) == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_paths_that_are_named_are_there(page: Path) -> None:
    named = {one.rstrip("/") for one in PATHS.findall(prose(page.read_text()))}
    assert [one for one in sorted(named) if not (ROOT / one).exists()] == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One `word`, two\n[fine](#one-word-two) [file](page.md#one-word-two) [out](https://a.b)\n"
        '[gone](none.md) [no](#two) ![x](x.svg)\n<img src="y.png" alt="y">\n'
        '<source srcset="page.md">\n'
        "```\n[code](none.md)\n# not a heading\n```\n"
        "[neither](#not-a-heading)\n"
    )
    assert broken(page) == [
        "none.md: no such file",
        "#two: no such heading",
        "x.svg: no such file",
        "y.png: no such file",
        "#not-a-heading: no such heading",
    ]


def test_pages_that_speak_of_drills_lead_to_their_page() -> None:
    for page in ("docs/clients/cli.md", "docs/operations.md"):
        assert re.search(r"\]\((\.\./)?drill\.md", (ROOT / page).read_text()), page


def test_every_page_in_docs_can_be_reached_from_the_readme() -> None:
    reached: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached:
            continue
        reached.add(page)
        if page.is_dir():
            waiting += page.glob("*.md")
        elif page.suffix == ".md":
            targets = [
                match[1] or match[2] or match[3] for match in LINK.finditer(prose(page.read_text()))
            ]
            waiting += [
                (page.parent / target.partition("#")[0]).resolve()
                for target in targets
                if not ELSEWHERE.match(target)
            ]
    assert [name(page) for page in (ROOT / "docs").rglob("*.md") if page not in reached] == []


def test_every_page_is_in_the_menu_of_the_site() -> None:
    """mkdocs, which is not needed for the tests, would refuse to build it otherwise."""
    text = (ROOT / "packaging" / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    listed = re.findall(r"([\w./-]+\.md)$", text, re.MULTILINE)
    assert len(listed) == len(set(listed))
    outside = ("bench/", "linkd/", "packaging/", "tests/", ".github/")
    assert {*listed} == {name(page) for page in PAGES if not name(page).startswith(outside)}
