"""The pictures of the docs are well-formed, load nothing, and show the terminal faithfully."""

from __future__ import annotations

import re
import xml.etree.ElementTree as Tree
from pathlib import Path

import pytest

from docs import pictures

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize("file", sorted(DOCS.rglob("*.svg")), ids=lambda file: file.stem)
def test_a_drawing_is_well_formed_and_loads_nothing(file: Path) -> None:
    text = file.read_text()
    assert Tree.fromstring(text).tag.endswith("svg")
    assert not re.search(r"(href|src)=|url\((?!#)|@import|<script", text)


def test_the_recorded_terminal_shows_a_cut_without_a_loss() -> None:
    text = "".join(Tree.parse(DOCS / "terminal.svg").getroot().itertext()).replace("\u00a0", " ")
    states = re.findall(r"^hub +(up|DOWN)", text, re.MULTILINE)
    assert states == ["up", "DOWN", "up"]
    orders = re.search(
        r"# ([\d,]+) orders published at edge-1, ([\d,]+) read at the hub: each", text
    )
    assert orders is not None
    assert orders[1] == orders[2]


def test_colours_spaces_and_markup_survive() -> None:
    drawn = pictures.spans("a  <\x1b[31mDOWN\x1b[0m> b")
    assert drawn == 'a\u00a0\u00a0&lt;<tspan fill="#f2777a">DOWN</tspan>&gt;\u00a0b'
    made = pictures.picture(["one", "", "two"])
    assert [node.text for node in Tree.fromstring(made).iter() if node.tag.endswith("}text")] == [
        "one",
        "two",
    ]


def test_a_long_line_is_continued_with_an_indent() -> None:
    words = " ".join(["word"] * 60)
    first, *others = pictures.wrapped(words)
    assert max(map(len, [first, *others])) <= pictures.COLUMNS
    assert all(line.startswith("    word") for line in others)
    assert " ".join([first, *others]).split() == words.split()
    assert [*pictures.wrapped("\x1b[31mshort\x1b[0m")] == ["\x1b[31mshort\x1b[0m"]
