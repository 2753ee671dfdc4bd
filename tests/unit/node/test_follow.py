"""A follower gets what is its own of each commit, once and in order, however its sink pauses."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from linkd.node.subscriptions import Follower
from linkd.protocol.channels import Patterns
from linkd.protocol.records import HELD_BYTES, Batch, Origin

ORIGIN = Origin("edge", "log", "epoch", 1)
READ_BYTES = 512 * 1024


class _Log:
    """A log in memory that counts what was read of it."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.next = 1
        self.read_batches = 0

    def clock(self) -> float:
        return 0.0

    def commit(self, channel: str, count: int, size: int = 10) -> Batch:
        batch = Batch(self.next, channel, count, b"\xc0" * max(size, count), 0.0, ORIGIN)
        self.batches.append(batch)
        self.next = batch.next
        return batch

    def read(self, position: int, max_bytes: int) -> list[Batch]:
        found = [batch for batch in self.batches if batch.next > position]
        self.read_batches += len(found)
        return found


class _Sink:
    """Takes while it has room; may make room from within, as a socket that is written at once."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.eager = False
        self.taken: list[Batch] = []
        self.follower: Follower

    def has_room(self, size: int) -> bool:
        return self.room > 0

    def hold(self, size: int) -> bool:
        return True

    def batch(self, batch: Batch) -> bool:
        self.taken.append(batch)
        self.room -= 1
        if self.room <= 0 and self.eager:
            self.room += 2
            self.follower.resume()
        return self.room > 0

    def gap(self, first: int, next: int) -> None:
        raise AssertionError(f"a gap was told: {first} to {next}")


class _Crowd:
    """A log, one follower of channel `a`, and what its node does with each commit."""

    def __init__(self, room: int) -> None:
        self.log = _Log()
        self.sink = _Sink(room)
        owner: Any = None
        log: Any = self.log
        sink: Any = self.sink
        self.follower = self.sink.follower = Follower(log, Patterns(("a",)), 1, sink, owner)
        self.follower.pump()

    def commit(self, *batches: tuple[str, int, int]) -> None:
        made = [self.log.commit(*batch) for batch in batches]
        mine = [batch for batch in made if batch.channel == "a"]
        if mine:
            self.follower.offer(mine, self.log.next)

    def give(self, room: int) -> None:
        self.sink.room += room
        if self.sink.room > 0:
            self.follower.resume()

    @property
    def expected(self) -> list[int]:
        return [batch.offset for batch in self.log.batches if batch.channel == "a"]


_BATCH = st.tuples(st.sampled_from("ab"), st.integers(1, 3), st.sampled_from((10, 60_000)))
_STEP = st.one_of(
    st.lists(_BATCH, min_size=1, max_size=12),
    st.integers(1, 5),
    st.sampled_from(("tick", "eager", "quiet")),
)


@given(st.integers(0, 3), st.lists(_STEP, max_size=30))
def test_all_of_its_own_comes_once_in_order(room: int, steps: list[Any]) -> None:
    crowd = _Crowd(room)
    for step in steps:
        if isinstance(step, list):
            crowd.commit(*step)
        elif isinstance(step, int):
            crowd.give(step)
        elif step == "tick":
            crowd.follower.offer([], crowd.log.next)
        else:
            crowd.sink.eager = step == "eager"
        held = sum(len(batch.records) + HELD_BYTES for batch in crowd.follower._pending)
        assert not crowd.follower._live or held <= READ_BYTES
    crowd.sink.room = 0
    crowd.give(10_000)
    crowd.follower.offer([], crowd.log.next)
    assert [batch.offset for batch in crowd.sink.taken] == crowd.expected
    assert crowd.follower.next == crowd.log.next


def test_what_comes_during_a_short_pause_is_kept_and_the_log_is_not_read() -> None:
    crowd = _Crowd(2)
    for _ in range(5):
        crowd.commit(("a", 1, 10), ("b", 1, 10), ("b", 1, 10))
    assert len(crowd.sink.taken) == 2
    crowd.give(10)
    assert [batch.offset for batch in crowd.sink.taken] == crowd.expected
    assert crowd.log.read_batches == 0


def test_a_reader_that_stays_away_keeps_little_and_reads_it_later() -> None:
    crowd = _Crowd(1)
    for _ in range(40):
        crowd.commit(("a", 1, 60_000))
    assert len(crowd.follower._pending) == 0
    crowd.give(100)
    assert [batch.offset for batch in crowd.sink.taken] == crowd.expected
    assert crowd.log.read_batches > 0


def test_what_is_small_counts_with_what_it_takes_in_memory() -> None:
    crowd = _Crowd(1)
    for _ in range(600):
        crowd.commit(("a", 1, 1))
    assert len(crowd.follower._pending) == 0
    crowd.give(1000)
    assert [batch.offset for batch in crowd.sink.taken] == crowd.expected
