"""Who calls, and which channels that caller may use."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from linkd.api.refusals import Refusal
from linkd.core.channels import Patterns, check_channel, check_patterns, is_channel, is_pattern
from linkd.errors import ChannelRefused
from linkd.log.engine import Consumer, Owned
from linkd.status import Event

DEFAULT_CHANNEL = "default"
"""Where a client of `/ws` publishes that names no channel, and for which none is set."""


class Caller:
    """Who makes a call.

    Args:
        name: A key's name, `socket`, or `anyone` where no key is required: the owner of the
            consumers, producers and ids that it names.
        publish: Sets of patterns that a channel must match, each, to be published on.
        subscribe: Sets of patterns that must cover, each, what is read.
        operator: It may act on links, consumers and the log (the socket, a key for `>`).
        mark: Changes when the key's secret does.
        channel: Where it publishes on `/ws` without naming a channel; None: nothing is set.

    Attributes:
        narrowing: The patterns that it was narrowed to, one after the other.
    """

    __slots__ = (
        "_covered",
        "channel",
        "mark",
        "name",
        "narrowing",
        "operator",
        "publish",
        "subscribe",
    )

    def __init__(
        self,
        name: str,
        publish: tuple[Patterns, ...] = (),
        subscribe: tuple[Patterns, ...] = (),
        operator: bool = True,
        mark: bytes = b"",
        channel: str | None = None,
    ) -> None:
        self.name = name
        self.publish = publish
        self.subscribe = subscribe
        self.operator = operator
        self.mark = mark
        self.channel = channel
        self.narrowing: tuple[str, ...] = ()
        self._covered: dict[str, bool] = {}

    def narrowed(self, pattern: str) -> Caller:
        """Return the caller with no right beyond `pattern`."""
        only = (Patterns((pattern,)),)
        narrow = Caller(
            self.name, self.publish + only, self.subscribe + only, False, self.mark, self.channel
        )
        narrow.narrowing = (*self.narrowing, pattern)
        return narrow

    def default_channels(self, setting: str | None) -> list[str]:
        """Return where it may publish on `/ws` without naming a channel, the best first.

        The one that it was narrowed to, the key's, the node's `setting`, one that the key's rights
        name, `default`. Whether it has a right to it is not looked at.
        """
        named = [
            each for patterns in self.publish for each in patterns.patterns if is_channel(each)
        ]
        wanted = [*reversed(self.narrowing), self.channel, setting, *named, DEFAULT_CHANNEL]
        return [each for each in wanted if each is not None and is_channel(each)]

    def check_publish(self, channel: str) -> str:
        """Return `channel`; raise Refusal where it is no channel, or not one to publish on."""
        try:
            check_channel(channel)  # before it is matched: it may have millions of words
        except ChannelRefused as error:
            raise Refusal("malformed", str(error)) from None
        if not all(patterns.match(channel) for patterns in self.publish):
            raise Refusal("channel-refused", f"{self.name} may not publish on {channel}")
        return channel

    def check_subscribe(self, pattern: str) -> str:
        """Return `pattern`; raise Refusal where it is none, or reaches beyond what may be read."""
        covered = self._covered.get(pattern)
        if covered is None:
            if not is_pattern(pattern):
                raise Refusal(
                    "malformed",
                    f"{pattern[:80]!r} is no channel or pattern: expected dot-separated words,"
                    " * for one word, > last for the rest",
                )
            covered = all(covers(patterns.patterns, pattern) for patterns in self.subscribe)
            if len(self._covered) > 1000:
                self._covered.clear()
            self._covered[pattern] = covered
        if not covered:
            raise Refusal("channel-refused", f"{self.name} may not read {pattern}")
        return pattern

    def key(self, owner: str | None, name: str) -> Owned:
        """Return whose consumer a call means; raise Refusal where the caller may not name it."""
        if owner is None or owner == self.name:
            return (self.name, name)
        if not self.operator:
            raise Refusal("not-found", f"there is no consumer {name}")
        return (owner, name)

    def sees(self, consumer: Consumer) -> bool:
        """Return whether the caller may know of a consumer and act on it.

        One of its own, or any where it is an operator. A caller that was narrowed sees only what
        reads nothing beyond its rights.
        """
        if self.operator:
            return True
        return self.name == consumer.owner and (
            not self.narrowing or self.may_read(consumer.patterns)
        )

    @property
    def sees_names_of(self) -> str | None:
        """Whose lasting names it may see in status, events and metrics; None: everybody's."""
        return None if self.operator else "" if self.narrowing else self.name

    def hears(self, event: Event) -> bool:
        """Return whether the caller may hear of a change."""
        return event.owner is None or self.sees_names_of in (None, event.owner)

    def may_read(self, patterns: Iterable[str]) -> bool:
        """Return whether the caller may read all that the patterns select."""
        return all(
            covers(allowed.patterns, pattern) for allowed in self.subscribe for pattern in patterns
        )

    def check_patterns(self, patterns: Sequence[str]) -> None:
        """Raise Refusal where patterns cost too much, or one reaches beyond what may be read."""
        try:
            check_patterns(patterns)
        except ChannelRefused as error:
            raise Refusal("malformed", str(error)) from None
        for pattern in patterns:
            self.check_subscribe(pattern)

    def check_operator(self) -> None:
        """Raise Refusal unless the caller may act on links, consumers and the log."""
        if not self.operator:
            raise Refusal("forbidden", f"{self.name} may not act on links, consumers or the log")


def covers(allowed: Iterable[str], pattern: str) -> bool:
    """Tell whether one of the allowed patterns selects every channel that `pattern` selects."""
    return any(_covers(one.split("."), pattern.split(".")) for one in allowed)


def _covers(allowed: list[str], wanted: list[str]) -> bool:
    """Compare word by word."""
    for place, word in enumerate(allowed):
        if word == ">":
            return len(wanted) > place
        if place >= len(wanted) or wanted[place] == ">":
            return False
        if word not in ("*", wanted[place]):
            return False
    return len(allowed) == len(wanted)


SOCKET = Caller("socket")
"""Who calls over the unix socket: file permissions have let it in."""

ANYONE = Caller("anyone")
"""Who calls over loopback where no key is required."""

STRANGER = Caller("stranger", (Patterns(()),), (Patterns(()),), False)
"""Who shows no key where one is required."""
