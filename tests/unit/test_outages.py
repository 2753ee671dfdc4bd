"""Outages: measured, kept over restarts, bounded; availability."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linkd.outages import Outages, share_up

DAY = 86_400.0
T0 = 1_700_000_000.0


class Store:
    """Rows in a dict."""

    def __init__(self) -> None:
        self.rows: dict[int, bytes] = {}

    def outages(self) -> list[tuple[int, bytes]]:
        return sorted(self.rows.items())

    def set_outage(self, number: int, row: bytes) -> None:
        self.rows[number] = row

    def remove_outage(self, number: int) -> None:
        self.rows.pop(number, None)


@pytest.fixture
def store() -> Store:
    return Store()


def test_one_outage_from_the_last_byte_on(store: Store) -> None:
    outages = Outages(store)
    outages.fell("hub", "silence", 10.0, now=110.0, stamp=T0 + 10.0)
    (under_way,) = outages.recorded()
    assert under_way.down_seconds is None
    assert outages.rose("hub", 3, 120, now=113.4123, stamp=T0 + 13.4) == pytest.approx(13.4123)
    assert outages.drained("hub", now=114.0) == (pytest.approx(0.5877), 120)
    (outage,) = outages.recorded()
    assert outage.began == "2023-11-14T22:13:20.000Z"
    assert outage.peer == "hub"
    assert outage.reason == "silence"
    assert outage.noticed_after_seconds == 10.0
    assert outage.down_seconds == 13.412
    assert outage.attempts == 3
    assert outage.replayed_records == 120
    assert outage.drained_seconds == 0.588


def test_nothing_owed_is_drained_at_once(store: Store) -> None:
    outages = Outages(store)
    outages.fell("hub", "closed", None, 0.0, T0)
    outages.rose("hub", 1, 0, 1.0, T0 + 1)
    assert outages.drained("hub", 5.0) is None
    assert outages.recorded()[0].drained_seconds == 0.0
    assert outages.recorded()[0].noticed_after_seconds is None


def test_a_first_connection_ends_no_outage(store: Store) -> None:
    outages = Outages(store)
    assert outages.rose("hub", 1, 5, 1.0, T0) is None
    assert outages.drained("hub", 2.0) is None
    assert outages.recorded() == []


def test_a_second_rise_and_drain_change_nothing(store: Store) -> None:
    outages = Outages(store)
    outages.fell("hub", "closed", 0.0, 0.0, T0)
    outages.rose("hub", 1, 2, 1.0, T0)
    assert outages.rose("hub", 9, 9, 5.0, T0) is None
    assert outages.drained("hub", 2.0) is not None
    assert outages.drained("hub", 3.0) is None
    assert outages.recorded()[0].attempts == 1


def test_falling_again_before_it_was_drained(store: Store) -> None:
    outages = Outages(store)
    outages.fell("hub", "closed", 0.0, 0.0, T0)
    outages.rose("hub", 1, 2, 1.0, T0 + 1)
    outages.fell("hub", "silence", 0.0, 2.0, T0 + 2)
    assert outages.drained("hub", 2.5) is None
    outages.rose("hub", 1, 2, 3.0, T0 + 3)
    assert [each.drained_seconds for each in outages.recorded()] == [None, None]


def test_a_restart_in_the_middle(store: Store) -> None:
    Outages(store).fell("hub", "stopped", 0.0, now=5000.0, stamp=T0)
    again = Outages(store)
    assert again.rose("hub", 1, 0, now=3.0, stamp=T0 + 60.0) == 60.0
    assert again.recorded()[0].down_seconds == 60.0


def test_a_run_that_was_killed(store: Store) -> None:
    before = Outages(store)
    before.resume(["hub", "edge"], 0.0, T0)
    before.alive(["gone", "hub"], T0 + 100)
    after = Outages(store)
    after.resume(["hub", "edge"], now=5.0, stamp=T0 + 130)
    assert after.rose("hub", 1, 0, now=7.0, stamp=T0 + 132) == 32.0
    assert after.rose("edge", 1, 0, now=7.0, stamp=T0 + 132) is None
    (outage,) = after.recorded()
    assert (outage.peer, outage.reason, outage.noticed_after_seconds) == ("hub", "closed", None)
    assert outage.began == "2023-11-14T22:15:00.000Z"
    again = Outages(store)
    again.resume(["hub"], 0.0, T0 + 200)
    assert len(again.recorded()) == 1


def test_an_outage_under_way_at_the_kill_goes_on(store: Store) -> None:
    before = Outages(store)
    before.alive(["hub"], T0)
    before.fell("hub", "silence", 1.0, 5.0, T0 + 5)
    after = Outages(store)
    after.resume(["hub"], 0.0, T0 + 9)
    assert after.rose("hub", 1, 0, 1.0, T0 + 10) == 6.0
    assert len(after.recorded()) == 1


def test_a_run_that_ended_cleanly_left_nothing(store: Store) -> None:
    before = Outages(store)
    before.alive(["hub"], T0)
    before.fell("hub", "stopped", 0.0, 0.0, T0 + 1)
    before.alive([], T0 + 1)
    after = Outages(store)
    after.resume(["hub"], 0.0, T0 + 9)
    assert len(after.recorded()) == 1
    assert after.rose("hub", 1, 0, 1.0, T0 + 11) == 10.0


def test_a_wall_clock_that_went_back_makes_no_negative_outage(store: Store) -> None:
    Outages(store).fell("hub", "stopped", 0.0, now=5000.0, stamp=T0)
    assert Outages(store).rose("hub", 1, 0, now=3.0, stamp=T0 - 3600.0) == 0.0


def test_numbers_go_on_after_a_restart(store: Store) -> None:
    Outages(store).fell("a", "closed", 0.0, 0.0, T0)
    Outages(store).fell("b", "closed", 0.0, 0.0, T0)
    assert [each.peer for each in Outages(store).recorded()] == ["a", "b"]


def test_rows_that_nobody_can_read_are_forgotten(store: Store) -> None:
    store.rows = {1: b"\xff", 2: b'{"peer":1}'}
    assert Outages(store).recorded() == []
    assert store.rows == {}


def test_bounded_for_each_link(store: Store) -> None:
    outages = Outages(store, most=300)
    outages.fell("quiet", "dns", 0.0, 0.0, T0)
    for number in range(400):
        outages.fell("flapping", "closed", 0.0, float(number), T0 + number)
    assert len(outages.recorded("flapping")) == 150
    assert len(outages.recorded("quiet")) == 1
    assert len(store.rows) == 151
    assert outages.recorded("flapping")[-1].began == "2023-11-14T22:19:59.000Z"


def test_which_are_told(store: Store) -> None:
    outages = Outages(store)
    outages.fell("a", "closed", 0.0, 0.0, T0)
    outages.rose("a", 1, 0, 10.0, T0 + 10)
    outages.fell("b", "closed", 0.0, 20.0, T0 + 20)
    assert [each.peer for each in outages.recorded()] == ["a", "b"]
    assert [each.peer for each in outages.recorded("b")] == ["b"]
    assert [each.peer for each in outages.recorded(since=T0 + 9)] == ["a", "b"]
    assert [each.peer for each in outages.recorded(since=T0 + 10)] == ["b"]
    assert outages.recorded("nobody") == []


def test_a_removed_peer_is_forgotten(store: Store) -> None:
    outages = Outages(store)
    outages.fell("a", "closed", 0.0, 0.0, T0)
    outages.remove("a")
    outages.remove("never")
    assert store.rows == {}
    assert outages.rose("a", 1, 0, 1.0, T0) is None


def test_availability(store: Store) -> None:
    outages = Outages(store)
    outages.fell("hub", "closed", 0.0, 0.0, T0 - 1800)
    outages.rose("hub", 1, 0, 360.0, T0 - 1440)
    share = outages.availability("hub", T0)
    assert share["hour"] == pytest.approx(0.9)
    assert share["day"] == pytest.approx(1 - 360 / DAY)
    assert share["30 days"] == pytest.approx(1 - 360 / (30 * DAY))
    outages.fell("hub", "closed", 0.0, 1800.0, T0)
    assert outages.availability("hub", T0 + 3600)["hour"] == 0.0
    assert outages.availability("other", T0) == {"hour": 1, "day": 1, "week": 1, "30 days": 1}


@given(
    st.lists(st.tuples(st.integers(-200, 200), st.integers(0, 200))),
    st.integers(1, 150),
)
def test_share_up_equals_counting_seconds(spans: list[tuple[int, int]], window: int) -> None:
    whole = [(float(began), float(began + length)) for began, length in spans]
    down = sum(
        any(began <= second < ended for began, ended in whole)
        for second in range(100 - window, 100)
    )
    assert share_up(whole, window, 100.0) == pytest.approx(1 - down / window)
