"""Pages in docs/ say what the code says."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from linkd.config import load
from linkd.events import EVENTS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_made_pages_are_current(generate: ModuleType) -> None:
    assert generate.stale() == []


def test_a_stale_page_is_found(generate: ModuleType, tmp_path: Path) -> None:
    generate.DOCS, real = tmp_path, generate.DOCS
    try:
        assert generate.stale() == ["configuration.md", "events.md", "link-states.md"]
        (tmp_path / "events.md").write_text(generate.events() + "x")
        assert "events.md" in generate.stale()
    finally:
        generate.DOCS = real


def test_every_setting_and_event_is_there(generate: ModuleType) -> None:
    events = generate.events()
    assert all(f"| `{name}` |" in events for name in EVENTS)
    configuration = generate.configuration()
    for key in ("ping_interval", "secret_file", "max_body_bytes", "private_key", "hello_timeout"):
        assert f"| `{key}` |" in configuration


def test_every_row_has_as_many_cells_as_its_head(generate: ModuleType) -> None:
    for page in (generate.configuration(), generate.events()):
        width = 0
        for line in page.splitlines():
            if not line.startswith("|"):
                width = 0
                continue
            cells = len(re.findall(r"(?<!\\)\|", line))
            width = width or cells
            assert cells == width, line


WHOLE = [
    (page, block)
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if page.exists()
    for block in re.findall(r"```toml\n(.*?)```", page.read_text(), re.DOTALL)
    if "[node]" in block
]


@pytest.mark.parametrize(("page", "block"), WHOLE, ids=lambda value: getattr(value, "stem", ""))
def test_whole_configurations_in_pages_are_right(page: Path, block: str, tmp_path: Path) -> None:
    file = tmp_path / "linkd.toml"
    file.write_text(block)
    assert load([file]).node.name, page
