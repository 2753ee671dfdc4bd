"""A follower gets what is its own of each commit, once and in order, however its sink pauses.
Named consumers: whose they are, how they age, and how much of the log they keep.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from linkd.errors import PublishError
from linkd.log.interface import RESUME_PREFIX, RESUME_SECONDS, UNOWNED, Consumer, Owned
from linkd.node import subscriptions
from linkd.node.subscriptions import AGED_AT_ONCE, AGING_SECONDS, LOOKS, READER, Follower
from linkd.protocol.channels import Patterns
from linkd.protocol.records import (
    BATCH_OVERHEAD_BYTES,
    Batch,
    EncodedRecord,
    NewRecords,
    Origin,
    encode_records,
)
from tests.support.fake_node import FakeNode, make_config

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
        held = sum(len(batch.records) + BATCH_OVERHEAD_BYTES for batch in crowd.follower._pending)
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


DAYS = 86_400.0
SHOP: Owned = ("shop", "billing")
ADMIN: Owned = ("admin", "billing")
SOCKET: Owned = ("socket", "billing")


class Sink:
    """Takes everything."""

    def __init__(self) -> None:
        self.got: list[str] = []
        self.ended: list[str] = []

    def has_room(self, size: int) -> bool:
        return True

    def hold(self, size: int) -> bool:
        return True

    def batch(self, batch: Any) -> bool:
        self.got.append(batch.channel)
        return True

    def volatile(self, batch: Any) -> None:
        raise AssertionError(batch)

    def gap(self, first: int, next: int) -> None:
        self.got.append(f"gap {first} {next}")

    def end(self, reason: str) -> None:
        self.ended.append(reason)


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    return FakeNode(make_config(tmp_path), Clock())


def events(node: FakeNode, name: str) -> list[dict[str, Any]]:
    """Return the fields of the lines of that name."""
    return [fields for event, fields in node.told if event == name]


def publish(node: FakeNode, channel: str, count: int = 1, size: int = 1000) -> None:
    """Publish records, each in a batch of its own."""
    for _ in range(count):
        records = encode_records((EncodedRecord(bytes(size)),))
        node.log.append(NewRecords(channel, 1, records, 1.0), lambda _: None)


def make(node: FakeNode, key: Owned, *patterns: str, next: int = 1) -> None:
    """Let there be a consumer."""
    node.subscriptions._store.set_consumer(Consumer(*key, next, patterns or ("orders",)))


def position(node: FakeNode, key: Owned) -> int:
    """Return a consumer's cursor."""
    found = node.subscriptions.consumer(key)
    assert found is not None
    return found.next


def test_two_owners_have_a_consumer_of_the_same_name(node: FakeNode) -> None:
    mine, theirs = Sink(), Sink()
    held = node.subscriptions.subscribe(("orders",), "latest", mine, SHOP)
    publish(node, "orders", 3)
    node.subscriptions.subscribe(("chat",), "latest", theirs, ADMIN)
    assert mine.ended == []
    assert (position(node, SHOP), position(node, ADMIN)) == (1, 4)
    held.close()
    again = node.subscriptions.subscribe(("orders",), "latest", mine, SHOP)
    assert again.next == 1
    node.subscriptions.subscribe(("orders",), "latest", theirs, SHOP)
    assert mine.ended == ["replaced"]


def test_nothing_is_left_of_who_read_a_consumer_that_is_removed(node: FakeNode) -> None:
    store, subscriptions = node.subscriptions._store, node.subscriptions
    store.share(READER, "/".join(SHOP), b"run:1")
    store.share(READER, "/".join(ADMIN), b"run:2")
    make(node, SHOP)
    make(node, ADMIN)
    subscriptions.move(SHOP, ("shop", "other"), lambda _: None)
    assert {*store.shared(READER)} == {"/".join(ADMIN)}
    assert subscriptions.forget(ADMIN, lambda _: None)
    assert not store.shared(READER)


def test_absence_counts_only_while_it_is_looked_at(node: FakeNode) -> None:
    clock, limit = node.clock, node.config.log.consumer_max_idle
    make(node, SHOP)
    clock.advance(8 * DAYS)  # a frozen process, or a clock that jumped
    node.subscriptions.age()
    assert node.subscriptions.consumer(SHOP) is not None
    passed = 2 * AGING_SECONDS
    while passed + AGING_SECONDS <= limit + 2 * AGING_SECONDS:
        clock.advance(AGING_SECONDS)
        node.subscriptions.age()
        passed += AGING_SECONDS
    assert events(node, "consumer.removed") == []
    for _ in range(2):
        clock.advance(AGING_SECONDS)
        node.subscriptions.age()
    (said,) = events(node, "consumer.removed")
    assert (said["owner"], said["consumer"], said["next"]) == ("shop", "billing", 1)
    assert limit < said["idle_seconds"] - 2 * AGING_SECONDS <= limit + AGING_SECONDS
    assert node.subscriptions.consumer(SHOP) is None


def test_who_only_means_to_come_back_soon_is_kept_for_minutes(node: FakeNode) -> None:
    passing: Owned = ("shop", f"{RESUME_PREFIX}tab-1")
    make(node, passing)
    make(node, SHOP)
    for _ in range(int(RESUME_SECONDS / AGING_SECONDS) + 2):
        node.clock.advance(AGING_SECONDS)
        node.subscriptions.age()
    assert node.subscriptions.consumer(passing) is not None
    node.clock.advance(AGING_SECONDS)
    node.subscriptions.age()
    assert node.subscriptions.consumer(passing) is None
    assert node.subscriptions.consumer(SHOP) is not None


def test_absence_adds_up_over_restarts(node: FakeNode) -> None:
    make(node, SHOP)
    node.clock.advance(AGING_SECONDS)
    node.subscriptions.age()
    again = FakeNode(node.config, node.clock)
    again.subscriptions._store = node.subscriptions._store
    node.clock.advance(30.0)
    again.subscriptions.stop()
    assert again.subscriptions.consumer(SHOP) == Consumer(
        "shop", "billing", 1, ("orders",), AGING_SECONDS + 30.0
    )


def test_many_consumers_are_aged_a_few_at_a_time(node: FakeNode) -> None:
    for number in range(AGED_AT_ONCE + 1):
        make(node, ("shop", f"{number:04}"))
    node.clock.advance(AGING_SECONDS)
    node.subscriptions.age()
    assert sum(one.idle == AGING_SECONDS for one in node.subscriptions.consumers()) == AGED_AT_ONCE
    node.forget(("shop", f"{AGED_AT_ONCE:04}"))
    node.subscriptions.age()
    assert {one.idle for one in node.subscriptions.consumers()} == {AGING_SECONDS}
    node.clock.advance(AGING_SECONDS / 2)
    node.subscriptions.age()
    assert {one.idle for one in node.subscriptions.consumers()} == {AGING_SECONDS}


def test_a_holder_and_an_ack_make_a_consumer_young_again(node: FakeNode) -> None:
    for key in (SHOP, ADMIN):
        node.subscriptions._store.set_consumer(Consumer(*key, 1, ("orders",), 5000.0))
    held = node.subscriptions.subscribe(("orders",), "latest", Sink(), SHOP)
    node.clock.advance(AGING_SECONDS)
    node.subscriptions.age()
    shop, admin = node.subscriptions.consumer(SHOP), node.subscriptions.consumer(ADMIN)
    assert shop is not None
    assert admin is not None
    assert (shop.idle, admin.idle) == (0.0, 5000.0 + AGING_SECONDS)
    held.close()
    node.ack(ADMIN, 1)
    admin = node.subscriptions.consumer(ADMIN)
    assert admin is not None
    assert admin.idle == 0.0


def with_limits(node: FakeNode, consumers: int, of_shop: int) -> None:
    """Let there be as many consumers as that, and as many of the key `shop`."""
    config, replace = node.config, msgspec.structs.replace
    keys = tuple(
        replace(key, consumers=of_shop) if key.name == "shop" else key for key in config.api.keys
    )
    node.config = replace(
        config,
        api=replace(config.api, keys=keys),
        limits=replace(config.limits, consumers=consumers),
    )


def test_a_key_has_as_many_consumers_as_its_setting_says(node: FakeNode) -> None:
    with_limits(node, 1000, 2)
    for name in ("a", "b"):
        node.subscriptions.subscribe(("orders",), "latest", Sink(), ("shop", name))
    with pytest.raises(PublishError, match=r"shop has 2 named consumers .*`consumers` of the key"):
        node.subscriptions.subscribe(("orders",), "latest", Sink(), ("shop", "c"))
    node.subscriptions.subscribe(("orders",), "latest", Sink(), ("shop", "a"))
    node.subscriptions.subscribe(("orders",), "latest", Sink(), SOCKET)


def test_no_owner_takes_the_last_tenth_of_all_consumers(node: FakeNode) -> None:
    with_limits(node, 20, 100)
    for number in range(18):
        node.subscriptions.subscribe(("orders",), "latest", Sink(), ("socket", str(number)))
    with pytest.raises(PublishError, match=r"limits\.consumers"):
        node.subscriptions.subscribe(("orders",), "latest", Sink(), ("socket", "18"))
    for name in ("a", "b"):
        node.subscriptions.subscribe(("orders",), "latest", Sink(), ("shop", name))
    with pytest.raises(PublishError):
        node.subscriptions.subscribe(("orders",), "latest", Sink(), ("shop", "c"))


def test_the_patterns_of_a_keys_consumers_are_bounded(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriptions, "KEY_PATTERNS_BYTES", 20)
    monkeypatch.setattr(subscriptions, "PATTERNS_BYTES", 50)
    ten = "orders.abc"
    for name in ("a", "b", "a"):
        node.subscriptions.subscribe((ten,), "latest", Sink(), ("shop", name))
    for name in ("a", "c"):
        with pytest.raises(PublishError, match=r"shop have (10|20) bytes"):
            node.subscriptions.subscribe((ten, ten), "latest", Sink(), ("shop", name))
    node.subscriptions.subscribe((ten, ten), "latest", Sink(), SOCKET)
    with pytest.raises(PublishError, match="above 45"):
        node.subscriptions.subscribe((ten * 3,), "latest", Sink(), ("socket", "c"))


def test_one_that_comes_back_as_it_was_is_not_compared_with_all_others(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(node, SHOP, "orders", next=1)
    monkeypatch.setattr(subscriptions, "KEY_PATTERNS_BYTES", 1)
    node.subscriptions.subscribe(("orders",), "latest", Sink(), SHOP)
    assert node.subscriptions._held
    for patterns in (("orders", "news"), ("other",)):
        with pytest.raises(PublishError, match="above 1"):
            node.subscriptions.subscribe(patterns, "latest", Sink(), SHOP)


def visit(node: FakeNode, name: str, *patterns: str) -> None:
    """Let a client with `resume` come and go."""
    key = ("shop", f"{RESUME_PREFIX}{name}")
    node.subscriptions.subscribe(patterns or ("orders",), "latest", Sink(), key).close()
    node.clock.advance(0.1)


def names(node: FakeNode) -> list[str]:
    return [one.name.removeprefix(RESUME_PREFIX) for one in node.subscriptions.consumers()]


def test_visits_that_are_over_make_room_for_others(node: FakeNode) -> None:
    with_limits(node, 1000, 3)
    for name in ("a", "b", "c", "a", "d"):
        visit(node, name)
    assert names(node) == ["a", "c", "d"]
    (said,) = events(node, "consumer.removed")
    assert (said["consumer"], said["next"]) == ("resume.b", 1)
    for name in ("x", "y", "z"):
        node.subscriptions.subscribe(("orders",), "latest", Sink(), ("shop", name))
    with pytest.raises(PublishError, match=r"shop has 3 named consumers"):
        node.subscriptions.subscribe(("orders",), "latest", Sink(), ("shop", "more"))
    assert len(node.subscriptions.consumers()) == 6


def test_who_is_there_is_not_displaced(node: FakeNode) -> None:
    with_limits(node, 1000, 2)
    held = node.subscriptions.subscribe(("orders",), "latest", Sink(), ("shop", "resume.a"))
    for name in ("b", "c"):
        visit(node, name)
    assert names(node) == ["a", "c"]
    node.subscriptions.subscribe(("orders",), "latest", Sink(), ("shop", "resume.c"))
    with pytest.raises(PublishError, match="2 connected consumers with `resume`"):
        visit(node, "d")
    held.close()
    visit(node, "d")
    assert names(node) == ["c", "d"]


def test_who_left_before_a_restart_is_absent_longest(node: FakeNode) -> None:
    with_limits(node, 1000, 3)
    make(node, ("shop", "resume.a"))
    node.subscriptions._store.set_consumer(Consumer("shop", "resume.b", 1, ("orders",), 60.0))
    for name, left in (("c", ["a", "b", "c"]), ("d", ["a", "c", "d"]), ("e", ["c", "d", "e"])):
        visit(node, name)
        assert names(node) == left


def test_visits_that_are_over_make_room_in_what_all_share(node: FakeNode) -> None:
    with_limits(node, 10, 100)
    for number in range(8):
        visit(node, str(number))
    for number in range(9):
        node.subscriptions.subscribe(("orders",), "latest", Sink(), ("socket", str(number)))
    node.subscriptions.subscribe(("orders",), "latest", Sink(), ("shop", "x"))
    assert len(node.subscriptions.consumers()) == 10
    with pytest.raises(PublishError, match=r"limits\.consumers"):
        visit(node, "late")


def test_no_owner_takes_the_last_tenth_with_both_kinds(node: FakeNode) -> None:
    with_limits(node, 10, 100)
    for number in range(8):
        node.subscriptions.subscribe(("orders",), "latest", Sink(), ("shop", f"x{number}"))
    for name in ("a", "b"):
        visit(node, name)
    assert names(node)[0] == "b"
    assert len(node.subscriptions.consumers()) == 9


def test_visits_that_are_over_make_room_for_patterns(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriptions, "KEY_PATTERNS_BYTES", 20)
    monkeypatch.setattr(subscriptions, "PATTERNS_BYTES", 50)
    ten = "orders.abc"
    for name in ("a", "b", "c"):
        visit(node, name, ten)
    assert names(node) == ["b", "c"]
    with pytest.raises(PublishError, match="shop have 0 bytes"):
        node.subscriptions.subscribe((ten * 3,), "latest", Sink(), SHOP)
    node.subscriptions.subscribe((ten * 2,), "latest", Sink(), SHOP)
    assert names(node) == ["billing", "b", "c"]
    node.subscriptions.subscribe((ten * 2,), "latest", Sink(), SOCKET)
    assert names(node) == ["billing", "c", "billing"]


def test_a_consumer_can_be_moved_to_another_owner(node: FakeNode) -> None:
    sink = Sink()
    make(node, SOCKET, next=7)
    node.subscriptions.subscribe(("orders",), "latest", sink, SOCKET)
    make(node, SHOP)
    with pytest.raises(PublishError, match="shop/billing already"):
        node.move(SOCKET, SHOP)
    with_limits(node, 1000, 1)
    with pytest.raises(PublishError, match="shop has 1"):
        node.move(SOCKET, ("shop", "bills"))
    with pytest.raises(KeyError):
        node.move(("socket", "nobody"), ADMIN)
    assert sink.ended == []
    node.move(SOCKET, ADMIN)
    node.move(SHOP, ("shop", "bills"))
    assert sink.ended == ["replaced"]
    assert [one.key for one in node.subscriptions.consumers()] == [ADMIN, ("shop", "bills")]
    assert position(node, ADMIN) == 1  # the holder began at the log's end, which is 1
    assert events(node, "consumer.moved")[0]["detail"] == "socket/billing is admin/billing now"


def test_the_consumers_of_a_key_that_is_gone_are_logged_and_kept(node: FakeNode) -> None:
    for key in (SHOP, SOCKET, (UNOWNED, "old"), ("gone", "a"), ("gone", "b"), ("anyone", "x")):
        make(node, key)
    publish(node, "orders", 4)
    node.subscriptions.log_orphans()
    said = {one["owner"]: one for one in events(node, "consumer.orphaned")}
    assert said.keys() == {"gone", "anyone"}
    assert (said["gone"]["consumers"], said["gone"]["records"]) == (2, 4)
    assert "(a, b) keep 4 records for up to 7 days" in said["gone"]["detail"]
    api = msgspec.structs.replace(node.config.api, require_key=False)
    node.config = msgspec.structs.replace(node.config, api=api)
    node.told.clear()
    node.subscriptions.log_orphans()
    assert [one["owner"] for one in events(node, "consumer.orphaned")] == ["gone"]


def bound(node: FakeNode, size: int) -> None:
    """Let the log's bound be `size` bytes."""
    node.log.max_bytes = size


def test_a_reader_of_a_quiet_channel_keeps_nothing(node: FakeNode) -> None:
    bound(node, 100_000)
    make(node, SHOP, "quiet")
    make(node, SOCKET, "quiet.*")
    publish(node, "orders", 20)
    node.subscriptions.move_on()
    assert (position(node, SHOP), node.subscriptions.low_water()) == (1, 1)  # there is room
    publish(node, "orders", 40)
    node.subscriptions.move_on()
    moved = position(node, SHOP)
    assert 30 < moved <= 61 - 100_000 // 2 // 2100 + 1
    assert position(node, SOCKET) == moved == node.subscriptions.low_water()
    assert not events(node, "consumer.passed-over")


def test_a_narrow_key_keeps_half_of_the_log_and_is_told_of_the_rest(node: FakeNode) -> None:
    bound(node, 100_000)
    make(node, SHOP, "news.*")
    publish(node, "news.one")
    publish(node, "orders", 60)
    node.subscriptions.move_on()
    node.subscriptions.move_on()
    (said,) = events(node, "consumer.passed-over")
    assert (said["owner"], said["consumer"], said["first"]) == ("shop", "billing", 1)
    assert said["next"] == node.subscriptions.low_water() > 30
    assert position(node, SHOP) == 1  # as long as the records are there it gets them
    publish(node, "orders", 60)
    node.subscriptions.move_on()
    assert len(events(node, "consumer.passed-over")) == 1
    sink = Sink()
    node.subscriptions.subscribe(("news.*",), "latest", sink, SHOP)
    node.clock.advance(0)
    assert sink.got == ["news.one"]
    node.ack(SHOP, 122)
    node.subscriptions.move_on()
    publish(node, "news.two", 1)
    publish(node, "orders", 60)
    node.subscriptions.move_on()
    assert [one["next"] > 122 for one in events(node, "consumer.passed-over")] == [False, True]


@pytest.mark.parametrize("key", [ADMIN, SOCKET, (UNOWNED, "billing"), ("anyone", "billing")])
def test_who_may_read_everything_keeps_everything(node: FakeNode, key: Owned) -> None:
    bound(node, 100_000)
    make(node, key, "orders")
    publish(node, "orders", 60)
    node.subscriptions.move_on()
    assert (position(node, key), node.subscriptions.low_water()) == (1, 1)
    assert not events(node, "consumer.passed-over")


def test_a_key_keeps_what_its_setting_says(node: FakeNode) -> None:
    bound(node, 100_000)
    replace = msgspec.structs.replace
    keys = tuple(replace(key, kept_bytes=10_500) for key in node.config.api.keys)
    node.config = replace(node.config, api=replace(node.config.api, keys=keys))
    make(node, ADMIN, "orders")
    publish(node, "orders", 60)
    assert 61 - 11 <= node.subscriptions.low_water() < 61


def test_a_gone_key_keeps_half(node: FakeNode) -> None:
    bound(node, 100_000)
    make(node, ("gone", "billing"), "orders")
    publish(node, "orders", 60)
    assert 30 < node.subscriptions.low_water() < 61


def test_many_that_lag_are_looked_at_a_few_at_a_time(node: FakeNode) -> None:
    bound(node, 100_000)
    for number in range(LOOKS + 1):
        make(node, ("shop", str(number)), "quiet")
    publish(node, "orders", 60)
    node.subscriptions.move_on()
    assert sum(one.next == 1 for one in node.subscriptions.consumers()) == 1
    node.subscriptions.move_on()
    assert all(one.next > 1 for one in node.subscriptions.consumers())


def test_a_long_look_takes_a_few_ms_at_a_time(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound(node, 100_000)
    for name in ("acked", "deleted", "found", "quiet"):
        make(node, ("shop", name), "x" if name == "found" else "quiet")
    publish(node, "orders", 60)
    looked = 0

    def channels(first: int, next: int) -> Iterator[str]:
        nonlocal looked
        for channel in ["orders"] * 400 + ["x"]:
            looked, node.clock.rightNow = looked + 1, node.clock.rightNow + 0.0001
            yield channel

    monkeypatch.setattr(node.log, "channels", channels)
    for number in range(50):
        before = looked
        node.subscriptions.move_on()
        assert looked - before <= 52
        if number == 0:
            node.ack(("shop", "acked"), 50)
        if number == 10:
            node.forget(("shop", "deleted"))
    left = {one.name: one.next for one in node.subscriptions.consumers()}
    assert left == {"acked": 50, "found": 1, "quiet": left["quiet"]}
    assert 1 < left["quiet"] < 50
    assert [one["consumer"] for one in events(node, "consumer.passed-over")] == ["found"]
    assert looked < 2000


def test_what_is_deleted_is_looked_at_anew_when_it_is_made_again(node: FakeNode) -> None:
    bound(node, 100_000)
    make(node, SHOP, "orders")
    publish(node, "orders", 60)
    node.subscriptions.move_on()
    node.forget(SHOP)
    assert events(node, "consumer.deleted") == [{"owner": "shop", "consumer": "billing", "next": 1}]
    make(node, SHOP, "orders")
    node.subscriptions.move_on()
    assert len(events(node, "consumer.passed-over")) == 2
