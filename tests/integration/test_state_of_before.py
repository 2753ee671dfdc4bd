"""Today's linkd goes on from what an older one left, loses nothing, and leaves what that one reads.

states/README.md describes the directories.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest

from linkd.log.segment import read_head
from tests.support.daemon import Daemon
from tests.support.duo import Duo
from tests.support.logs import unpack

STATES = Path(__file__).parent / "states"
ORDERS = [*map(str, range(1, 41)), "one id", *map(str, range(41, 61))]
COMMANDS = list(map(str, range(1, 9)))


class Formats(NamedTuple):
    """The newest formats in a state directory: an older linkd refuses what is above its own."""

    cursors: int
    segments: int


BEFORE = {"91efc69": Formats(1, 1), "2a24d2e": Formats(2, 2)}


def formats(state: Path) -> Formats:
    """Return what an older linkd looks at."""
    with closing(sqlite3.connect(state / "cursors.db")) as db:
        (cursors,) = db.execute("pragma user_version").fetchone()
    segments = [read_head(path)[0].format for path in (state / "log").glob("*.log")]
    return Formats(cursors, max(segments))


@pytest.fixture(params=list(BEFORE))
def version(request: pytest.FixtureRequest) -> str:
    """Return the commit of the older linkd."""
    return str(request.param)


@pytest.fixture
def duo(version: str) -> Iterator[Duo]:
    """Return two nodes, not started, with what the older linkd left."""
    with Duo("[log]\nsegment_bytes = 1048576\nmax_bytes = 33554432\n") as made:
        for daemon in (made.hub, made.edge):
            unpack(STATES / f"{version}.tar.gz", daemon.directory / "unpacked")
            state = daemon.directory / "state"
            shutil.move(daemon.directory / "unpacked" / daemon.name, state)
            state.chmod(0o700)
            assert formats(state) == BEFORE[version]
        yield made


def read(daemon: Daemon, channel: str, query: str) -> list[str]:
    """Return a page's bodies."""
    page = daemon.call("GET", f"/v1/channels/{channel}?limit=1000&{query}")
    assert page["gap"] is None
    return [record["text"].strip() for record in page["records"]]


def test_it_goes_on_from_there(duo: Duo) -> None:
    """20 orders and 3 commands were owed; both consumers had read a part."""
    duo.start()
    duo.settled()
    assert read(duo.hub, "orders", "from=earliest") == ORDERS
    assert read(duo.edge, "orders", "from=earliest") == ORDERS
    assert read(duo.hub, "commands.a", "from=earliest") == COMMANDS
    assert read(duo.edge, "commands.a", "from=earliest") == COMMANDS
    assert read(duo.hub, "orders", "consumer=billing") == ORDERS[15:]
    assert read(duo.edge, "commands.>", "consumer=actor") == COMMANDS[2:]
    duo.edge.call("POST", "/v1/channels/orders?wait=hub", b"61", "text/plain")
    assert read(duo.hub, "orders", "from=earliest") == [*ORDERS, "61"]
    for daemon in (duo.hub, duo.edge):
        assert not [line for line in daemon.lines if line.fields.get("level") == "error"]


def test_the_last_version_reads_what_it_leaves(duo: Duo) -> None:
    """So `scripts/install --back` needs no copy of the state, and loses nothing.

    After 91efc69 the formats grew: that one refuses the state in a sentence (written by a newer
    linkd), and scripts/install reports that linkd is down.
    """
    duo.start()
    duo.settled()
    duo.edge.call("POST", "/v1/channels/orders?wait=hub", b"61", "text/plain")
    for daemon in (duo.hub, duo.edge):
        daemon.stop()
        assert formats(daemon.directory / "state") == BEFORE["2a24d2e"]
