"""Nodes with changing topology, stale hellos, takeovers and clock steps: the promise holds."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from linkd.core import session
from linkd.log.origins import Origins, Undo, Verdict
from linkd.protocol.records import Origin
from tests.support.session_model import connect, settle
from tests.support.topology import Topology

Action = tuple[str, int, int, int]

_NODE = st.integers(0, 4)


def _some(*names: str) -> st.SearchStrategy[Action]:
    return st.tuples(st.sampled_from(names), _NODE, _NODE, st.integers(1, 3))


ACTIONS = st.one_of(
    _some("publish"),
    _some("publish", "commit"),
    _some("flow"),
    _some("flow", "connect"),
    _some("dial", "accept", "answered"),
    _some("flow", "accept", "answered", "takeover"),
    _some("add", "add", "remove", "widen"),
    _some("cut", "drop", "crash", "jump"),
)

SHAPES = st.sampled_from(["pair", "pair", "chain", "star", "ring", "full", "none"])


def play(shape: str, count: int, actions: list[Action], seed: int) -> None:
    """Let it all happen, and hold the nodes to the promise."""
    world = Topology(2 if shape == "pair" else count, Random(seed))
    nodes = len(world.nodes)
    links = {
        "pair": [(0, 1)],
        "chain": [(place, place + 1) for place in range(nodes - 1)],
        "star": [(0, place) for place in range(1, nodes)],
        "ring": [(place, (place + 1) % nodes) for place in range(nodes)],
        "full": [(one, two) for two in range(nodes) for one in range(two)],
        "none": [],
    }[shape]
    for one, two in links:
        world.add(one, two)
    world.changes = 0
    for action in actions:
        world.act(*action)
    is_same = all(what not in ("add", "remove", "widen") for what, *_ in actions)
    world.finish()
    world.check(strict=is_same)


@given(SHAPES, st.integers(3, 5), st.lists(ACTIONS, min_size=20, max_size=80), st.integers(0, 99))
def test_the_promise_holds_while_paths_come_and_go(shape, count, actions, seed) -> None:
    play(shape, count, actions, seed)


def test_what_a_restored_disk_lost_still_comes_through_a_relay() -> None:
    """The origin's own hello does not know these offsets any more; the relay owes them."""
    world = Topology(3, Random(1))
    world.add(0, 1)
    world.add(1, 2)
    connect(*world.ends(0, 1))  # type: ignore[misc]
    origin, _, reader = world.nodes
    copy = None
    for _ in range(3):
        world.publish(0, 0, 2)
        origin.log.commit()
        copy = copy or origin.backup()
        settle(world.nodes[:2])  # type: ignore[arg-type]
    origin.restore(copy)
    world.publish(0, 0, 2)
    origin.log.commit()
    world.add(0, 2)
    connect(*world.ends(0, 2))  # type: ignore[misc]
    world.publish(0, 0, 2)
    settle([origin, reader])
    world.finish()
    bodies = [body for _, _, body in reader.stored()]
    assert sorted(bodies) == [b"%d" % number for number in range(10)]
    assert not reader.refused


# What the test must notice


def highest(
    self: Origins, origin: Origin, channel: str, count: int, stamp: float, undo: Undo
) -> Verdict | None:
    """Keep one highest offset for each origin's log and channel."""
    high: dict[Any, int] = self._usage._of  # what it has for numbers, and goes with it
    key = (origin.log, channel)
    skip = min(max(high.get(key, 0) + 1 - origin.first, 0), count)
    undo.append((high, key, high.get(key, 0)))
    high[key] = max(high.get(key, 0), origin.first + count - 1)
    return Verdict(((skip, count - skip),) if skip < count else ())


def without_after(
    whole: Callable[..., Verdict | None],
) -> Callable[..., Verdict | None]:
    """Admit as if no batch named its predecessor."""

    def admit(self, origin, channel, count, stamp, undo):  # type: ignore[no-untyped-def]
        bare = Origin(origin.node, origin.log, origin.epoch, origin.first)
        return whole(self, bare, channel, count, stamp, undo)

    return admit


@pytest.mark.parametrize("mutant", ["highest", "no-after", "stale-hello"])
def test_a_broken_rule_is_noticed_within_500_examples(
    mutant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mutant == "highest":
        monkeypatch.setattr(Origins, "admit", highest)
    elif mutant == "no-after":
        monkeypatch.setattr(Origins, "admit", without_after(Origins.admit))
    else:
        monkeypatch.setattr(session, "outdated", lambda said, cursor: False)
        monkeypatch.setattr(session, "repeats", lambda said, true, theirs: False)

    @hypothesis.settings(
        max_examples=500,
        phases=[hypothesis.Phase.generate],
        report_multiple_bugs=False,
        print_blob=False,
    )
    @given(SHAPES, st.integers(3, 5), st.lists(ACTIONS, min_size=20, max_size=80), st.just(1))
    def runs(shape: str, count: int, actions: list[Action], seed: int) -> None:
        play(shape, count, actions, seed)

    with pytest.raises(AssertionError):
        runs()
