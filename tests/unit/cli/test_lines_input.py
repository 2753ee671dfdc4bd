"""`publish`: an input that cannot be read is not an input that ended."""

from __future__ import annotations

import asyncio
import os
from argparse import Namespace
from collections.abc import Generator
from pathlib import Path
from typing import Any, cast

import pytest

from linkd.cli import streaming
from linkd.cli.exits import CommandError
from linkd.cli.publish import _body
from linkd.cli.streaming import Input
from linkd.client.options import Stored
from linkd.errors import LogFull


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


class Settled:
    """A publish that has settled: so many of its lines stored, so many ahead of one refused."""

    def __init__(self, stored: int, leading: int) -> None:
        self.stored = Stored(1, stored, stored) if stored else Stored(0, 0, 0)
        self.leading = leading

    def done(self) -> bool:
        return True

    def __await__(self) -> Generator[Any, None, None]:
        yield from ()
        raise LogFull("the log is full")


@pytest.mark.parametrize(
    ("settled", "told"),
    [
        ([(10, 10, 10), (10, 0, 0), (10, 0, 0)], "10 messages stored, then: full"),
        ([(10, 4, 4), (10, 0, 0)], "4 messages stored, then: full"),
        ([(10, 0, 0), (10, 10, 10)], "0 messages stored, of 20 more it is not known, then: full"),
        ([(10, 6, 4), (10, 0, 0)], "4 messages stored, of 6 more it is not known, then: full"),
        (
            [(10, 10, 10), (10, 0, 0), (10, 3, 3), (10, 0, 0)],
            "10 messages stored, of 20 more it is not known, then: full",
        ),
    ],
)
def test_lines_behind_a_refused_one_do_not_count_as_stored_before_it(
    monkeypatch: pytest.MonkeyPatch, settled: list[tuple[int, int, int]], told: str
) -> None:
    """A full log may have room again for the next lines: those were counted as the first."""

    async def check() -> str:
        lines = streaming._Lines(cast("Any", None), Namespace(header=[]))
        lines._under_way.extend(
            (count, cast("Any", Settled(stored, leading))) for count, stored, leading in settled
        )
        return await lines.stored("full")

    with Path(os.devnull).open() as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        assert asyncio.run(check()) == told
