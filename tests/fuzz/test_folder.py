"""The folder in memory in which logs are found when fuzzing is like one on a disk."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest

import linkd.log.reader
import linkd.log.segment
from linkd.errors import LinkdError
from linkd.log.files import DiskFiles
from linkd.log.repair import PendingLossReports
from tests.fuzz import folder
from tests.fuzz.targets.recovery import TEMPLATE, damaged, found_in


def _shown(found: Any, where: str) -> object:
    """Return all that was found, without where."""
    if isinstance(found, LinkdError):
        return str(found).replace(where, "/log")
    seen = (
        found.identity,
        found.carried,
        found.bases,
        found.segments,
        found.held,
        found.stamp,
        found.wall,
    )
    return seen, _state(found, where)


def _state(found: Any, where: str) -> object:
    told = [each.detail.replace(where, "/log") for each in found.notices]
    return None if found.state is None else list(found.state.slices()), told


def _untold(files: Any, path: Any, where: object) -> list[str]:
    return [
        each.detail.replace(str(where), "/log")
        for each in PendingLossReports(files, path).notices()
    ]


def test_same_as_on_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sum(name.endswith(".log") for name in TEMPLATE) == 3
    rng, told = Random(2), 0
    for place in range(100):
        files = damaged(rng.randbytes(rng.randrange(40)))
        where = tmp_path / str(place)
        where.mkdir()
        for name, content in files.items():
            (where / name).write_bytes(content)
        real = _shown(found_in(where, DiskFiles()), str(where))
        with monkeypatch.context() as patched:
            patched.setattr(linkd.log.segment, "os", folder)
            memory = folder.Folder(files).path()
            found = found_in(memory, folder.MemoryFiles())
        assert _shown(found, "/log") == real
        assert _untold(folder.MemoryFiles(), memory, "/log") == _untold(DiskFiles(), where, where)
        left = {path.name: path.read_bytes() for path in where.iterdir()}
        for each in (files, left):
            each.pop("untold", None)  # it names the folder
        assert files == left
        told += not isinstance(found, LinkdError) and bool(found.notices)
    assert told > 20
