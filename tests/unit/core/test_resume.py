"""Where two nodes go on: at the end of the newest epoch that both know, exactly."""

from __future__ import annotations

import pytest

from linkd.core.session import find_resume_point, lost_at_sender, outdated, repeats, truncate
from linkd.protocol.peer import Cursor, EpochEnd, EpochStart, Generation, Hello


def starts(*firsts: tuple[str, int]) -> tuple[EpochStart, ...]:
    return tuple(EpochStart(epoch, first) for epoch, first in firsts)


def cursor(*ends: tuple[str, int], committed: int = 0) -> Cursor:
    return Cursor("log", tuple(EpochEnd(*end) for end in ends), committed)


@pytest.mark.parametrize(
    ("epochs", "next", "known", "agreed", "lost"),
    [
        # Nothing has happened: where the cursor stands.
        ((("a", 1), ("b", 10)), 20, (("b", 15),), ("b", 15), None),
        # The sender restarted since.
        ((("a", 1), ("b", 10), ("c", 20)), 30, (("a", 10), ("b", 15)), ("b", 15), None),
        # Put back to its first epoch, and started anew.
        ((("a", 1), ("c", 8)), 12, (("a", 10), ("b", 15)), ("a", 8), (8, 15)),
        # Put back; the end of `a` was skipped in one step with the beginning of `b`.
        ((("a", 1), ("c", 8)), 12, (("a", 5), ("b", 15)), ("a", 8), (8, 15)),
        # Damaged, and opened far above: what is readable comes after where the cursor stands.
        ((("a", 1), ("c", 9000)), 9100, (("a", 5), ("b", 15)), ("a", 15), None),
        # Nothing in common.
        ((("c", 9000),), 9100, (("a", 5), ("b", 15)), None, None),
    ],
)
def test_both_ends_agree_on_the_last_common_epoch(epochs, next, known, agreed, lost) -> None:
    its = cursor(*known, committed=4)
    found = find_resume_point(starts(*epochs), next, its)
    assert found == (None if agreed is None else EpochEnd(*agreed))
    if found is not None:
        assert lost_at_sender(its, found) == lost
        kept = truncate(its, found)
        assert kept.epochs[-1] == found
        assert kept.committed == 4


def test_truncate_leaves_alone_what_is_not_beyond() -> None:
    its = cursor(("a", 10), ("b", 15), committed=15)
    assert truncate(its, EpochEnd("b", 15)) is its
    assert truncate(its, EpochEnd("a", 8)) == cursor(("a", 8), committed=8)
    older = cursor(("a", 10), ("b", 15), ("c", 20), committed=3)
    assert truncate(older, EpochEnd("b", 12)) == cursor(("a", 10), ("b", 12), committed=3)


def _hello(next: int = 10, cursor: Cursor | None = None, *epochs: EpochStart) -> Hello:
    return Hello(
        2,
        "edge",
        "test",
        Generation("b", 1),
        "edgelog",
        epochs or (EpochStart("e1", 1), EpochStart("e2", 5)),
        next,
        cursor,
        (">",),
        5.0,
    )


@pytest.mark.parametrize(
    ("cursor", "old"),
    [
        (None, False),
        (Cursor("edgelog", (EpochEnd("e2", 10),), 10), False),
        (Cursor("edgelog", (EpochEnd("e2", 11),), 10), True),
        (Cursor("edgelog", (EpochEnd("e1", 11),), 10), False),  # a disk that was put back
        (Cursor("another", (EpochEnd("e2", 11),), 10), False),
    ],
)
def test_a_hello_is_outdated_where_its_own_run_has_sent_more(
    cursor: Cursor | None, old: bool
) -> None:
    assert outdated(_hello(), cursor) == old
    assert repeats(_hello(), _hello(12), _hello(7, cursor)) == old


def test_a_dialer_repeats_its_hello_where_what_it_said_has_changed() -> None:
    theirs = _hello(7)
    here = Cursor("hublog", (EpochEnd("h", 4),), 2)
    assert not repeats(_hello(), _hello(), theirs)
    assert not repeats(_hello(10, here), _hello(10, Cursor("hublog", here.epochs, 4)), theirs)
    assert repeats(_hello(10, here), _hello(10, Cursor("hublog", (EpochEnd("h", 5),), 2)), theirs)
    assert repeats(_hello(), _hello(10, here), theirs)
    assert repeats(_hello(), _hello(10, None, EpochStart("e1", 1)), theirs)
