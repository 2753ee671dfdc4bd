"""The CRCs of the log are zlib's, whichever library makes them."""

from __future__ import annotations

import importlib.util
import sys
import zlib
from types import ModuleType

import pytest

from linkd.log import frame


@pytest.fixture
def without_zlib_ng(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the module as a host without zlib-ng imports it, beside the one in use."""
    monkeypatch.setitem(sys.modules, "zlib_ng", None)
    monkeypatch.setitem(sys.modules, "zlib_ng.zlib_ng", None)
    assert frame.__spec__ is not None
    copy = importlib.util.module_from_spec(frame.__spec__)
    assert frame.__spec__.loader is not None
    frame.__spec__.loader.exec_module(copy)
    return copy


def check(module: ModuleType) -> None:
    for size in (0, 1, 40, 5_000, 70_000):
        content = bytes(number * 7 % 256 for number in range(size))
        assert module.crc32(content, 12345) == zlib.crc32(content, 12345)
        assert module.crc32(memoryview(content)[1:], 0) == zlib.crc32(content[1:], 0)


def test_they_are_those_of_zlib() -> None:
    check(frame)


def test_where_there_is_no_zlib_ng_they_are_made_by_zlib(without_zlib_ng: ModuleType) -> None:
    assert without_zlib_ng.crc32 is zlib.crc32
    check(without_zlib_ng)
