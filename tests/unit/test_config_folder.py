"""`linkd.d` that is there and can't be read is an error: its peers are not forgotten silently."""

from __future__ import annotations

from pathlib import Path

import pytest

from linkd.config import Unreadable, files


@pytest.fixture
def main(tmp_path: Path) -> Path:
    (tmp_path / "linkd.d").mkdir()
    (tmp_path / "linkd.d" / "a.toml").touch()
    file = tmp_path / "linkd.toml"
    file.touch()
    return file


def refuse(_folder: Path) -> list[Path]:
    raise PermissionError(13, "Permission denied")


def test_what_can_be_read_is_there(main: Path) -> None:
    assert files(main, {}) == [main, main.parent / "linkd.d" / "a.toml"]


def test_none_is_fine(tmp_path: Path) -> None:
    assert files(tmp_path / "linkd.toml", {}) == [tmp_path / "linkd.toml"]
    (tmp_path / "linkd.d").touch()
    assert files(tmp_path / "linkd.toml", {}) == [tmp_path / "linkd.toml"]


def test_one_that_cannot_be_read_is_named(main: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(Unreadable, match=r"/linkd\.d: can't be read: Permission denied$"):
        files(main, {})


def test_where_the_first_file_cannot_be_read_either_that_is_said(
    main: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "iterdir", refuse)
    main.unlink()
    assert files(main, {}) == [main]
