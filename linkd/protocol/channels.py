"""Channel names, and the patterns that select them."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Sequence
from typing import Generic, TypeVar

from linkd.errors import ChannelRefused

MAX_CHANNEL_BYTES = 255
MAX_WANTS = 1024
MAX_WANTS_BYTES = 24_576
"""What a hello may ask for: the rest of its bytes is for the epochs of two logs."""

MAX_PATTERNS_BYTES = 8192
"""The patterns of one subscription are together no longer."""

MAX_WILDCARD_WORDS = 16
"""Words of a pattern with `*`: such patterns can make one channel visit 2 to this power nodes."""

Key = TypeVar("Key", bound=Hashable)

_WORD = r"[A-Za-z0-9_-]+"
CHANNEL_PATTERN = rf"^{_WORD}(\.{_WORD})*$"
CHANNELS_PATTERN = rf"^(({_WORD}|\*)\.)*({_WORD}|\*|>)$"
_NAME = re.compile(CHANNEL_PATTERN)
_PATTERN = re.compile(CHANNELS_PATTERN)


def check_channel(name: str) -> str:
    """Return `name` if it names a channel.

    Raises:
        ChannelRefused: It is not dot-separated words of letters, digits, `_` and `-`, or is longer
            than 255 bytes.
    """
    if not is_channel(name):
        raise ChannelRefused(
            f"{name[:80]!r} is no channel: expected dot-separated words of letters, digits, _, -,"
            f" at most {MAX_CHANNEL_BYTES} bytes"
        )
    return name


def is_channel(text: str) -> bool:
    """Return whether `text` names a channel."""
    return len(text) <= MAX_CHANNEL_BYTES and _NAME.fullmatch(text) is not None


def is_pattern(text: str) -> bool:
    """Return whether `text` is a pattern: words, `*` for one word, `>` last for the rest."""
    return len(text) <= MAX_CHANNEL_BYTES and _PATTERN.fullmatch(text) is not None


def check_patterns(patterns: Sequence[str], most_bytes: int = MAX_PATTERNS_BYTES) -> None:
    """Check that a set of patterns is cheap to hold and to match, before anything is built of it.

    Args:
        patterns: Of one subscription, or of one peer's hello.
        most_bytes: How long they may be together.

    Raises:
        ChannelRefused: One is no pattern, they are too long, or one has a `*` and too many words.
    """
    size = sum(map(len, patterns))
    if size > most_bytes:
        raise ChannelRefused(f"expected at most {most_bytes} bytes of patterns, got {size}")
    for pattern in patterns:
        if not is_pattern(pattern):
            raise ChannelRefused(
                f"{pattern[:80]!r} is no channel or pattern: expected dot-separated words,"
                " * for one word, > last for the rest"
            )
        if has_too_many_words(pattern):
            raise ChannelRefused(
                f"{pattern[:80]!r}: expected at most {MAX_WILDCARD_WORDS} words in a pattern with *"
            )


MAX_PAIRS = 4096
"""Pairs of patterns that are compared: a few milliseconds."""


def may_overlap(some: Sequence[str], others: Sequence[str]) -> bool:
    """Return whether a channel may exist that both sets of patterns select.

    With more than MAX_PAIRS pairs the answer is yes, unseen.
    """
    if len(some) * len(others) > MAX_PAIRS:
        return True
    split = [other.split(".") for other in others]
    return any(_overlaps(one.split("."), other) for one in some for other in split)


def _overlaps(one: list[str], other: list[str]) -> bool:
    for word, word_of_other in zip(one, other, strict=False):
        pair = (word, word_of_other)
        if ">" in pair:
            return True
        if word != word_of_other and "*" not in pair:
            return False
    return len(one) == len(other)


REMEMBERED = 512
"""Answers that one set of patterns remembers, of valid channels: at most about 150 kB."""


class Patterns:
    """A set of patterns, asked often about few channels: it remembers its newest answers.

    A new match costs the words of the channel.

    Args:
        patterns: Valid patterns; none matches nothing.
    """

    __slots__ = ("_exact", "_index", "_known", "_takes_all", "patterns")

    def __init__(self, patterns: Iterable[str]) -> None:
        self.patterns = tuple(patterns)
        self._known: dict[str, bool] = {}
        self._takes_all = ">" in self.patterns
        self._exact = frozenset(one for one in self.patterns if not _has_wildcard(one))
        self._index: PatternIndex[None] | None = None
        if not self._takes_all and len(self._exact) < len(set(self.patterns)):
            self._index = PatternIndex()
            self._index.add((one for one in self.patterns if _has_wildcard(one)), None)

    def match(self, channel: str) -> bool:
        """Return whether any of the patterns selects `channel`; none selects a malformed name."""
        answer = self._known.get(channel)
        if answer is None:
            answer = self._find(channel)
            if len(channel) <= MAX_CHANNEL_BYTES:
                if len(self._known) >= REMEMBERED:
                    self._known.clear()
                self._known[channel] = answer
        return answer

    def _find(self, channel: str) -> bool:
        if channel in self._exact:
            return True
        if self._takes_all or self._index is not None:
            return is_channel(channel) and (self._index is None or bool(self._index.match(channel)))
        return False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Patterns) and self.patterns == other.patterns

    def __hash__(self) -> int:
        return hash(self.patterns)


class PatternIndex(Generic[Key]):
    """Finds who wants a channel: a trie of the words of all patterns, changed in place.

    Adding and removing cost the words of the patterns. A match visits only the nodes that fit the
    channel: at most one for each word where no pattern has a `*`.
    """

    __slots__ = ("_root",)

    def __init__(self) -> None:
        self._root: _Node[Key] = _Node()

    def add(self, patterns: Iterable[str], key: Key) -> None:
        """Note that `key` wants what these patterns select; a repeated pattern counts once."""
        for pattern in patterns:
            node = self._root
            words = pattern.split(".")
            takes_rest = words[-1] == ">"
            for word in words[:-1] if takes_rest else words:
                below = node.below.get(word)
                if below is None:
                    below = node.below[word] = _Node()
                node = below
            keys = node.rest if takes_rest else node.here
            if keys is None:
                keys = {}
                if takes_rest:
                    node.rest = keys
                else:
                    node.here = keys
            keys[key] = None

    def remove(self, patterns: Iterable[str], key: Key) -> None:
        """Forget that `key` wants these patterns; what it never wanted is ignored."""
        for pattern in patterns:
            words = pattern.split(".")
            takes_rest = words[-1] == ">"
            path = [self._root]
            for word in words[:-1] if takes_rest else words:
                below = path[-1].below.get(word)
                if below is None:
                    break
                path.append(below)
            else:
                path[-1].discard(key, takes_rest)
                while len(path) > 1 and path[-1].is_empty():
                    path.pop()
                    del path[-1].below[words[len(path) - 1]]

    def match(self, channel: str) -> dict[Key, None]:
        """Return who wants `channel`; nobody wants what is no channel's name."""
        found: dict[Key, None] = {}
        if _NAME.fullmatch(channel) is None:
            return found
        nodes = [self._root]
        for word in channel.split("."):
            following = []
            for node in nodes:
                if node.rest:
                    found.update(node.rest)
                if node.below:
                    below = node.below.get(word)
                    if below is not None:
                        following.append(below)
                    below = node.below.get("*")
                    if below is not None:
                        following.append(below)
            nodes = following
            if not nodes:
                return found
        for node in nodes:
            if node.here:
                found.update(node.here)
        return found

    def __bool__(self) -> bool:
        """Whether anybody wants anything."""
        return not self._root.is_empty()


class _Node(Generic[Key]):
    """One word of patterns: those that end here, those that take the rest, the words below."""

    __slots__ = ("below", "here", "rest")

    def __init__(self) -> None:
        self.below: dict[str, _Node[Key]] = {}
        self.here: dict[Key, None] | None = None
        self.rest: dict[Key, None] | None = None

    def discard(self, key: Key, takes_rest: bool) -> None:
        """Forget a key of a pattern that ends here."""
        keys = self.rest if takes_rest else self.here
        if keys is not None:
            keys.pop(key, None)

    def is_empty(self) -> bool:
        """Return whether no pattern needs this node."""
        return not (self.below or self.here or self.rest)


def has_too_many_words(pattern: str) -> bool:
    """Return whether a pattern has a `*` and more words than such a pattern may."""
    return "*" in pattern and pattern.count(".") >= MAX_WILDCARD_WORDS


def _has_wildcard(pattern: str) -> bool:
    return "*" in pattern or pattern.endswith(">")
