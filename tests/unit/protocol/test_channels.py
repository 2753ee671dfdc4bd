"""Names of channels, and the patterns that select them."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linkd.errors import ChannelRefused
from linkd.protocol.channels import (
    MAX_CHANNEL_BYTES,
    MAX_PAIRS,
    REMEMBERED,
    PatternIndex,
    Patterns,
    check_channel,
    check_patterns,
    is_pattern,
    may_overlap,
)


@pytest.mark.parametrize("name", ["orders", "a.b.c", "A-1_x.9", "x" * MAX_CHANNEL_BYTES])
def test_a_name_of_words_is_one(name: str) -> None:
    assert check_channel(name) == name
    assert is_pattern(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "a.",
        ".a",
        "a..b",
        "a b",
        "a*",
        "a.*",
        ">",
        "ä",
        "a\n",
        "x" * (MAX_CHANNEL_BYTES + 1),
    ],
)
def test_anything_else_is_refused_and_named_in_short(name: str) -> None:
    with pytest.raises(ChannelRefused, match="is no channel") as caught:
        check_channel(name)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("*", True),
        (">", True),
        ("a.*.b", True),
        ("a.>", True),
        ("*.>", True),
        (">.a", False),
        ("a.>.b", False),
        ("a*", False),
        ("a.", False),
        ("", False),
        ("a\n", False),
        ("*" + ".a" * 127, True),
        ("*.a" + ".a" * 127, False),
    ],
)
def test_patterns_are_told_from_rubbish(text: str, is_one: bool) -> None:
    assert is_pattern(text) is is_one


@pytest.mark.parametrize(
    ("pattern", "takes", "leaves"),
    [
        ("a", ["a"], ["b", "a.a", "aa"]),
        ("a.*", ["a.b"], ["a", "a.b.c", "b.a"]),
        ("*", ["a", "b-1"], ["a.b"]),
        ("a.>", ["a.b", "a.b.c"], ["a", "ab.c"]),
        (">", ["a", "a.b.c"], []),
        ("*.c.>", ["a.c.d"], ["a.c", "c.d"]),
        ("a.b", ["a.b"], ["a-b", "axb"]),
    ],
)
def test_a_star_is_one_word_and_an_arrow_the_rest(
    pattern: str, takes: list[str], leaves: list[str]
) -> None:
    patterns = Patterns((pattern,))
    for _ in range(2):
        assert all(map(patterns.match, takes))
        assert not any(map(patterns.match, leaves))


def test_no_pattern_takes_nothing_and_several_take_what_any_takes() -> None:
    assert not Patterns(()).match("a")
    assert [Patterns(("a", "b.*")).match(each) for each in ("a", "b.x", "c")] == [True, True, False]


def test_equal_patterns_are_equal() -> None:
    assert Patterns(("a", "b")) == Patterns(["a", "b"])
    assert hash(Patterns(("a", "b"))) == hash(Patterns(["a", "b"]))
    assert Patterns(("a",)) != Patterns(("b",))
    assert Patterns(("a",)) != ("a",)


def test_what_is_no_name_is_matched_by_no_pattern() -> None:
    for name in ("", "a.", "a..b", "a b", "ä", "a.*", ">"):
        assert not any(Patterns((one,)).match(name) for one in (">", "*", "*.*", "a.>", "a"))


@pytest.mark.parametrize(
    ("some", "others", "expected"),
    [
        (["a"], ["a"], True),
        (["a"], ["b"], False),
        (["a.b"], ["a"], False),
        (["a.>"], ["a"], False),
        (["a.>"], ["a.b.c"], True),
        (["a.*"], ["*.b"], True),
        (["a.*"], ["*.b.c"], False),
        (["*.x"], ["a.>"], True),
        (["b", "new.>"], ["a", ">"], True),
        (["b", "new.>"], ["a", "other"], False),
        ([], [">"], False),
        (["a"], [], False),
        (["a"] * (MAX_PAIRS + 1), ["b"], True),
    ],
)
def test_two_sets_of_patterns_overlap_where_a_channel_fits_both(
    some: list[str], others: list[str], expected: bool
) -> None:
    assert may_overlap(some, others) is expected
    assert may_overlap(others, some) is expected


@pytest.mark.timing
def test_no_pattern_makes_matching_slow() -> None:
    """A regular expression of these took 3.3 s to compile; the trie takes a few milliseconds."""
    many = [f"a.0-{n}" + ".*" * ((255 - len(f"a.0-{n}")) // 2) for n in range(1024)]
    began = time.process_time()
    patterns = Patterns(many)
    assert patterns.match("a.0-7" + ".x" * 125)
    assert not patterns.match("a.0-7" + ".x" * 124)
    assert time.process_time() - began < 1.5


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (("a.*." + "b." * 14 + "c",), "at most 16 words"),
        (("ab.>",) * 2049, "at most 8192 bytes"),
        (("a", "a..b"), "no channel or pattern"),
    ],
)
def test_costly_patterns_are_refused_before_they_are_built(
    patterns: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ChannelRefused, match=message):
        check_patterns(patterns)


def test_cheap_patterns_are_accepted_up_to_the_bound() -> None:
    check_patterns(("a.*." + "b." * 13 + "c", "a." * 100 + "b", ">"))
    check_patterns(("ab.>",) * 2048)
    with pytest.raises(ChannelRefused):
        check_patterns(("ab.>",) * 2049)
    check_patterns(("ab.>",) * 2049, most_bytes=10_000)


words = st.sampled_from(["a", "b", "c"])
channels = st.lists(words, min_size=1, max_size=4).map(".".join)
some_patterns = st.builds(
    lambda middle, end: ".".join([*middle, end]),
    st.lists(st.sampled_from(["a", "b", "*"]), max_size=3),
    st.sampled_from(["a", "b", "*", ">"]),
)


def selects(pattern: str, channel: str) -> bool:
    """Return whether a pattern selects a channel, word by word."""
    wanted, there = pattern.split("."), channel.split(".")
    if wanted[-1] == ">":
        wanted, rest = wanted[:-1], there[len(wanted) - 1 :]
        there = there[: len(wanted)]
        if not rest:
            return False
    return len(wanted) == len(there) and all(
        one in ("*", other) for one, other in zip(wanted, there, strict=True)
    )


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 3), st.lists(some_patterns, max_size=3)),
        max_size=12,
    ),
    channels,
)
def test_an_index_that_is_changed_in_place_is_as_if_it_were_built_again(
    changes: list[tuple[bool, int, list[str]]], channel: str
) -> None:
    index: PatternIndex[int] = PatternIndex()
    wanted: dict[int, set[str]] = {}
    for adds, key, patterns in changes:
        if adds:
            index.add(patterns, key)
            wanted.setdefault(key, set()).update(patterns)
        else:
            index.remove(patterns, key)
            wanted.setdefault(key, set()).difference_update(patterns)
    expected = {k for k, some in wanted.items() if any(selects(one, channel) for one in some)}
    assert set(index.match(channel)) == expected
    assert bool(index) is any(wanted.values())
    for key, some in wanted.items():
        assert Patterns(some).match(channel) is (key in expected)
    for key, some in wanted.items():
        index.remove(some, key)
    assert not index
    assert not index.match(channel)


def test_remembered_answers_are_bounded_and_stay_right() -> None:
    patterns = Patterns(["a.>", "b"])
    for _ in range(2):
        for number in range(2 * REMEMBERED):
            assert patterns.match(f"a.{number}")
            assert not patterns.match(f"c.{number}")
    assert len(patterns._known) <= REMEMBERED
    assert not patterns.match("a." + "b" * 300)  # no channel
    index: PatternIndex[int] = PatternIndex()
    index.add(("a.>",), 1)
    assert not index.match("a..b")
    assert max(map(len, patterns._known)) <= MAX_CHANNEL_BYTES
