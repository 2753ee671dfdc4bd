"""Two nodes that dial each other, whatever ends when: the link comes up, stays up and delivers."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from linkd.config import PeerSettings
from tests.support.fake_net import FakeNet, Kept, one_publish

NAMES = ("east", "west")
PEERS = tuple(
    PeerSettings(name=name, dial=(f"ws://{name}/link",), send=("orders",), receive=("orders",))
    for name in NAMES
)

steps = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.sampled_from(NAMES), st.integers(1, 3)),
        st.tuples(st.just("slow"), st.sampled_from(NAMES), st.sampled_from([1, 30, 300, 900])),
        st.tuples(st.just("end"), st.sampled_from(NAMES), st.sampled_from([0, 50, 1000])),
        st.tuples(st.just("run"), st.just(""), st.sampled_from([2, 40, 400, 1500])),
        st.tuples(st.just("kick"), st.sampled_from(NAMES), st.just(0)),
    ),
    min_size=10,
    max_size=40,
)


class World:
    """Both nodes, and what they log that is worse than a link that is down."""

    def __init__(self) -> None:
        self.net = FakeNet()
        self.errors: list[str] = []
        self.published = 0
        for name, peer in zip(NAMES, reversed(PEERS), strict=True):
            node = self.net.node(name, peer)
            node.log_event = self._tell(node.log_event)  # type: ignore[method-assign]
        for node in self.net.nodes.values():
            node.start()

    def _tell(self, tell: Any) -> Any:
        def listen(level: str, event: str, **fields: Any) -> None:
            if level == "error" or event == "link.duplicate-records":
                self.errors.append(f"{event}: {fields.get('detail')}")
            tell(level, event, **fields)

        return listen

    def take(self, what: str, name: str, number: int) -> None:
        """Take one step."""
        if what == "run":
            self.net.run(number / 1000)
        elif what == "publish":
            for _ in range(number):
                self.published += 1
                one_publish(self.net.nodes[name], "orders", b"%d" % self.published)
        elif what == "slow":
            self.net.delays[name] = number / 1000
        elif what == "kick":
            self.net.nodes[name].links.kick()
        else:
            end = self._link(name).connection
            if end is not None:
                end.end("closed", "it ends")
                self.net.clock.callLater(number / 1000, end.other.end, "closed", "heard late")

    def _link(self, name: str) -> Any:
        (link,) = self.net.nodes[name].links.drivers.values()
        return link

    def states(self) -> list[tuple[str, int]]:
        status = [node.status().links[0] for node in self.net.nodes.values()]
        return [(link.state, link.backlog_records) for link in status]

    def bodies(self, name: str) -> list[bytes]:
        kept = Kept()
        self.net.nodes[name].subscriptions.subscribe(("orders",), "earliest", kept)
        self.net.run(0.01)
        return kept.bodies


@given(steps)
def test_the_link_comes_up_stays_up_and_delivers(todo: list[tuple[str, str, int]]) -> None:
    world = World()
    for what, name, number in todo:
        world.take(what, name, number)
    for _ in range(30):  # traffic goes on: it must not keep the link from coming up
        for name in NAMES:
            world.take("publish", name, 1)
        world.net.run(1.0)
        if world.states() == [("up", 0)] * 2:
            break
    ends = len(world.net.ends)
    for name in NAMES:
        world.take("publish", name, 1)
    world.net.run(10.0)
    assert world.states() == [("up", 0)] * 2
    assert len(world.net.ends) == ends, "it was dialed again"
    assert world.errors == []
    for name in NAMES:
        found = world.bodies(name)
        assert len(found) == len(set(found)) == world.published
