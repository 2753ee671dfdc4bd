"""Outages: measured, kept over restarts, bounded; availability."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linkd.node.outages import Outages, common, merged, share_up
from linkd.status import Outage

T0 = 1_700_000_000.0
NOW = 1000.0


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


def recorded(outages: Outages, *arguments: Any, **more: Any) -> list[Outage]:
    return list(outages.recorded(*arguments, **more))


@pytest.fixture
def store() -> Store:
    return Store()


def test_one_outage_from_the_last_byte_on(store: Store) -> None:
    outages = Outages(store)
    outages.fell("hub", "silence", 10.0, now=110.0, stamp=T0 + 10.0)
    (under_way,) = recorded(outages, 112.0)
    assert (under_way.down_seconds, under_way.ongoing) == (12.0, True)
    assert outages.rose("hub", 3, 120, 113.4123) == pytest.approx(13.4123)
    assert outages.drained("hub", now=114.0) == (pytest.approx(0.5877), 120)
    (outage,) = recorded(outages, NOW)
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
    outages.rose("hub", 1, 0, 1.0)
    assert outages.drained("hub", 5.0) is None
    assert recorded(outages, NOW)[0].drained_seconds == 0.0
    assert recorded(outages, NOW)[0].noticed_after_seconds is None


def test_a_first_connection_ends_no_outage(store: Store) -> None:
    outages = Outages(store)
    assert outages.rose("hub", 1, 5, 1.0) is None
    assert outages.drained("hub", 2.0) is None
    assert recorded(outages, NOW) == []


def test_a_second_rise_and_drain_change_nothing(store: Store) -> None:
    outages = Outages(store)
    outages.fell("hub", "closed", 0.0, 0.0, T0)
    outages.rose("hub", 1, 2, 1.0)
    assert outages.rose("hub", 9, 9, 5.0) is None
    assert outages.drained("hub", 2.0) is not None
    assert outages.drained("hub", 3.0) is None
    assert recorded(outages, NOW)[0].attempts == 1


def test_falling_again_before_it_was_drained(store: Store) -> None:
    outages = Outages(store)
    outages.fell("hub", "closed", 0.0, 0.0, T0)
    outages.rose("hub", 1, 2, 1.0)
    outages.fell("hub", "silence", 0.0, 2.0, T0 + 2)
    assert outages.drained("hub", 2.5) is None
    outages.rose("hub", 1, 2, 3.0)
    assert [each.drained_seconds for each in recorded(outages, NOW)] == [None, None]


def reopened(store: Store, stamp: float, *peers: str, now: float = 0.0) -> Outages:
    """Return the outages of a new run that begins at `stamp`."""
    outages = Outages(store)
    outages.resume(peers or ("hub",), now, stamp)
    return outages


def test_an_outage_goes_on_over_a_restart(store: Store) -> None:
    Outages(store).fell("hub", "stopped", 0.0, now=5000.0, stamp=T0)
    again = reopened(store, T0 + 57.0)
    current = again.current("hub", 1.0)
    assert current is not None
    assert (current.began, current.seconds, current.reason) == (T0, 58.0, "stopped")
    (outage,) = recorded(again, 2.0)
    assert (outage.ongoing, outage.down_seconds, outage.never_up) == (True, 59.0, False)
    assert again.rose("hub", 1, 0, 3.0) == 60.0
    assert again.current("hub", 4.0) is None
    (outage,) = recorded(again, 9.0)
    assert (outage.ongoing, outage.down_seconds) == (False, 60.0)


def test_a_link_that_was_up_is_down_since_the_daemon_was_killed(store: Store) -> None:
    before = reopened(store, T0, "hub", "edge")
    assert before.rose("hub", 1, 0, 1.0) is None
    assert before.rose("edge", 1, 0, 1.0) is None
    before.alive(["gone", "hub"], 100.0, T0 + 100)
    after = reopened(store, T0 + 130, "hub", "edge", now=5.0)
    assert after.rose("hub", 1, 0, 7.0) == 32.0
    assert after.rose("edge", 1, 0, 7.0) == 2.0  # it was down already: since when is not known
    outage, _ = recorded(after, NOW)
    assert (outage.peer, outage.reason, outage.noticed_after_seconds) == ("hub", "closed", None)
    assert outage.began == "2023-11-14T22:15:00.000Z"


def test_an_outage_under_way_at_the_kill_goes_on(store: Store) -> None:
    before = Outages(store)
    before.alive(["hub"], 0.0, T0)
    before.fell("hub", "silence", 1.0, 5.0, T0 + 5)
    after = reopened(store, T0 + 9)
    assert after.rose("hub", 1, 0, 1.0) == 6.0
    assert len(recorded(after, NOW)) == 1


def test_a_planned_stop_is_one_outage(store: Store) -> None:
    before = reopened(store, T0 - 9)
    before.rose("hub", 1, 0, 1.0)
    before.fell("hub", "stopped", 0.0, 10.0, T0 + 1)
    before.alive([], 10.0, T0 + 1)
    after = reopened(store, T0 + 9)
    assert after.rose("hub", 1, 0, 1.0) == 9.0
    assert [each.reason for each in recorded(after, NOW)] == ["stopped"]


def test_a_wall_clock_that_went_back_makes_no_negative_outage(store: Store) -> None:
    Outages(store).fell("hub", "stopped", 0.0, now=5000.0, stamp=T0)
    assert reopened(store, T0 - 3600.0).rose("hub", 1, 0, 3.0) == 3.0


def test_a_link_that_was_never_up_is_down_since_it_was_configured(store: Store) -> None:
    outages = reopened(store, T0)
    outages.failed("hub", "dns")
    outages.tried("hub", 7)
    current = outages.current("hub", 600.0)
    assert current is not None
    assert (current.began, current.seconds, current.reason) == (T0, 600.0, "dns")
    assert current.never_up
    (outage,) = recorded(outages, 600.0)
    assert (outage.never_up, outage.ongoing, outage.attempts) == (True, True, 7)
    assert (outage.reason, outage.down_seconds) == ("dns", 600.0)
    again = reopened(store, T0 + 700.0)
    (outage,) = recorded(again, 0.0)
    assert (outage.never_up, outage.down_seconds) == (True, 700.0)
    assert again.rose("hub", 9, 0, 1.0) == 701.0


def test_a_link_that_comes_up_at_once_had_no_outage(store: Store) -> None:
    outages = reopened(store, T0)
    assert outages.rose("hub", 1, 0, 0.3) is None
    assert recorded(outages, NOW) == []
    assert outages.drained("hub", 1.0) is None
    outages.fell("hub", "silence", 0.0, 5.0, T0 + 5)
    outages.failed("hub", "dns")
    (outage,) = recorded(outages, 6.0)
    assert (outage.reason, outage.never_up) == ("silence", False)


def test_a_link_that_is_added_is_down_since_then(store: Store) -> None:
    outages = reopened(store, T0)
    outages.rose("hub", 1, 0, 1.0)
    outages.configured("edge", 50.0, T0 + 50.0)
    outages.configured("edge", 60.0, T0 + 60.0)
    (outage,) = recorded(outages, 70.0)
    assert (outage.peer, outage.down_seconds, outage.never_up) == ("edge", 20.0, True)


def test_outages_that_a_drill_makes_are_marked(store: Store) -> None:
    outages = Outages(store)
    outages.drilled("hub", 100.0)
    outages.fell("hub", "silence", 10.0, 105.0, T0)
    outages.rose("hub", 1, 0, 106.0)
    outages.fell("hub", "silence", 10.0, 111.0, T0 + 6)
    outages.rose("hub", 1, 0, 112.0)
    assert [each.drill for each in recorded(outages, NOW)] == [True, False]
    assert len(recorded(outages, NOW, drills=False)) == 1


def test_numbers_go_on_after_a_restart(store: Store) -> None:
    Outages(store).fell("a", "closed", 0.0, 0.0, T0)
    Outages(store).fell("b", "closed", 0.0, 0.0, T0)
    assert [each.peer for each in recorded(Outages(store), NOW)] == ["a", "b"]


def test_rows_that_nobody_can_read_are_forgotten(store: Store) -> None:
    store.rows = {1: b"\xff", 2: b'{"peer":1}'}
    assert recorded(Outages(store), NOW) == []
    assert store.rows == {}


def test_bounded_for_each_link(store: Store) -> None:
    outages = Outages(store, most=300)
    outages.fell("quiet", "dns", 0.0, 0.0, T0)
    for number in range(400):
        outages.fell("flapping", "closed", 0.0, float(number), T0 + number)
    assert len(recorded(outages, NOW, "flapping")) == 150
    assert len(recorded(outages, NOW, "quiet")) == 1
    assert len(store.rows) == 151
    assert recorded(outages, NOW, "flapping")[-1].began == "2023-11-14T22:19:59.000Z"


def test_which_are_told(store: Store) -> None:
    outages = Outages(store)
    outages.fell("a", "closed", 0.0, 0.0, T0)
    outages.rose("a", 1, 0, 10.0)
    outages.fell("b", "closed", 0.0, 20.0, T0 + 20)
    assert [each.peer for each in recorded(outages, NOW)] == ["a", "b"]
    assert [each.peer for each in recorded(outages, NOW, "b")] == ["b"]
    assert [each.peer for each in recorded(outages, NOW, since=T0 + 9)] == ["a", "b"]
    assert [each.peer for each in recorded(outages, NOW, since=T0 + 10)] == ["b"]
    assert recorded(outages, NOW, "nobody") == []


def test_a_removed_peer_is_forgotten(store: Store) -> None:
    outages = Outages(store)
    outages.fell("a", "closed", 0.0, 0.0, T0)
    outages.remove("a")
    outages.remove("never")
    assert store.rows == {}
    assert outages.rose("a", 1, 0, 1.0) is None


def test_availability_counts_only_what_was_measured(store: Store) -> None:
    outages = reopened(store, T0)
    outages.rose("hub", 1, 0, 1.0)
    outages.fell("hub", "closed", 0.0, 100.0, T0 + 100)
    outages.rose("hub", 1, 0, 160.0)
    found = outages.availability("hub", 600.0, T0 + 600)
    assert found.measured_since == "2023-11-14T22:13:20.000Z"
    for share in (found.hour, found.day, found.week, found.month):
        assert share == pytest.approx(0.9)
    assert found.measured == [("2023-11-14T22:13:20.000Z", "2023-11-14T22:23:20.000Z")]
    unknown = outages.availability("other", 600.0, T0 + 600)
    assert (unknown.measured_since, unknown.hour, unknown.measured) == (None, None, [])


def test_availability_of_a_link_that_was_never_up_is_nothing(store: Store) -> None:
    outages = reopened(store, T0)
    found = outages.availability("hub", 600.0, T0 + 600)
    assert (found.hour, found.month) == (0.0, 0.0)


def test_time_in_which_the_node_did_not_run_is_not_known(store: Store) -> None:
    before = reopened(store, T0)
    before.rose("hub", 1, 0, 0.0)
    before.fell("hub", "stopped", 0.0, 1000.0, T0 + 1000)
    before.alive([], 1000.0, T0 + 1000)
    after = reopened(store, T0 + 3000)
    after.rose("hub", 1, 0, 250.0)
    found = after.availability("hub", 1000.0, T0 + 4000)
    assert found.day == pytest.approx(1 - 250 / 2000)
    assert len(found.measured) == 2


def test_availability_can_leave_drills_out(store: Store) -> None:
    outages = reopened(store, T0)
    outages.rose("hub", 1, 0, 1.0)
    outages.drilled("hub", 60.0)
    outages.fell("hub", "silence", 0.0, 50.0, T0 + 50)
    outages.rose("hub", 1, 0, 100.0)
    assert outages.availability("hub", 100.0, T0 + 100).hour == pytest.approx(0.5)
    assert outages.availability("hub", 100.0, T0 + 100, drills=False).hour == 1.0


def test_runs_are_bounded_and_the_shortest_pauses_go(store: Store) -> None:
    for number in range(300):
        run = reopened(store, T0 + 100.0 * number)
        run.alive([], 50.0, T0 + 100.0 * number + 50.0)
    found = reopened(store, T0 + 30_000.0).availability("hub", 0.0, T0 + 30_000.0)
    assert len(found.measured) <= 200
    assert found.day == 0.0


spans = st.lists(
    st.tuples(st.integers(-200, 200), st.integers(0, 200)).map(
        lambda pair: (float(pair[0]), float(pair[0] + pair[1]))
    )
)


def inside(second: int, some: list[tuple[float, float]]) -> bool:
    return any(began <= second < ended for began, ended in some)


@given(spans, spans, st.integers(1, 150))
def test_share_up_equals_counting_seconds(
    measured: list[tuple[float, float]], down: list[tuple[float, float]], window: int
) -> None:
    known = [second for second in range(100 - window, 100) if inside(second, measured)]
    share = share_up(measured, down, (100.0 - window, 100.0))
    if not known:
        assert share is None
    else:
        lost = sum(inside(second, down) for second in known)
        assert share == pytest.approx(1 - lost / len(known))


@given(spans, spans)
def test_spans_are_merged_and_cut_as_sets_of_seconds(
    some: list[tuple[float, float]], others: list[tuple[float, float]]
) -> None:
    for second in range(-200, 400):
        assert inside(second, merged(some)) == inside(second, some)
        both = inside(second, some) and inside(second, others)
        assert inside(second, common(some, others)) == both
    found = merged(some)
    assert all(earlier[1] < later[0] for earlier, later in pairwise(found))
