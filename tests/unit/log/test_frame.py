"""The CRCs of the log are zlib's, whichever library makes them."""

from __future__ import annotations

import importlib
import sys
import zlib
from collections.abc import Iterator

import pytest

from linkd.log import frame


@pytest.fixture
def without_zlib_ng(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "zlib_ng", None)
    monkeypatch.setitem(sys.modules, "zlib_ng.zlib_ng", None)
    importlib.reload(frame)
    yield
    monkeypatch.undo()
    importlib.reload(frame)


def check() -> None:
    for size in (0, 1, 40, 5_000, 70_000):
        content = bytes(number * 7 % 256 for number in range(size))
        assert frame.crc32(content, 12345) == zlib.crc32(content, 12345)
        assert frame.crc32(memoryview(content)[1:], 0) == zlib.crc32(content[1:], 0)


def test_they_are_those_of_zlib() -> None:
    check()


@pytest.mark.usefixtures("without_zlib_ng")
def test_where_there_is_no_zlib_ng_they_are_made_by_zlib() -> None:
    assert frame.crc32 is zlib.crc32
    check()
