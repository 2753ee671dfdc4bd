"""What a log holds is held against what its publisher knows."""

from __future__ import annotations

from tests.campaign.acts import FLAVOURS, Plan, script
from tests.campaign.checker import judge
from tests.campaign.traffic import Ledger


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


def test_what_needs_a_topology_of_its_own_is_done_in_no_other() -> None:
    for flavour in FLAVOURS:
        acts = script(Plan(seed=1, faults=300, flavour=flavour))
        made = {kind for act in acts for kind in act.kinds}
        assert ({"starve", "power"} <= made) == (flavour == "tight")
        assert ("certificate" in made) == (flavour == "tls")
        assert ("clock" in made) == (flavour == "clocks")
