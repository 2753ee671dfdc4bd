"""Two and three nodes over pipes that are cut, with crashes at any step: the promise holds."""

from __future__ import annotations

from itertools import count as counting
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from tests.support.session_model import (
    Link,
    ModelNode,
    accept,
    answered,
    connect,
    dial,
    finish,
    flow,
    settle,
)

_numbers = counting()

CHANNELS = ("a", "b.c", "private")

ACTIONS = (
    st.tuples(st.just("publish"), st.integers(0, 2), st.integers(0, 2), st.integers(1, 5)),
    st.tuples(st.just("big"), st.integers(0, 2), st.integers(0, 2), st.integers(1, 3)),
    st.tuples(st.just("commit"), st.integers(0, 2), st.just(0), st.just(0)),
    st.tuples(st.just("deliver"), st.integers(0, 2), st.integers(0, 2), st.integers(1, 4)),
    st.tuples(st.just("pump"), st.integers(0, 2), st.just(0), st.just(0)),
    st.tuples(st.just("connect"), st.integers(0, 2), st.integers(0, 2), st.just(0)),
    st.tuples(st.just("cut"), st.integers(0, 2), st.integers(0, 2), st.just(0)),
    st.tuples(st.just("drop"), st.integers(0, 2), st.integers(0, 2), st.just(0)),
    st.tuples(st.just("dial"), st.integers(0, 2), st.integers(0, 2), st.just(0)),
    st.tuples(st.just("accept"), st.integers(0, 2), st.integers(0, 2), st.just(0)),
    st.tuples(st.just("answered"), st.integers(0, 2), st.integers(0, 2), st.just(0)),
    st.tuples(st.just("crash"), st.integers(0, 2), st.just(0), st.just(0)),
)
TRIM = st.tuples(st.just("trim"), st.integers(0, 2), st.just(0), st.just(0))

steps = st.lists(st.one_of(*ACTIONS), max_size=60)
steps_and_trims = st.lists(st.one_of(*ACTIONS, TRIM), max_size=60)


def run(nodes: list[ModelNode], todo: list[tuple[str, int, int, int]], stays: bool = False) -> None:
    """Take the steps, then let all links be up and everything come to its end.

    `stays`: what is connected stays so.
    """
    for what, who, other, count in todo:
        node = nodes[who % len(nodes)]
        links = list(node.links.values())
        link = links[other % len(links)]
        if what in {"publish", "big"}:
            size = 90_000 if what == "big" and count == 1 else 3
            bodies = [b"%d-%s" % (next(_numbers), b"x" * size) for _ in range(count)]
            node.publish(CHANNELS[other % 3], bodies)
        elif what == "flow":
            flow(nodes, 3)
        elif what == "full":
            node.full = True
        else:
            take(what, nodes, link, count)
    for node in nodes:
        node.make_room()
    for node in nodes:
        for link in node.links.values():
            if node.name < link.peer and not (stays and joined(link)):
                other = peer_end(nodes, node, link.peer)
                if link.dialing is None or link.dialing.ended:
                    connect(link, other)
                else:
                    finish(link, other)  # a takeover, with a hello that may be old
    settle(nodes)


def joined(link: Link) -> bool:
    """Tell whether both ends are on one connection, and no other is coming."""
    other = link.other
    return (
        other is not None
        and link.dialing is None
        and link.out is not None
        and link.out is other.inward
    )


def take(what: str, nodes: list[ModelNode], link: Link, count: int) -> None:
    """Take one step at one node's end of a link."""
    node = link.node
    taken = {
        "commit": node.log.commit,
        "deliver": lambda: link.deliver(count),
        "pump": link.pump,
        "connect": lambda: connect(link, peer_end(nodes, node, link.peer)),
        "room": node.make_room,
        "cut": link.cut,
        "drop": link.drop,
        "dial": lambda: dial(lesser(nodes, link), greater(nodes, link)),
        "accept": lambda: accept(lesser(nodes, link), greater(nodes, link)),
        "answered": lambda: answered(lesser(nodes, link)),
        "trim": lambda: node.trim(min(each.acked for each in node.links.values())),
        "crash": node.crash,
    }
    taken[what]()


def peer_end(nodes: list[ModelNode], node: ModelNode, peer: str) -> Link:
    return next(n for n in nodes if n.name == peer).links[node.name]


def lesser(nodes: list[ModelNode], link: Link) -> Link:
    """Return the end whose attempt takes over: that of the lesser name."""
    return link if link.node.name < link.peer else peer_end(nodes, link.node, link.peer)


def greater(nodes: list[ModelNode], link: Link) -> Link:
    return peer_end(nodes, lesser(nodes, link).node, lesser(nodes, link).peer)


def quiet(nodes: list[ModelNode]) -> None:
    """No log was put back to an older copy and none is new: nobody may have said so."""
    assert [tell.detail for node in nodes for tell in node.told] == []


def subsequence(wanted: list[bytes], found: list[bytes]) -> bool:
    rest = iter(found)
    return all(body in rest for body in wanted)


def check(origin: ModelNode, reader: ModelNode, channel: str) -> None:
    """What was acknowledged at the origin is in the reader's log: once, in order."""
    mine, found = origin.all_bodies(origin.name, channel), reader.all_bodies(origin.name, channel)
    assert len(set(found)) == len(found), "doubled"
    assert found == mine, "lost, reordered or invented"
    assert subsequence(origin.acked.get(channel, []), mine), "acknowledged, but not in its own log"


TWO_NODES = (steps_and_trims, st.integers(0, 2**32), st.sampled_from([1, 1000, 1 << 20]))


@given(*TWO_NODES)
def test_two_nodes_keep_the_promise(todo, seed, window) -> None:
    two_nodes(todo, seed, window)


def two_nodes(
    todo: list[tuple[str, int, int, int]], seed: int, window: int, stays: bool = False
) -> None:
    """Hold two nodes to the promise."""
    rng = Random(seed)
    one, two = ModelNode("one", rng), ModelNode("two", rng)
    one.link("two", ("a", "b.*"), (">",), window)
    two.link("one", (">",), ("a", "b.>"), window)
    run([one, two], todo, stays)
    quiet([one, two])
    for channel in ("a", "b.c"):
        check(one, two, channel)
        check(two, one, channel)
    assert two.bodies("one", "private") == []
    check(two, one, "private")
    assert not one.gone
    assert not two.gone
    for node in (one, two):
        for link in node.links.values():
            assert link.acked == node.log.next
            assert link.session.outbound.owed_records == 0


_WHO, _NONE = st.integers(0, 1), st.just(0)
TAKEOVER = (
    st.tuples(st.just("publish"), _WHO, _WHO, st.integers(1, 3)),
    st.tuples(st.sampled_from(["commit", "pump", "deliver"]), _WHO, _NONE, st.just(2)),
    st.tuples(st.sampled_from(["flow", "dial", "accept", "answered"]), _NONE, _NONE, _NONE),
    st.tuples(st.sampled_from(["flow", "connect", "drop"]), _WHO, _NONE, _NONE),
    st.tuples(st.sampled_from(["flow", "full", "room"]), _WHO, _NONE, _NONE),
)


@given(
    st.lists(st.one_of(*TAKEOVER), min_size=20, max_size=60),
    st.integers(0, 2**32),
    st.sampled_from([1, 1 << 20]),
)
def test_a_takeover_with_a_stale_hello_keeps_the_promise(todo, seed, window) -> None:
    two_nodes(todo, seed, window, stays=True)


@given(steps_and_trims, st.integers(0, 2**32))
def test_a_hub_and_two_edges_and_a_ring(todo, seed) -> None:
    ring(todo, seed)


def ring(todo: list[tuple[str, int, int, int]], seed: int) -> None:
    """Hold three nodes, each linked to both others, to the promise."""
    rng = Random(seed)
    nodes = [ModelNode(name, rng) for name in ("hub", "east", "west")]
    for node in nodes:
        for other in nodes:
            if other is not node:
                node.link(other.name, (">",), ("a", "b.>"), 1 << 20)
    run(nodes, todo)
    quiet(nodes)
    for origin in nodes:
        for reader in nodes:
            for channel in ("a", "b.c"):
                check(origin, reader, channel)
