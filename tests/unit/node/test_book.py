"""Events: folded by outage, kept over restarts, bounded, sent to those who follow."""

from __future__ import annotations

import pytest

from linkd.log.cursor_store import CursorStore
from linkd.node.history import EventBuffer
from linkd.status import Event


@pytest.fixture
def store() -> CursorStore:
    return CursorStore()


def change(
    book: EventBuffer, old: str, new: str, reason: str | None = None, peer: str = "hub"
) -> None:
    book.add(f"link.{new}", peer=peer, old=old, new=new, reason=reason)


def outage(book: EventBuffer, attempts: int, reason: str = "unreachable") -> None:
    """Let a link fall and be tried so often, each time in vain."""
    change(book, "up", "waiting", "silence")
    for _ in range(attempts):
        change(book, "waiting", "connecting")
        change(book, "connecting", "waiting", reason)


def short(events: list[Event]) -> list[tuple[str | None, str | None, int]]:
    return [(event.new, event.reason, event.count) for event in events]


def test_the_attempts_of_an_outage_are_one_event_for_each_result(store: CursorStore) -> None:
    book = EventBuffer(store)
    outage(book, 1000)
    change(book, "waiting", "connecting")
    change(book, "connecting", "waiting", "refused")
    change(book, "resuming", "up")
    assert short(book.after(0)) == [
        ("waiting", "silence", 1),
        ("waiting", "unreachable", 1000),
        ("connecting", None, 1001),
        ("waiting", "refused", 1),
        ("up", None, 1),
    ]
    folded = book.after(0)[1]
    assert folded.until is not None
    assert folded.time <= folded.until
    assert len(store.events()) == 5


def test_the_next_outage_begins_with_events_of_its_own(store: CursorStore) -> None:
    book = EventBuffer(store)
    outage(book, 3)
    change(book, "waiting", "up")
    outage(book, 2)
    change(book, "waiting", "connecting", peer="other")
    counts = [event.count for event in book.after(0) if event.peer == "hub"]
    assert counts == [1, 3, 3, 1, 1, 2, 2]
    assert book.after(0)[-1].count == 1


def test_who_asks_for_what_is_new_gets_a_folded_event_again(store: CursorStore) -> None:
    book = EventBuffer(store)
    outage(book, 2)
    last = book.after(0)[-1].number
    assert book.after(last) == []
    change(book, "waiting", "connecting")
    assert short(book.after(last)) == [("connecting", None, 3)]


def test_followers_get_each_change_as_it_happens(store: CursorStore) -> None:
    book = EventBuffer(store)
    heard: list[Event] = []
    end = book.follow(heard.append)
    outage(book, 2)
    end()
    change(book, "waiting", "connecting")
    assert short(heard) == [
        ("waiting", "silence", 1),
        ("connecting", None, 1),
        ("waiting", "unreachable", 1),
        ("connecting", None, 1),
        ("waiting", "unreachable", 1),
    ]


def test_they_are_kept_over_a_restart_and_numbers_go_on(store: CursorStore) -> None:
    book = EventBuffer(store)
    outage(book, 5)
    book.add("drill.started", peer="hub", detail="blackhole")
    before = book.after(0)
    again = EventBuffer(store)
    assert again.after(0) == before
    change(again, "stopped", "waiting")
    assert again.after(0)[-1].number > before[-1].number
    outage(again, 1)
    assert [event.count for event in again.after(before[-1].number)] == [1, 1, 1, 1]


def test_numbers_that_a_kill_took_from_the_disk_are_not_used_again(
    store: CursorStore,
) -> None:
    """A follower has seen them: it would never get what came under the same numbers."""
    book = EventBuffer(store)
    seen: list[Event] = []
    book.follow(seen.append)
    for number in range(30):
        book.add("drill.started", peer="hub", detail=str(number))
        if number >= 10:  # the kill comes before these are on disk
            store.remove_event(seen[-1].number)
    again = EventBuffer(store)
    change(again, "stopped", "waiting")
    assert [event.old for event in again.after(seen[-1].number)] == ["stopped"]


def test_they_are_bounded_and_the_oldest_go(store: CursorStore) -> None:
    book = EventBuffer(store, most=10)
    for number in range(25):
        book.add("drill.started", peer="hub", detail=str(number))
    assert [event.detail for event in book.after(0)] == [str(number) for number in range(15, 25)]
    assert len(store.events()) == 10


def test_a_row_that_cannot_be_read_is_forgotten(store: CursorStore) -> None:
    store.set_event(7, b"{}")
    assert EventBuffer(store).after(0) == []
    assert store.events() == []


def test_an_event_that_an_older_version_named_stays_readable(store: CursorStore) -> None:
    EventBuffer(store).add("log.room", detail="a name of before")
    assert [event.event for event in EventBuffer(store).after(0)] == ["log.room"]
