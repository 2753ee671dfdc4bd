"""Channel names and the patterns that select them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from linkd.errors import ChannelRefused

MAX_CHANNEL_BYTES = 255

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
    if len(name) > MAX_CHANNEL_BYTES or not _NAME.fullmatch(name):
        raise ChannelRefused(
            f"{name[:80]!r} is no channel: expected dot-separated words of letters, digits, _, -,"
            f" at most {MAX_CHANNEL_BYTES} bytes"
        )
    return name


def is_pattern(text: str) -> bool:
    """Tell whether `text` is a pattern: words, `*` for one word, `>` last for the rest."""
    return len(text) <= MAX_CHANNEL_BYTES and _PATTERN.fullmatch(text) is not None


class Patterns:
    """A set of patterns, asked often about few channels: the answers are remembered.

    Args:
        patterns: Valid patterns; none matches nothing.
    """

    __slots__ = ("_known", "_regex", "patterns")

    _REMEMBERED = 4096

    def __init__(self, patterns: Iterable[str]) -> None:
        self.patterns = tuple(patterns)
        self._known: dict[str, bool] = {}
        self._regex = re.compile("|".join(map(_to_regex, self.patterns)) or r"(?!)")

    def match(self, channel: str) -> bool:
        """Tell whether any of the patterns selects `channel`."""
        answer = self._known.get(channel)
        if answer is None:
            if len(self._known) >= self._REMEMBERED:
                self._known.clear()
            answer = self._known[channel] = self._regex.fullmatch(channel) is not None
        return answer

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Patterns) and self.patterns == other.patterns

    def __hash__(self) -> int:
        return hash(self.patterns)


def _to_regex(pattern: str) -> str:
    """Translate one pattern."""
    words = pattern.split(".")
    parts = [_WORD if word == "*" else re.escape(word) for word in words if word != ">"]
    head = r"\.".join(parts)
    if words[-1] != ">":
        return head
    rest = rf"{_WORD}(\.{_WORD})*"
    return rf"{head}\.{rest}" if parts else rest
