"""What a log holds is held against what its publisher knows."""

from __future__ import annotations

from tests.chaos.acts import FLAVOURS, GROUPS, Plan, script
from tests.chaos.checker import Sample, judge, uncounted
from tests.chaos.perform import FAULTS
from tests.chaos.traffic import Ledger


def ledger() -> Ledger:
    """Return one who was told of ten records, and of whose five others nothing is known."""
    return Ledger("edge-1/0", "up.edge-1.0", [(0, 5), (10, 15)], [(5, 10)], next=15)


def test_what_is_there_once_in_order_is_good() -> None:
    for doubtful in ([], [6, 7], [5, 6, 7, 8, 9]):
        assert judge(ledger(), [0, 1, 2, 3, 4, *doubtful, 10, 11, 12, 13, 14], "hub").good


def test_what_is_missing_twice_or_late_is_told() -> None:
    verdict = judge(ledger(), [0, 1, 2, 3, 10, 12, 11, 13, 14, 14], "hub")
    assert (verdict.lost, verdict.twice, verdict.out_of_order) == ([4], [14], 2)
    assert not verdict.good


def test_a_small_log_may_have_lost_its_front_and_nothing_else() -> None:
    assert judge(ledger(), [11, 12, 13, 14], "edge-1", small=True).good
    assert judge(ledger(), [11, 12, 13, 14], "hub").lost == [0, 1, 2, 3, 4, 10]
    assert judge(ledger(), [3, 10, 11, 12, 13], "edge-1", small=True).lost == [4, 14]
    assert judge(ledger(), [], "edge-1", small=True).good


def test_only_what_was_published_before_a_new_path_may_come_behind_later_ones() -> None:
    told = ledger()
    told.calls = [(0, 1.0), (5, 2.0), (10, 3.0)]
    numbers = [10, 11, 12, 13, 14, 0, 1, 2, 3, 4]
    assert judge(told, numbers, "hub", changed=1.5).good
    assert judge(told, numbers, "hub", changed=1.5).late == 5
    assert judge(told, numbers, "hub", changed=1.0).out_of_order == 5
    assert judge(told, numbers, "hub").out_of_order == 5
    verdict = judge(told, [0, 1, 2, 3, 4, 11, 12, 13, 14, 10], "hub", changed=2.5)
    assert (verdict.late, verdict.out_of_order) == (0, 1)
    assert not verdict.good


def test_late_records_are_counted_by_their_daemon() -> None:
    late = [40, 41, 55, 80]
    one = [Sample(1, 1.0, 10, 0), Sample(1, 2.0, 50, 2), Sample(1, 3.0, 90, 4)]
    assert not uncounted(late, [*one, Sample(1, 4.0, 90, 4)])
    assert uncounted(late, [*one, Sample(1, 4.0, 90, 3)])  # one was not counted
    assert uncounted(late, [*one, Sample(1, 4.0, 90, 5)])  # one too many
    assert uncounted([], [Sample(1, 1.0, 10, 1)])
    assert uncounted([], [Sample(1, 1.0, 10, 0, unproven=1)])


def test_a_process_that_was_killed_takes_along_what_it_counted_last() -> None:
    late = [40, 41, 55, 80]
    one = [Sample(1, 1.0, 10, 0), Sample(1, 2.0, 50, 2)]  # killed at 60, or at 70
    for counted in (1, 2):
        two = [Sample(2, 5.0, 70, counted - 1), *[Sample(2, at, 90, counted) for at in (6.0, 7.0)]]
        assert not uncounted(late, [*one, *two])
    assert uncounted(late, [*one, *[Sample(2, at, 90, 3) for at in (6.0, 7.0)]])


def test_what_needs_a_topology_of_its_own_is_done_in_no_other() -> None:
    for flavour in FLAVOURS:
        acts = script(Plan(seed=1, faults=300, flavour=flavour))
        made = {kind for act in acts for kind in act.kinds}
        assert ({"starve", "power"} <= made) == (flavour == "tight")
        assert ("certificate" in made) == (flavour == "tls")
        for only, some in (
            ("clocks", {"clock", "clock away"}),
            ("paths", {"new path", "wider path", "path away", "direct cut"}),
        ):
            assert made & some == (some if flavour == only else set())
        assert {"peer away", "pipelined", "subscriptions", "mute readers", "strangers"} <= made


def test_every_kind_can_be_made() -> None:
    assert {kind for group in GROUPS.values() for kind in group} == set(FAULTS)
