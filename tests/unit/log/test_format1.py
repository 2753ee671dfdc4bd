"""A state of format 1, written at commit 91efc69: consumers, producers and ids had no owner."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from linkd.log.interface import UNOWNED, Appended, Consumer, PeerCursor
from linkd.protocol.records import Producer
from tests.support.logs import append, draft
from tests.unit.log.test_cursor_store import Pair

STATE = Path(__file__).parent / "data" / "format1"


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    """A copy of the state, open.

    Offsets 1 (id pay-1), 2 to 4 (numbers 1, 2, 4 of producer shop-1), in a second segment 5 (id
    pay-2) and 6 (number 5).
    """
    folder = tmp_path / "state"
    shutil.copytree(STATE, folder)
    one = Pair(folder)
    yield one
    one.close()


def test_its_records_and_its_consumer_are_there(pair: Pair) -> None:
    assert (pair.log.first, pair.log.next) == (1, 7)
    billing = Consumer(UNOWNED, "billing", 2, ("orders", "news.*"), 0.0)
    for cursors in (pair.cursors, pair.restart()):
        assert cursors.notices == []
        assert cursors.consumers() == {billing.key: billing}
        assert cursors.peers == {"hub": PeerCursor("hub", 1, 3)}


def test_the_log_carries_its_consumer_without_the_file(pair: Pair) -> None:
    pair.close()
    for path in pair.folder.glob("cursors.db*"):
        path.unlink()
    pair.open()
    assert list(pair.cursors.consumers()) == [(UNOWNED, "billing")]


def test_a_repeat_of_its_numbers_is_settled_once_whoever_repeats_it(pair: Pair) -> None:
    for owner in ("shop", "socket"):
        repeats = [draft(b"p", producer=Producer("shop-1", n, owner)) for n in (1, 2, 4, 5)]
        assert append(pair, *repeats) == [Appended(n, 0, True) for n in (2, 3, 4, 6)]
    assert append(pair, draft(b"p3", producer=Producer("shop-1", 3, "shop"))) == [Appended(7, 1)]
    assert pair.log.state.producers.highest("shop", "shop-1") == 5


def test_a_repeat_of_its_ids_is_settled_once_whoever_repeats_it(pair: Pair) -> None:
    got = append(pair, draft(b"a", ids=("pay-1",)), draft(b"b", ids=("pay-2",)))
    assert got == [Appended(1, 0, True), Appended(5, 0, True)]
