"""`publish`: an input that cannot be read is not an input that ended."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from linkd.cli.exits import CommandError
from linkd.cli.publish import _body
from linkd.cli.streaming import Input


def test_a_read_error_is_raised(tmp_path: Path) -> None:
    async def check() -> None:
        fd = os.open(tmp_path, os.O_RDONLY)
        try:
            with pytest.raises(OSError, match="cannot read the input"):
                await Input(fd).read()
        finally:
            os.close(fd)

    asyncio.run(check())


def test_a_read_error_is_no_end_of_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/proc/self/mem").open() as unreadable:
        monkeypatch.setattr("sys.stdin", unreadable)
        with pytest.raises(CommandError, match="cannot read the input: Input/output error"):
            _body("-")
