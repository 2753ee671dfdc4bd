"""How a bounded table is shared among owners. Which records of other logs are here: intervals,
their bounds, and what is forgotten.
"""

from __future__ import annotations

import pytest

from linkd.log import origins
from linkd.log.origins import (
    FOLD_SECONDS,
    MAX_INTERVALS,
    FairSet,
    KnownLog,
    Origins,
    OriginsSnapshot,
    Undo,
    Usage,
    Verdict,
)
from linkd.log.state import take_back
from linkd.protocol.records import Origin
from tests.support.logs import origins_again, origins_in_one


def test_the_owner_with_the_most_is_the_largest() -> None:
    usage = Usage(10_000)
    for owner, entries in (("a", 30), ("b", 50), ("c", 40)):
        usage.add(owner, entries)
    assert (usage.total, usage.largest()) == (120, "b")
    usage.add("b", -45)
    assert (usage.total, usage.largest()) == (75, "c")


def test_an_owner_without_a_large_part_is_found_too() -> None:
    usage = Usage(1 << 20)
    with pytest.raises(ValueError, match="empty"):
        usage.largest()
    for number in range(3000):
        usage.add(f"o{number}", 5 if number == 700 else 3)
    assert usage.largest() == "o700"
    usage.add("o1", 1022)
    assert usage.largest() == "o1"
    usage.add("o1", -1022)
    assert usage.largest() == "o700"


def test_an_owner_whose_entries_have_all_gone_is_forgotten() -> None:
    usage = Usage(10)
    usage.add("a", 3)
    usage.add("a", -3)
    usage.add("b", 1)
    assert (usage.total, usage.largest()) == (1, "b")


def test_a_set_forgets_the_oldest_keys_of_the_owner_with_the_most() -> None:
    keys = FairSet(100)
    for number in range(10):
        keys.add("quiet", number)
    for number in range(1000):
        keys.add("loud", ("key", number))
        keys.add("loud", ("key", number))
        assert len(keys) <= 100
    assert all(number in keys for number in range(10))
    assert ("key", 999) in keys
    assert ("key", 1) not in keys
    assert len(keys.owners) == len(keys)


def test_a_key_is_removed_once() -> None:
    keys = FairSet(10)
    keys.add("a", 1)
    keys.add("a", 2)
    keys.pop(1)
    keys.pop(1)
    assert 1 not in keys
    assert 2 in keys
    keys.pop(2)
    assert not keys.owners


DAY = 86_400.0


def admit(
    known: Origins,
    first: int,
    count: int = 1,
    after: int | None = None,
    *,
    log: str = "far",
    epoch: str = "e",
    channel: str = "c",
    stamp: float = 0.0,
    node: str = "",
) -> Verdict | None:
    """Admit a batch; its node is named after its log unless `node` is given."""
    origin = Origin(node or log, log, epoch, first, after)
    return known.admit(origin, channel, count, stamp, [])


def run_for(known: Origins, seconds: float, **key: str) -> None:
    """Let the node run, with a commit every half hour."""
    begin = known._stamp or 0.0
    for half in range(1, int(seconds // 1800) + 1):
        admit(known, 1, after=0, log="clock", stamp=begin + 1800.0 * half, **key)


def test_batches_that_follow_each_other_are_one_interval() -> None:
    known = Origins()
    assert admit(known, 5, 2, 0) is None
    assert admit(known, 20, 1, 6) is None
    assert known.intervals("far", "e", "c") == (1, 20)
    assert known.intervals("far", "e", "other") == ()
    assert known.intervals("far", "other", "c") == ()
    assert known.intervals("other", "e", "c") == ()
    assert known.entries == 2


def test_what_fills_a_hole_later_joins_its_neighbours_and_is_late() -> None:
    known = Origins()
    admit(known, 1, 1, 0)
    assert admit(known, 9, 1, 5) is None
    assert known.intervals("far", "e", "c") == (1, 1, 6, 9)
    assert admit(known, 5, 1, 1) == Verdict(((0, 1),), late=1)
    assert known.intervals("far", "e", "c") == (1, 9)


def test_a_predecessor_that_is_not_known_claims_nothing() -> None:
    for after in (None, 9, 50):
        known = Origins()
        admit(known, 1, 1, 0)
        admit(known, 9, 2, after)
        assert known.intervals("far", "e", "c") == (1, 1, 9, 10)
        assert admit(known, 9, 1, 1) == Verdict(())
        assert known.intervals("far", "e", "c") == (1, 10)


def test_only_what_is_inside_is_left_out() -> None:
    known = Origins()
    admit(known, 3, 2)
    admit(known, 8, 2)
    assert admit(known, 1, 12) == Verdict(((0, 2), (4, 3), (9, 3)), late=5)
    assert known.intervals("far", "e", "c") == (1, 12)
    assert admit(known, 2, 5) == Verdict(())


def test_an_older_epoch_s_record_is_late_where_a_newer_one_has_the_channel() -> None:
    known = Origins()
    admit(known, 1, epoch="a")
    admit(known, 2, epoch="b")
    assert admit(known, 3, epoch="a", channel="other") is None
    admit(known, 9, epoch="b", channel="other")
    assert admit(known, 4, 2, epoch="a", channel="other") == Verdict(((0, 2),), late=2)
    assert admit(known, 3, 4, epoch="a", channel="other") == Verdict(((3, 1),), late=1)
    assert admit(known, 3, epoch="a", channel="other") == Verdict(())


def test_an_unknown_epoch_is_one_more() -> None:
    known = Origins()
    for number in range(66):
        assert admit(known, number + 1, epoch=f"e{number}") is None
    for number in range(66):
        assert admit(known, number + 1, epoch=f"e{number}") == Verdict(())
    assert [admit(known, 67 + n, epoch="e65") for n in range(10)] == [None] * 10


def test_beyond_64_intervals_the_lowest_is_forgotten_and_what_comes_there_is_unproven() -> None:
    known = Origins()
    for number in range(MAX_INTERVALS + 1):
        assert admit(known, 3 * number + 3) is None
    assert len(known.intervals("far", "e", "c")) == 2 * MAX_INTERVALS
    assert admit(known, 3) == Verdict(((0, 1),), is_proven=False, late=1)
    assert admit(known, 4) == Verdict(((0, 1),), late=1)
    assert admit(known, 2, channel="other") is None
    again = origins_again(known)
    assert admit(again, 2) == Verdict(((0, 1),), is_proven=False, late=1)


def test_an_epoch_that_was_left_is_folded_after_14_days_of_running_time() -> None:
    known = Origins()
    admit(known, 1, epoch="old")
    admit(known, 5, epoch="new")
    run_for(known, FOLD_SECONDS)
    assert known.fold(2 * DAY) == 0
    run_for(known, 3600.0)
    assert known.fold(30 * DAY) == 0
    assert known.fold(2 * DAY) == 1
    assert known.fold(2 * DAY) == 0
    for one in (known, origins_again(known)):
        assert admit(one, 1, 3, epoch="old") == Verdict(((0, 3),), is_proven=False)
        assert admit(one, 5, epoch="new") == Verdict(())
        assert one.entries == 4


def test_time_in_which_the_node_was_off_does_not_count() -> None:
    known = Origins()
    admit(known, 1, epoch="old")
    admit(known, 5, epoch="new")
    admit(known, 6, epoch="new", stamp=100 * DAY)
    admit(known, 7, epoch="new", stamp=50 * DAY)
    assert known.running == 3600.0
    assert known.fold(0.0) == 0


UNPROVEN = Verdict(((0, 1),), is_proven=False)


@pytest.mark.parametrize("rotates", ["nothing", "epochs", "logs"])
def test_a_node_that_fills_the_intervals_loses_its_own_and_no_other_node_s(
    monkeypatch: pytest.MonkeyPatch, rotates: str
) -> None:
    monkeypatch.setattr(origins, "MAX_ENTRIES", 20_000)
    known = Origins()
    for number in range(50):
        for place in range(100):
            name, channel = f"edge{number}", f"c{place}"
            assert admit(known, place + 1, after=0, log=name, channel=channel) is None
    for number in range(1, 60_000):
        turn = number // 500
        log = f"hostile{turn}" if rotates == "logs" else "hostile"
        epoch = f"e{turn}" if rotates == "epochs" else "e"
        key = {"log": log, "epoch": epoch, "channel": f"x{number}", "node": "hostile"}
        assert admit(known, number, after=0, **key) is None
        assert known.entries <= 20_000
    for number in range(50):
        for place in range(100):
            key = {"log": f"edge{number}", "channel": f"c{place}"}
            assert admit(known, place + 1, after=0, **key) == Verdict(())
            assert admit(known, 1000 + place, after=place + 1, **key) is None
        assert admit(known, 2000, after=0, log=f"edge{number}", channel="another") is None
    assert admit(known, 1, after=0, channel="c", log="one more") is None
    first = "hostile0" if rotates == "logs" else "hostile"
    epoch = "e0" if rotates == "epochs" else "e"
    assert admit(known, 1, log=first, epoch=epoch, channel="x1", node="hostile") == UNPROVEN


def test_at_the_bound_the_epoch_with_the_lowest_offsets_goes_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(origins, "MAX_ENTRIES", 100)
    known = Origins()
    for number in range(2):
        for channel in range(40):
            admit(known, 100 * number + channel + 1, epoch=f"e{number}", channel=f"c{channel}")
    for channel in range(40, 70):
        assert admit(known, 200 + channel, epoch="e1", channel=f"c{channel}") is None
        assert known.entries <= 100
    passed = Verdict(((0, 1),), is_proven=False, late=1)
    assert admit(known, 1, epoch="e0", channel="c0") == passed
    assert admit(known, 101, epoch="e1", channel="c0") == Verdict(())
    for number in range(100):
        assert admit(known, number + 1, epoch=f"more{number}", log="another") is None
        assert known.entries <= 100
    assert admit(known, 1, epoch="e0", channel="c39") == UNPROVEN
    assert admit(known, 1, epoch="more0", log="another") == UNPROVEN
    assert admit(known, 100, epoch="more99", log="another") == Verdict(())


def test_where_no_other_has_more_the_oldest_channels_of_the_same_log_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(origins, "MAX_ENTRIES", 5)
    known = Origins()
    for number in range(1, 5):
        assert admit(known, number, after=0, channel=f"c{number}") is None
    assert admit(known, 9, after=0, channel="c9") is None
    assert known.entries == 4
    assert admit(known, 9, after=0, channel="c9") == Verdict(())
    assert admit(known, 2, after=0, channel="c2") == UNPROVEN
    assert admit(known, 4, after=0, channel="c4") == Verdict(())


def test_a_bound_that_leaves_no_room_at_all_proves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(origins, "MAX_ENTRIES", 1)
    known = Origins()
    assert admit(known, 1, after=0) == UNPROVEN
    assert admit(known, 1, after=0, channel="d") == UNPROVEN
    assert known.entries == 1


def test_the_epochs_of_a_log_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origins, "MAX_EPOCHS", 3)
    known = Origins()
    for number in range(5):
        assert admit(known, number + 1, epoch=f"e{number}") is None
        run_for(known, 1800.0)
    assert known.entries == 2 + 2 * 3
    assert admit(known, 5, epoch="e4") == Verdict(())
    assert admit(known, 2, epoch="e1") == UNPROVEN
    assert admit(known, 6, epoch="e5") is None


def test_at_the_most_logs_a_node_with_several_loses_its_oldest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(origins, "MAX_LOGS", 3)
    known = Origins()
    assert admit(known, 1, log="one") is None
    assert admit(known, 1, log="two") is None
    for number in range(5):
        assert admit(known, 1, log=f"many{number}", node="many") is None
    assert admit(known, 1, log="many3", node="many") == UNPROVEN
    assert admit(known, 1, log="many4", node="many") == Verdict(())
    assert admit(known, 1, log="one") == admit(known, 1, log="two") == Verdict(())
    assert admit(known, 1, log="three") == UNPROVEN
    assert admit(known, 1, log="three") == Verdict(())


def test_at_the_most_logs_a_new_node_gets_the_room_of_one_with_several(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(origins, "MAX_LOGS", 3)
    known = Origins()
    assert admit(known, 1, log="one") is None
    for number in range(2):
        assert admit(known, 1, log=f"many{number}", node="many") is None
    assert admit(known, 1, log="two") is None
    assert admit(known, 1, log="many0", node="many") == UNPROVEN
    assert admit(known, 1, log="one") == Verdict(())


def test_epochs_that_are_remembered_as_folded_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origins, "MAX_FOLDED", 2)
    known = Origins()
    for number in range(4):
        admit(known, number + 1, epoch=f"e{number}")
    run_for(known, FOLD_SECONDS + 3600.0)
    assert known.fold(0.0) == 3
    assert admit(known, 1, epoch="e0", channel="x") is None
    assert admit(known, 2, epoch="e1") == Verdict(((0, 1),), is_proven=False)


def test_what_did_not_reach_the_disk_is_taken_back() -> None:
    known = Origins()
    admit(known, 1, 2, 0)
    before = origins_in_one(known).logs["far"].epochs["e"].channels
    undo: Undo = []
    known.admit(Origin("far", "far", "e", 3, 2), "c", 1, 0.0, undo)
    known.admit(Origin("far", "far", "e", 9), "c", 1, 0.0, undo)
    known.admit(Origin("far", "far", "e", 4), "new", 1, 0.0, undo)
    known.admit(Origin("far", "other", "e", 4), "new", 1, 0.0, undo)
    take_back(undo)
    assert origins_in_one(known).logs["far"].epochs["e"].channels == before
    assert known.entries == 2
    assert admit(known, 4, channel="new") is None
    assert admit(known, 4, channel="new", log="other") is None


def test_what_the_bound_removed_meanwhile_is_counted_once_when_taken_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(origins, "MAX_ENTRIES", 4)
    known = Origins()
    undo: Undo = []
    for number in range(4):
        known.admit(Origin("far", "far", "e", number + 1, 0), f"c{number}", 1, 0.0, undo)
    known.admit(Origin("far", "far", "new", 9, 0), "c", 1, 0.0, undo)
    assert known.entries <= 4
    for number in range(4):
        known.admit(Origin("far", f"log{number}", "e", 1, 0), "c", 1, 0.0, undo)
    take_back(undo)
    assert known.entries == 0
    assert known.node("far") is None


def test_what_is_taken_back_in_a_removed_epoch_is_not_counted() -> None:
    known = Origins()
    undo: Undo = []
    for number in range(2):
        admit(known, number + 1, epoch=f"e{number}")
    known.admit(Origin("far", "far", "e1", 9, 5), "c", 1, 0.0, undo)
    known.pop(("far", "e1"))
    known.pop(("far", "e1"))
    take_back(undo)
    assert known.entries == 2


def test_a_snapshot_does_not_change_with_what_it_was_taken_of() -> None:
    known = Origins()
    admit(known, 1)
    snapshot = origins_in_one(known)
    restored = origins_again(known)
    admit(known, 2, channel="d")
    admit(restored, 3, channel="d")
    assert list(snapshot.logs["far"].epochs["e"].channels) == ["c"]
    assert (known.entries, restored.entries) == (3, 3)


def test_a_log_s_node_is_known_by_its_records_here() -> None:
    known = Origins()
    admit(known, 1, log="farlog", node="far")
    known.add(OriginsSnapshot({"nameless": KnownLog()}))
    assert known.node("farlog") == "far"
    assert known.node("nameless") is None
    assert known.node("other") is None
    assert origins_again(known).node("farlog") == "far"


def test_a_highest_offset_of_an_older_version_proves_nothing_below_it() -> None:
    known = Origins()
    known.adopt_highest("far", "new", 10, ("old",))
    known.adopt_highest("far", "new", 7, ("old",))
    assert admit(known, 5, epoch="new") == Verdict(((0, 1),), is_proven=False)
    assert admit(known, 11, epoch="new", channel="other") is None
    assert admit(known, 2, epoch="old") == Verdict(((0, 1),), is_proven=False)
    assert admit(known, 5, epoch="new") == Verdict(())
    assert known.entries == 3


def test_an_unproven_batch_is_stored_once_unless_that_was_taken_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(origins, "MAX_DOUBTED", 2)
    known = Origins()
    known._folded.add("far", ("far", "e"))
    undo: Undo = []
    doubt = Verdict(((0, 2),), is_proven=False)
    assert known.admit(Origin("far", "far", "e", 5, None), "c", 2, 0.0, undo) == doubt
    take_back(undo)
    assert admit(known, 5, 2) == doubt
    assert admit(known, 5, 2) == Verdict(())
    assert admit(known, 5, 2, channel="d") == admit(known, 6, 2) == doubt
    assert admit(known, 5, 2) == doubt  # pushed out by two more


def test_a_batch_below_64_intervals_is_stored_once() -> None:
    known = Origins()
    for place in range(MAX_INTERVALS):
        admit(known, 100 + 2 * place)
    assert admit(known, 5) == Verdict(((0, 1),), late=1)
    assert admit(known, 5) == Verdict(())


def test_no_table_of_channels_grows_large_and_an_undo_finds_its_channel_again() -> None:
    known = Origins()
    undo: Undo = []
    names = [f"c{number}" for number in range(20_000)]
    for number, name in enumerate(names, 1):
        assert known.admit(Origin("far", "far", "e", number, 0), name, 1, 1.0, undo) is None
    channels = known._logs["far"].epochs["e"].channels
    assert max(len(share) for share in channels.shares) < 400
    assert sorted(name for name, _ in channels.items()) == sorted(names)
    assert known.intervals("far", "e", "c7") == (1, 8)
    for part in (origins_again(known, 1000), known):
        assert part.entries == 20_001
        assert part.intervals("far", "e", "c19999") == (1, 20_000)
    take_back(undo)
    assert known.entries == 0
    assert list(channels.items()) == []
