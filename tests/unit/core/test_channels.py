"""Names of channels, and the patterns that select them."""

from __future__ import annotations

import pytest

from linkd.core.channels import MAX_CHANNEL_BYTES, Patterns, check_channel, is_pattern
from linkd.errors import ChannelRefused


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


def test_a_flood_of_names_is_not_remembered_for_ever() -> None:
    patterns = Patterns(("a.*",))
    for number in range(10_000):
        assert patterns.match(f"a.{number}")
        assert not patterns.match(f"b.{number}")
    assert len(patterns._known) <= 4096
