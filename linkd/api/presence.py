"""Who is there on `/ws`, at any node: those with the same channel hear of each other.

Each node announces those at its own door, as volatile messages that go where the channel goes. It
sends changes as they happen, and all it has where a link comes up, where it is asked, and now and
then. What a node knows of others it has from the link that it last heard of them on: when that
falls, they are gone, for the nodes behind it too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, Final, Protocol

import msgspec

from linkd.core.batch import Record, read_records
from linkd.core.channels import is_channel
from linkd.core.wire import Volatile
from linkd.net.timers import Call, Clock, cancel
from linkd.status import Event

if TYPE_CHECKING:
    from linkd.api.port import NodePort

MAX_NAME: Final = 64
"""Characters of a name."""

GATHER_SECONDS: Final = 0.03
"""Changes on one channel are announced together."""

REPEAT_SECONDS: Final = 30.0
"""All that is here is announced so often: a change that was dropped on the way heals."""

ANSWER_SECONDS: Final = 1.0
"""Who asks is answered at most so often, on each channel."""

MAX_REMOTE: Final = 100_000
"""Members at other nodes that are remembered, of all channels together."""

MAX_LISTED: Final = 1000
"""Members that are listed at once: more would hold up the reactor."""

_MANY: Final = 300
_END: Final = 2**62


class Member(msgspec.Struct, array_like=True, frozen=True):
    """One who is there: a number of its node, its name, and the key that let it in."""

    number: Annotated[int, msgspec.Meta(ge=0, le=2**62)]
    name: Annotated[str, msgspec.Meta(max_length=MAX_NAME)]
    key: Annotated[str, msgspec.Meta(max_length=MAX_NAME)]


class Change(msgspec.Struct, frozen=True):
    """Somebody joined or left.

    Args:
        kind: `joined` or `left`.
        channel: Where.
        node: At which node.
        member: Who.
        count: How many are there now, at all nodes.
    """

    kind: str
    channel: str
    node: str
    member: Member
    count: int

    def as_text(self) -> str:
        """Return what a client is sent that wants a sentence."""
        return f'"{self.member.name}" {self.kind}'

    def as_object(self) -> dict[str, Any]:
        """Return what a client is sent."""
        return {"channel": self.channel, **shown(self.node, self.member), "count": self.count}


class Present(Protocol):
    """One who watches."""

    def changed(self, change: Change) -> None:
        """Hear that another joined or left."""


class _Announced(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one node announces of itself on a channel.

    Args:
        joined: Who came.
        left: The numbers of those who went.
        here: All who are there with a number from `least` to below `below`.
        least: See `here`.
        below: See `here`.
        asks: It wants to hear who is there.
        ended: Nodes that it can't hear any more.
    """

    joined: tuple[Member, ...] = ()
    left: tuple[int, ...] = ()
    here: tuple[Member, ...] | None = None
    least: int = 0
    below: int = _END
    asks: bool = False
    ended: tuple[str, ...] = ()


class _Elsewhere:
    """Who is there at one other node, on one channel."""

    def __init__(self, run: str, via: str) -> None:
        self.run = run
        self.via = via
        self.members: dict[int, Member] = {}


class _Channel:
    """One channel: who is there, who watches, what is to be announced."""

    def __init__(self) -> None:
        self.here: dict[int, Member] = {}
        self.watchers: dict[int, Present] = {}
        self.elsewhere: dict[str, _Elsewhere] = {}
        self.joined: dict[int, Member] = {}
        self.left: list[int] = []
        self.asks = False
        self.gathering: Call | None = None
        self.answering: Call | None = None

    @property
    def count(self) -> int:
        """How many are there, at all nodes."""
        return len(self.here) + sum(len(each.members) for each in self.elsewhere.values())

    @property
    def is_empty(self) -> bool:
        """Whether nothing is to be remembered."""
        return not (self.here or self.elsewhere or self.gathering or self.answering)


class Presence:
    """All who are there, by channel.

    Args:
        node: Carries what is announced.
        clock: The reactor.
    """

    def __init__(self, node: NodePort, clock: Clock) -> None:
        self._node = node
        self._clock = clock
        self._channels: dict[str, _Channel] = {}
        self._number = 0
        self._remote = 0
        self._repeat: Call | None = None
        node.on_presence.append(self._heard)
        self._ignore_links: Callable[[], None] | None = None
        self._is_stopped = False

    def stop(self) -> None:
        """Announce nothing more."""
        self._is_stopped = True
        cancel(self._repeat)
        for channel in self._channels.values():
            cancel(channel.gathering)
            cancel(channel.answering)
        self._channels.clear()
        self._watch_links()

    def _channel(self, name: str) -> _Channel:
        """Return a channel, new where nobody was there."""
        found = self._channels.get(name)
        if found is None:
            found = self._channels[name] = _Channel()
            self._watch_links()
        return found

    def _forget_empty(self, name: str, channel: _Channel) -> None:
        if channel.is_empty and self._channels.pop(name, None) is not None:
            self._watch_links()

    def _watch_links(self) -> None:
        """Hear of links as long as anybody is there."""
        if self._channels and self._ignore_links is None:
            self._ignore_links = self._node.on_event(self._happened)
        elif not self._channels and self._ignore_links is not None:
            self._ignore_links()
            self._ignore_links = None

    # those at this node's own door

    def join(self, name: str, who: str, key: str, watcher: Present | None) -> int:
        """Let somebody be there on channel `name`; return its number, for `leave`.

        Args:
            name: The channel. A pattern is one for itself, of this node alone.
            who: What it is called.
            key: The key that let it in.
            watcher: Hears who else joins and leaves; None: nobody does.
        """
        self._number += 1
        member = Member(self._number, who[:MAX_NAME], key[:MAX_NAME])
        channel = self._channel(name)
        is_first = not channel.here
        channel.here[member.number] = member
        self._tell(name, channel, "joined", self._node.name, member)
        if watcher is not None:
            channel.watchers[member.number] = watcher
        channel.joined[member.number] = member
        channel.asks |= is_first
        self._announce_soon(name, channel)
        return member.number

    def unwatch(self, name: str, number: int) -> None:
        """Let it hear of nobody any more."""
        channel = self._channels.get(name)
        if channel is not None:
            channel.watchers.pop(number, None)

    def leave(self, name: str, number: int) -> None:
        """Let it be gone."""
        channel = self._channels.get(name)
        member = None if channel is None else channel.here.pop(number, None)
        if channel is None or member is None:
            return
        channel.watchers.pop(number, None)
        if channel.joined.pop(number, None) is None:
            channel.left.append(number)
        self._tell(name, channel, "left", self._node.name, member)
        self._announce_soon(name, channel)

    def members(self, name: str) -> list[dict[str, Any]]:
        """Return who is there on a channel, at any node, as JSON has it: `MAX_LISTED` at most."""
        channel = self._channels.get(name)
        if channel is None:
            return []
        nodes = {self._node.name: channel.here}
        nodes |= {node: each.members for node, each in sorted(channel.elsewhere.items())}
        every = (shown(node, one) for node, there in nodes.items() for one in there.values())
        return list(islice(every, MAX_LISTED))

    def count(self, name: str) -> int:
        """Return how many are there on a channel, at any node."""
        channel = self._channels.get(name)
        return 0 if channel is None else channel.count

    def _tell(self, name: str, channel: _Channel, kind: str, node: str, member: Member) -> None:
        """Let all who watch a channel hear of a change, but the one that it is about."""
        change = Change(kind, name, node, member, channel.count)
        for number, watcher in list(channel.watchers.items()):
            if number != member.number or node != self._node.name:
                watcher.changed(change)

    # announcing

    def _announce_soon(self, name: str, channel: _Channel) -> None:
        """Announce what has changed, together with what changes in the next moment."""
        if is_channel(name) and not self._is_stopped:
            if channel.gathering is None:
                channel.gathering = self._clock.callLater(GATHER_SECONDS, self._announce, name)
            if self._repeat is None:
                self._repeat = self._clock.callLater(REPEAT_SECONDS, self._announce_all)
        self._forget_empty(name, channel)

    def _announce(self, name: str) -> None:
        channel = self._channels[name]
        channel.gathering = None
        joined, channel.joined = list(channel.joined.values()), {}
        left, channel.left = tuple(channel.left), []
        asks, channel.asks = channel.asks, False
        first, rest = tuple(joined[:_MANY]), joined[_MANY:]
        self._send(name, _Announced(first, left, asks=asks))
        while rest:
            self._send(name, _Announced(tuple(rest[:_MANY])))
            rest = rest[_MANY:]
        self._forget_empty(name, channel)

    def _announce_here(self, name: str, channel: _Channel, peer: str | None, asks: bool) -> None:
        """Announce all who are here, to one peer or to all."""
        members = sorted(channel.here.values(), key=lambda member: member.number)
        least = 0
        while True:
            some, members = members[:_MANY], members[_MANY:]
            below = members[0].number if members else _END
            self._send(name, _Announced((), (), tuple(some), least, below, asks), peer)
            if not members:
                return
            least, asks = below, False

    def _announce_all(self) -> None:
        """Announce all who are here once again."""
        self._repeat = None
        for name, channel in list(self._channels.items()):
            if channel.here and is_channel(name):
                self._announce_here(name, channel, None, False)
                if self._repeat is None:
                    self._repeat = self._clock.callLater(REPEAT_SECONDS, self._announce_all)

    def _answer(self, name: str) -> None:
        channel = self._channels[name]
        channel.answering = None
        self._announce_here(name, channel, None, False)
        self._forget_empty(name, channel)

    def _send(self, name: str, announced: _Announced, peer: str | None = None) -> None:
        self._node.announce(name, msgspec.json.encode(announced), peer)

    # what others announce

    def _happened(self, event: Event) -> None:
        """A link changed: tell who is here where it came up; who was behind it is gone."""
        peer = event.peer
        if peer is None or event.new is None:
            return
        if event.new == "up":
            self._clock.callLater(0, self._came_up, peer)
        elif event.old == "up":
            self._fell(peer)

    def _came_up(self, peer: str) -> None:
        for name, channel in list(self._channels.items()):
            if channel.here and is_channel(name) and not self._is_stopped:
                self._announce_here(name, channel, peer, True)

    def _fell(self, peer: str) -> None:
        for name, channel in list(self._channels.items()):
            gone = [node for node, each in channel.elsewhere.items() if each.via == peer]
            for node in gone:
                self._end(name, channel, node)
            if gone and not self._is_stopped:
                self._send(name, _Announced(ended=tuple(gone)))
            self._forget_empty(name, channel)

    def _end(self, name: str, channel: _Channel, node: str) -> None:
        """All at another node are gone."""
        ended = channel.elsewhere.pop(node, None)
        if ended is None:
            return
        members, ended.members = ended.members, {}
        self._remote -= len(members)
        for member in members.values():
            self._tell(name, channel, "left", node, member)

    def _heard(self, message: Volatile, peer: str) -> None:
        """Another node announced something; what can't be read is none of ours."""
        name, node = message.channel, message.node
        for announced in () if self._is_stopped else _read(message):
            channel = self._channel(name)
            for gone in announced.ended:
                if gone in channel.elsewhere and channel.elsewhere[gone].via == peer:
                    self._end(name, channel, gone)
            known = channel.elsewhere.get(node)
            if known is not None and known.run != message.run:
                self._end(name, channel, node)
                known = None
            self._take(name, channel, node, announced, known or _Elsewhere(message.run, peer))
            if node in channel.elsewhere:
                channel.elsewhere[node].via = peer
            if announced.asks and channel.here and channel.answering is None:
                channel.answering = self._clock.callLater(ANSWER_SECONDS, self._answer, name)
            self._forget_empty(name, channel)

    def _take(
        self, name: str, channel: _Channel, node: str, announced: _Announced, known: _Elsewhere
    ) -> None:
        """Change what is known of one node on one channel."""
        members = known.members
        wanted = {member.number: member for member in announced.joined}
        left = set(announced.left)
        if announced.here is not None:
            wanted |= {member.number: member for member in announced.here}
            left |= {
                number
                for number in members
                if announced.least <= number < announced.below and number not in wanted
            }
        for number in left & members.keys():
            member = members.pop(number)
            self._remote -= 1
            if not members:
                channel.elsewhere.pop(node, None)
            self._tell(name, channel, "left", node, member)
        for number, member in wanted.items():
            if number not in members and self._remote < MAX_REMOTE:
                channel.elsewhere[node] = known
                members[number] = member
                self._remote += 1
                self._tell(name, channel, "joined", node, member)


def shown(node: str, member: Member) -> dict[str, Any]:
    """Return a member as JSON has it."""
    return {
        "id": f"{node}/{member.number}",
        "name": member.name,
        "key": member.key,
        "node": node,
    }


def _read(message: Volatile) -> Iterator[_Announced]:
    for record in read_records(message.records, message.count):
        if isinstance(record, Record):
            try:
                yield _decoder.decode(record.body)
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue


_decoder = msgspec.json.Decoder(_Announced)
