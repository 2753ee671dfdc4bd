"""How a bounded table is shared among owners."""

from __future__ import annotations

import pytest

from linkd.log.origins import FairSet, Usage


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
    assert len(keys.owners()) == len(keys)


def test_a_key_is_removed_once() -> None:
    keys = FairSet(10)
    keys.add("a", 1)
    keys.add("a", 2)
    keys.pop(1)
    keys.pop(1)
    assert 1 not in keys
    assert 2 in keys
    keys.pop(2)
    assert not keys.owners()
