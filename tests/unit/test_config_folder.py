"""`linkd.d` that is there and can't be read is an error: its peers are not forgotten silently."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import NoReturn

import pytest

from linkd.config import files, load
from linkd.config.loading import UnreadableConfig
from linkd.errors import ConfigError, Unavailable


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


@pytest.mark.parametrize("name", [".#a.toml", "._a.toml", ".a.toml", "a.toml~", "#a.toml#"])
def test_files_of_editors_do_not_count(main: Path, name: str) -> None:
    (main.parent / "linkd.d" / name).symlink_to("somebody@somewhere.123:456")
    assert files(main, {}) == [main, main.parent / "linkd.d" / "a.toml"]


@pytest.mark.parametrize(
    ("sign", "name"),
    [(b"\xef\xbb\xbf", "UTF-8"), (b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16 BE")],
)
def test_a_byte_order_mark_is_named(main: Path, sign: bytes, name: str) -> None:
    main.write_bytes(sign + b"[node]\n")
    with pytest.raises(ConfigError, match=rf"byte order mark \(BOM\) of {name}:"):
        load([main])


def test_a_passing_error_is_no_mistake_in_the_configuration(
    main: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "iterdir", fail)
    with pytest.raises(Unavailable, match="Input/output error"):
        files(main, {})
    monkeypatch.setattr("builtins.open", fail)
    with pytest.raises(Unavailable, match="Input/output error"):
        load([main])


def test_a_named_pipe_is_refused_at_once_though_nobody_writes_to_it(main: Path) -> None:
    pipe = main.parent / "linkd.d" / "a.toml"
    pipe.unlink()
    os.mkfifo(pipe)
    with pytest.raises(UnreadableConfig, match=r"a\.toml: .* got a named pipe"):
        load(files(main, {}))


def test_the_main_file_may_be_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "linkd.toml"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=('[node]\nname = "hub"\n',))
    writer.start()
    assert load([pipe]).node.name == "hub"
    writer.join()


def test_a_file_that_vanishes_between_listing_and_reading_may_be_tried_again(main: Path) -> None:
    found = files(main, {})
    found[1].unlink()
    with pytest.raises(Unavailable, match=r"a\.toml: it was removed while linkd read its files"):
        load(found)


def test_a_link_to_nowhere_stays_a_mistake(main: Path) -> None:
    dangling = main.parent / "linkd.d" / "b.toml"
    dangling.symlink_to("nowhere")
    with pytest.raises(UnreadableConfig, match=r"b\.toml: can't be read: No such file"):
        load(files(main, {}))


def test_none_is_fine(tmp_path: Path) -> None:
    assert files(tmp_path / "linkd.toml", {}) == [tmp_path / "linkd.toml"]
    (tmp_path / "linkd.d").touch()
    assert files(tmp_path / "linkd.toml", {}) == [tmp_path / "linkd.toml"]


def test_one_that_cannot_be_read_is_named(main: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(UnreadableConfig, match=r"/linkd\.d: can't be read: Permission denied$"):
        files(main, {})


def test_where_the_first_file_cannot_be_read_either_that_is_said(
    main: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "iterdir", refuse)
    main.unlink()
    assert files(main, {}) == [main]
