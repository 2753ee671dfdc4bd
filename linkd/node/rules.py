"""How messages of a channel are treated, as `[[channel]]` says."""

from __future__ import annotations

from collections.abc import Sequence

from linkd.config import ChannelSettings
from linkd.core.channels import Patterns

_CHANNELS_KNOWN = 100_000


class Rules:
    """The rules in force; each channel is matched once.

    Args:
        settings: As configured: the first that matches counts.
    """

    def __init__(self, settings: Sequence[ChannelSettings]) -> None:
        self._rules = [(Patterns((rule.name,)), rule) for rule in settings]
        self._known: dict[str, ChannelSettings | None] = {}

    def of(self, channel: str) -> ChannelSettings | None:
        """Return how messages of `channel` are treated; None: durable without ttl."""
        try:
            return self._known[channel]
        except KeyError:
            pass
        if len(self._known) >= _CHANNELS_KNOWN:
            self._known.clear()
        found = next((rule for patterns, rule in self._rules if patterns.match(channel)), None)
        self._known[channel] = found
        return found
