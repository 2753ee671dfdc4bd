"""A disk put back to an older copy: nothing new is lost, and what is lost is said exactly."""

from __future__ import annotations

import re
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from tests.property.test_session import run, steps, subsequence
from tests.support.session_model import ModelNode, settle


@given(steps, steps, steps, st.integers(0, 2**32), st.integers(0, 1), st.just(True))
def test_a_restored_node_goes_on(before, between, after, seed, which, warm) -> None:
    put_back(before, between, after, seed, which, warm)


def put_back(before, between, after, seed, which, warm) -> None:
    """Put one of two nodes back to a copy that was made before the steps `between`."""
    rng = Random(seed)
    one, two = ModelNode("one", rng), ModelNode("two", rng)
    one.link("two", (">",), (">",), 1 << 20)
    two.link("one", (">",), (">",), 1 << 20)
    nodes = [one, two]
    run(nodes, [("publish", 0, 0, 1), ("publish", 1, 0, 1)] if warm else [])
    run(nodes, before)
    restored, other = nodes[which], nodes[1 - which]
    copy = restored.backup()
    marked = [(w, who, o, c) for w, who, o, c in between]
    run(nodes, marked)
    had = {ch: other.bodies(restored.name, ch) for ch in ("a", "b.c", "private")}
    end = restored.log.next
    restored.restore(copy)
    start = restored.log.next
    told_before = len(restored.told)
    run(nodes, [("publish", which, 0, 1), *after])
    settle(nodes)
    for channel in ("a", "b.c", "private"):
        mine, found = restored.bodies(restored.name, channel), other.bodies(restored.name, channel)
        assert subsequence(mine, found), "something new was lost or taken for old"
        assert found[: len(had[channel])] == had[channel], "what the other had was touched"
        theirs, here = other.bodies(other.name, channel), restored.bodies(other.name, channel)
        assert theirs == here, "what the restored node once had was not sent again"
    if end > start:
        said = [t.detail for t in restored.told[told_before:] if "put back" in t.detail]
        assert said
        first, last = map(int, re.search(r"offsets (\d+) to (\d+)", said[0]).groups())
        assert first == start
        assert start <= last < end
