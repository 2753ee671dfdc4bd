"""Records deleted while they are owed: what is gone is told exactly, and nothing else is lost."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from linkd.protocol.records import decode_records
from tests.property.test_session import ACTIONS, TRIM, run
from tests.support.session_model import ModelNode

PUBLISH = ACTIONS[0]
steps = st.lists(st.one_of(*ACTIONS, PUBLISH, PUBLISH, TRIM, TRIM, TRIM), max_size=60)


class Trimmed(ModelNode):
    """A node whose trims take what is owed, and which remembers what ever lay in its log."""

    def __init__(self, name: str, rng: Random) -> None:
        self.places: list[tuple[str, str, int]] = []
        self._seen = 1
        self._rng = rng
        super().__init__(name, rng)

    def trim(self, before: int) -> None:
        """Delete about as much as chance says, owed or not."""
        log = self.log
        log.commit()
        log.trim(log.first + self._rng.randint(0, log.next - log.first))

    def committed(self, next: int) -> None:
        for batch in self.log.read(max(self._seen, self.log.first), 1 << 60) or []:
            origin = batch.origin
            assert len(decode_records(batch.records, batch.count)) == batch.count
            for place in range(origin.first, origin.first + batch.count):
                self.places.append((origin.node, batch.channel, place))
        self._seen = next
        super().committed(next)

    def offsets(self, origin: str, channel: str) -> list[int]:
        """Return the offsets at their origin of all records that ever lay here, in order."""
        return [place for node, name, place in self.places if (node, name) == (origin, channel)]


@given(steps, st.integers(0, 2**32), st.sampled_from([200, 1 << 20]))
def test_what_a_trim_takes_is_told_exactly(todo, seed, window) -> None:
    trimmed(todo, seed, window)


def trimmed(todo, seed, window) -> None:
    """Let two nodes trim what they owe each other."""
    rng = Random(seed)
    one, two = Trimmed("one", rng), Trimmed("two", rng)
    one.link("two", ("a", "b.*"), (">",), window)
    two.link("one", ("a", "b.*"), (">",), window)
    run([one, two], todo)
    for origin, reader in ((one, two), (two, one)):
        told = {n for gone in reader.gone if gone.inbound for n in range(gone.first, gone.next)}
        said = {n for gone in origin.gone if not gone.inbound for n in range(gone.first, gone.next)}
        assert told <= said, "told to the peer, but not said here"
        for channel in ("a", "b.c"):
            mine, found = origin.offsets(origin.name, channel), reader.offsets(origin.name, channel)
            assert found == sorted(set(found)), "doubled or reordered"
            assert set(mine) - set(found) == told & set(mine), "lost untold, or told wrongly"
    for node in (one, two):
        for link in node.links.values():
            assert link.acked == node.log.next
            assert link.session.outbound.owed_records == 0


@given(steps, st.integers(0, 2**32))
def test_trims_in_a_ring_double_and_reorder_nothing(todo, seed) -> None:
    rng = Random(seed)
    nodes = [Trimmed(name, rng) for name in ("hub", "east", "west")]
    for node in nodes:
        for other in nodes:
            if other is not node:
                node.link(other.name, (">",), ("a", "b.>"), 1 << 20)
    run(list(nodes), todo)
    for origin in nodes:
        for reader in nodes:
            for channel in ("a", "b.c"):
                found = reader.offsets(origin.name, channel)
                assert found == sorted(set(found)), "doubled or reordered"
                assert set(found) <= set(origin.offsets(origin.name, channel)), "invented"
