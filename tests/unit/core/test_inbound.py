"""How far a log can reach by now, by what its own node named."""

from __future__ import annotations

from typing import Any

import pytest

from linkd.core.inbound import GROWTH_AT_ONCE, GROWTH_PER_SECOND, MAX_RUNS, KnownEnds
from linkd.protocol import peer
from linkd.protocol.peer import EpochStart, Hello, Volatile
from linkd.protocol.records import Origin


def hello(log: str = "edgelog", next: int = 100, *epochs: tuple[str, int]) -> Hello:
    """Return the edge's hello."""
    starts = tuple(EpochStart(*each) for each in epochs or (("e1", 1), ("e2", 50)))
    generation = peer.Generation("b", 1)
    return Hello(2, "edge", "test", generation, log, starts, next, None, (">",), 5.0)


def volatile(sequence: int, **changes: Any) -> Volatile:
    """Return the edge's volatile message."""
    fields: dict[str, Any] = {"channel": "t", "node": "edge", "run": "r"} | changes
    node, run = fields["node"], fields["run"]
    return Volatile(fields["channel"], 1, b"\xc0", 1.0, None, node, run, sequence)


@pytest.mark.parametrize(
    ("epoch", "first", "after", "allowed"),
    [
        ("e1", 2**62, 0, True),
        ("e2", 99, 60, True),
        ("e2", 100 + GROWTH_AT_ONCE - 1, None, True),
        ("e2", 100 + GROWTH_AT_ONCE, None, False),
        ("e2", 60, 2**62, False),
        ("e3", 2**62, 0, True),
    ],
)
def test_only_the_newest_epoch_is_bounded_and_it_grows(
    epoch: str, first: int, after: int | None, allowed: bool
) -> None:
    ends = KnownEnds()
    ends.greeted(hello(), 10.0)
    assert ends.allows(Origin("edge", "edgelog", epoch, first, after), 1, 10.0) is allowed


def test_the_bound_grows_with_time_and_counts_the_whole_batch() -> None:
    ends = KnownEnds()
    far = Origin("edge", "edgelog", "e2", 100 + GROWTH_AT_ONCE + GROWTH_PER_SECOND - 3)
    assert ends.allows(far, 1, 0.0)
    ends.greeted(hello(), 10.0)
    assert not ends.allows(far, 3, 10.9)
    assert ends.allows(far, 3, 11.0)
    assert not ends.allows(far, 4, 11.0)
    assert not ends.allows(far, 3, 5.0)


def test_a_new_log_of_a_node_replaces_its_old_one() -> None:
    ends = KnownEnds()
    ends.greeted(hello(), 0.0)
    ends.greeted(hello("other"), 0.0)
    assert ends.allows(Origin("edge", "edgelog", "e2", 2**62), 1, 0.0)
    assert not ends.allows(Origin("edge", "other", "e2", 2**62), 1, 0.0)


def test_a_run_s_sequence_is_bounded_by_what_came_from_its_node_itself() -> None:
    ends = KnownEnds()
    assert ends.allows_volatile(volatile(2**62), 0.0)
    ends.heard(volatile(1), 0.0)
    assert ends.allows_volatile(volatile(GROWTH_AT_ONCE), 0.0)
    assert not ends.allows_volatile(volatile(GROWTH_AT_ONCE + 1), 0.0)
    assert ends.allows_volatile(volatile(2**62, run="s"), 0.0)
    for number in range(MAX_RUNS):
        ends.heard(volatile(1, run=f"r{number}"), 0.0)
    assert ends.allows_volatile(volatile(2**62), 0.0)
    assert not ends.allows_volatile(volatile(2**62, run="r0"), 0.0)


def test_a_log_has_one_owner_until_that_has_another_log_or_goes() -> None:
    ends = KnownEnds()
    assert ends.owner("edgelog") is None
    ends.greeted(hello(), 0.0)
    assert ends.owner("edgelog") == "edge"
    ends.greeted(hello("newlog"), 1.0)
    assert (ends.owner("edgelog"), ends.owner("newlog")) == (None, "edge")
    ends.own("newlog", "another")
    ends.disown("edge")
    ends.disown("edge")
    assert ends.owner("newlog") == "another"
