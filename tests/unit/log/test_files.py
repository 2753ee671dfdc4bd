"""The disk: writes that it takes in pieces are gone on with until all is there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from linkd.log.files import DiskFiles


def test_many_buffers_lie_one_behind_the_other(tmp_path: Path) -> None:
    files = DiskFiles()
    fd = files.open(tmp_path / "f", create=True)
    buffers = [b"%05d" % number for number in range(5000)]
    files.write(fd, 3, buffers)
    files.close(fd)
    assert (tmp_path / "f").read_bytes() == bytes(3) + b"".join(buffers)


def test_a_write_that_was_taken_in_part_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite = os.pwrite

    def some(fd: int, buffers: Sequence[bytes], at: int) -> int:
        return pwrite(fd, b"".join(buffers)[:7], at)

    monkeypatch.setattr(os, "pwritev", some)
    monkeypatch.setattr(os, "pwrite", lambda fd, rest, at: pwrite(fd, rest[:5], at))
    files = DiskFiles()
    fd = files.open(tmp_path / "f", create=True)
    files.write(fd, 2, [b"abc", b"defgh", b"", b"ijklmnopq"])
    files.close(fd)
    assert (tmp_path / "f").read_bytes() == b"\0\0abcdefghijklmnopq"
