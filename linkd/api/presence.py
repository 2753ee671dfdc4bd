"""Presence on `/ws` across nodes: clients of one channel learn of each other.

A node with a watcher of a channel periodically queries all nodes that the channel reaches. Each
node with members there answers and sends it changes until the query expires; others get nothing.
Queries and answers are volatile messages; answers travel along the links on which the queries came.
When a link goes down, the members learned over it are removed, at the nodes behind it too.

Instances of this node that share its log (`[cluster] bus`) are asked and answer too. To the peers
their members are this node's: each instance announces what it learns of the others to its own
peers, and the numbers of members differ between all instances.

Work for many clients is done in slices (see `Jobs`), and each change is encoded once. When too many
changes occur at once, one message with the number of members replaces them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, Final
from zlib import crc32

import msgspec
from twisted.internet.base import DelayedCall, ReactorBase

from linkd.api.http import to_json
from linkd.api.jobs import Jobs
from linkd.net.rate_limit import FairShare
from linkd.net.timers import cancel
from linkd.node.bus import SISTER
from linkd.protocol.channels import is_channel
from linkd.protocol.peer import Volatile
from linkd.protocol.records import EncodedRecord, read_records
from linkd.status import Event

if TYPE_CHECKING:
    from linkd.api.text import TextSession
    from linkd.node.node import Node

MAX_NAME: Final = 64
"""Characters of a name."""

GATHER_SECONDS: Final = 0.03
"""Changes on one channel are announced together."""

REPEAT_SECONDS: Final = 30.0
"""A node asks again so often, or in as many seconds as there are nodes to answer where those are
more: a change that was dropped on the way heals."""

HOLD: Final = 3
"""A question, and an answer, hold for so many of these times."""

MAX_HOLD_SECONDS: Final = 3600.0
"""A question holds no longer."""

SWEEP_SECONDS: Final = 3.0
"""Seconds between two looks at what is due."""

WANT_SECONDS: Final = 60.0
"""Seconds for which a channel is watched after a request for its member list."""

ANSWER_SECONDS: Final = 0.25
"""Minimum seconds between two answers to the nodes that query a channel."""

MAX_WANTED: Final = 10_000
"""Where presence on so many channels is known, none is watched only for a list."""

MAX_REMOTE: Final = 100_000
"""Members at other nodes that are remembered, of all channels together.

No link has more of them than are free, and no node more than its link has left: one that announces
without end leaves room for the others.
"""

LINK_RESERVE: Final = 256
"""Members reserved for each link."""

MAX_THERE: Final = 10_000
"""Members of one other node on one channel."""

MAX_LISTED: Final = 1000
"""Members that are listed at once: more would hold up the reactor."""

MAX_CHANGES: Final = 300
"""Members in one announcement, and changes on a channel that wait to be sent one by one."""

MAX_SENDS: Final = 20_000
"""Messages that changes which wait on a channel may take; beyond them one each has the number."""

CROWD_SECONDS: Final = 1.0
"""After that number, the next changes are sent so much later."""

MAX_JOBS: Final = 1000
"""Announcements that wait to be sent; those beyond are dropped: they are repeated."""

_END: Final = 2**62


class Member(msgspec.Struct, array_like=True, frozen=True):
    """A present client: its number at its node, its name, and the name of its key."""

    number: Annotated[int, msgspec.Meta(ge=0, le=2**62)]
    name: Annotated[str, msgspec.Meta(max_length=MAX_NAME)]
    key: Annotated[str, msgspec.Meta(max_length=MAX_NAME)]

    @property
    def is_printable(self) -> bool:
        """Whether both can be shown."""
        return self.name.isprintable() and self.key.isprintable()


Members = Annotated[tuple[Member, ...], msgspec.Meta(max_length=MAX_CHANGES)]


class PresenceChange(msgspec.Struct, frozen=True, dict=True):
    """Somebody joined or left, or too many did to name them.

    Args:
        kind: `joined`, `left` or `present`.
        channel: Where.
        count: How many are there now, at all nodes.
        node: At which node.
        member: The client that joined or left; None: many did.
    """

    kind: str
    channel: str
    count: int
    node: str = ""
    member: Member | None = None

    @cached_property
    def sentence(self) -> bytes:
        """The message for a client that asked for sentences."""
        if self.member is None:
            return to_json(f"{self.count} are present")
        return to_json(f'"{self.member.name}" {self.kind}')

    @cached_property
    def message(self) -> bytes:
        """The message for other clients."""
        who = {} if self.member is None else shown(self.node, self.member)
        data = {"channel": self.channel, **who, "count": self.count}
        return to_json({"type": self.kind, "data": data})


class _Link:
    """The members learned over one link while it is up."""

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.members: Counter[str] = Counter()  # and questions, by node
        self.total = 0
        self.has_fallen = False

    def count(self, node: str, more: int) -> None:
        """Count members and questions of a node that came, or went."""
        self.total += more
        self.members[node] += more
        if not self.members[node]:
            del self.members[node]


class _Announced(msgspec.Struct, frozen=True, omit_defaults=True):
    """A presence message of one node about one channel.

    Args:
        joined: Members that joined.
        left: The numbers of members that left.
        here: All its members with a number from `least` to below `below`.
        least: See `here`.
        below: See `here`.
        asks: It queries the members, and wants changes for this many seconds.
        to: The node that asked; empty: all nodes that asked.
        ended: Nodes that it no longer reaches.
    """

    joined: Members = ()
    left: Annotated[tuple[int, ...], msgspec.Meta(max_length=MAX_CHANGES)] = ()
    here: Members | None = None
    least: int = 0
    below: int = _END
    asks: Annotated[float, msgspec.Meta(ge=0, le=MAX_HOLD_SECONDS)] = 0.0
    to: Annotated[str, msgspec.Meta(max_length=MAX_NAME)] = ""
    ended: Annotated[tuple[str, ...], msgspec.Meta(max_length=MAX_CHANGES)] = ()


class _Elsewhere(msgspec.Struct, eq=False):
    """The members of one channel at one other node, in one run of it."""

    run: str
    link: _Link
    heard: float = 0.0
    members: dict[int, Member] = {}


class _Asker(msgspec.Struct, eq=False):
    """A node that queries the members of a channel, until a time."""

    link: _Link
    until: float


class _Channel:
    """One channel: its members, its watchers, and pending announcements."""

    def __init__(self, repeat_at: float) -> None:
        self.repeat_at = repeat_at
        self.wanted_until = 0.0
        self.askers: dict[str, _Asker] = {}
        self.asking: Counter[str] = Counter()  # how many askers are behind each peer
        self.to_answer: set[str] = set()
        self.here: dict[int, Member] = {}
        self.watchers: dict[int, TextSession] = {}
        self.elsewhere: dict[str, _Elsewhere] = {}
        self.joined: dict[int, Member] = {}
        self.left: list[int] = []
        self.asks = False
        self.gathering: DelayedCall | None = None
        self.answering: DelayedCall | None = None
        self.remote = 0
        # Changes that watchers do not know of, each with the highest number here at that time:
        # a watcher that joined later does not get them.
        self.changes: dict[tuple[str, Member], tuple[str, int]] = {}
        self.is_crowd = False  # too many changes to name each
        self.delivers = False
        self.resting: DelayedCall | None = None

    @property
    def count(self) -> int:
        """The number of members at all nodes."""
        return len(self.here) + self.remote

    @property
    def is_empty(self) -> bool:
        """Whether nothing is to be remembered."""
        return not (
            self.here
            or self.elsewhere
            or self.askers
            or self.wanted_until
            or self.gathering
            or self.answering
        )

    @property
    def is_watched(self) -> bool:
        """Whether a client of this node watches the members."""
        return bool(self.watchers or self.wanted_until)

    @property
    def period(self) -> float:
        """Seconds until it asks again."""
        return min(MAX_HOLD_SECONDS / HOLD, max(REPEAT_SECONDS, float(len(self.elsewhere))))

    def stop(self) -> None:
        """Cancel all timers."""
        cancel(self.gathering)
        cancel(self.answering)
        cancel(self.resting)


class Presence:
    """All members, by channel.

    Args:
        node: Carries what is announced.
        clock: The reactor.
        share: Gives it its slices.
        number: Members have higher numbers than this.
    """

    def __init__(self, node: Node, clock: ReactorBase, share: FairShare, number: int = 0) -> None:
        self._node = node
        self._clock = clock
        self._jobs = Jobs(share, clock)
        self._links: dict[str, _Link] = {}
        self._channels: dict[str, _Channel] = {}
        self._number = number
        self._remote = 0
        self._sweep: DelayedCall | None = None
        self._sweeps = False  # one is planned
        node.on_presence.append(self._heard)
        node.on_sister.append(self._sister_changed)
        self._sisters: set[str] = set()
        self._ignore_links: Callable[[], None] | None = None
        self._is_stopped = False

    def stop(self) -> None:
        """Announce nothing more."""
        self._is_stopped = True
        cancel(self._sweep)
        for channel in self._channels.values():
            channel.stop()
        self._channels.clear()
        self._jobs.waiting.clear()
        self._watch_links()

    def _channel(self, name: str) -> _Channel:
        """Return a channel, new where nobody was there."""
        found = self._channels.get(name)
        if found is None:
            spread = crc32(f"{self._node.name} {name}".encode()) / 2**32
            now = self._clock.seconds()
            found = self._channels[name] = _Channel(now + REPEAT_SECONDS * (0.5 + spread))
            self._watch_links()
            if self._sweep is None:
                self._sweep = self._clock.callLater(SWEEP_SECONDS, self._swept)
        return found

    def _forget_empty(self, name: str, channel: _Channel) -> None:
        if channel.is_empty and self._channels.pop(name, None) is not None:
            channel.stop()
            self._watch_links()

    def _watch_links(self) -> None:
        """Follow link events while there are members or watchers."""
        if self._channels and self._ignore_links is None:
            self._ignore_links = self._node.events.follow(self._happened)
        elif not self._channels and self._ignore_links is not None:
            self._ignore_links()
            self._ignore_links = None

    # those at this node's own door

    def join(self, name: str, who: str, key: str, watcher: TextSession | None) -> int:
        """Add a member to channel `name`; return its number, for `leave`.

        Args:
            name: The channel. A pattern is one for itself, of this node alone.
            who: Its name.
            key: The name of its key.
            watcher: Receives joins and leaves of others; None: nobody does.
        """
        number = self._number + 1
        member = Member(number, who[:MAX_NAME], key[:MAX_NAME])
        channel = self._channel(name)
        self._note(name, channel, "joined", self._node.name, member)
        channel.here[number] = member
        self._number = number
        if watcher is not None:
            channel.asks |= not channel.is_watched
            channel.watchers[number] = watcher
        channel.joined[number] = member
        self._announce_soon(name, channel)
        return number

    def leave(self, name: str, number: int) -> None:
        """Remove a member."""
        channel = self._channels.get(name)
        member = None if channel is None else channel.here.pop(number, None)
        if channel is None or member is None:
            return
        channel.watchers.pop(number, None)
        if channel.joined.pop(number, None) is None:
            channel.left.append(number)
        self._note(name, channel, "left", self._node.name, member)
        self._announce_soon(name, channel)

    def want(self, name: str) -> bool:
        """Query the members of a channel; return whether answers are still expected."""
        known = name in self._channels
        if not is_channel(name) or (len(self._channels) >= MAX_WANTED and not known):
            return False
        channel = self._channel(name)
        is_new = not channel.is_watched
        channel.wanted_until = self._clock.seconds() + WANT_SECONDS
        if is_new:
            channel.asks = True
            self._announce_soon(name, channel)
        return is_new and bool(self._node.peers() or self._sisters)

    def members(self, name: str) -> list[dict[str, Any]]:
        """Return up to `MAX_LISTED` members of a channel, of all nodes, for JSON."""
        channel = self._channels.get(name)
        if channel is None:
            return []
        nodes = {self._node.name: channel.here}
        nodes |= {node: each.members for node, each in sorted(channel.elsewhere.items())}
        every = (
            shown(self._shown(node), one) for node, there in nodes.items() for one in there.values()
        )
        return list(islice(every, MAX_LISTED))

    def count(self, name: str) -> int:
        """Return how many are there on a channel, at any node."""
        channel = self._channels.get(name)
        return 0 if channel is None else channel.count

    def _shown(self, node: str) -> str:
        """Return the name of a node, or of another instance of this one."""
        return self._node.name if node.startswith(SISTER) else node

    # changes, for watchers

    def _note(self, name: str, channel: _Channel, kind: str, node: str, member: Member) -> None:
        """Queue a change for the watchers of a channel; a join and its leave cancel out."""
        if channel.is_crowd or not channel.watchers:
            return
        changes = channel.changes
        if changes.pop((node, member), None) is None:
            changes[node, member] = (kind, self._number)
            if len(changes) > min(MAX_CHANGES, MAX_SENDS // len(channel.watchers)):
                changes.clear()
                channel.is_crowd = True
        self._deliver_soon(name, channel)

    def _deliver_soon(self, name: str, channel: _Channel) -> None:
        if not channel.delivers and not self._is_stopped:
            channel.delivers = True
            self._jobs.add(self._deliver(name, channel))

    def _deliver(self, name: str, channel: _Channel) -> Iterator[None]:
        """Send all watchers the queued changes."""
        changes, channel.changes = channel.changes, {}
        is_crowd, channel.is_crowd = channel.is_crowd, False
        count = channel.count - sum(_STEP[kind] for kind, _ in changes.values())
        try:
            if is_crowd:
                yield from self._send_change(
                    channel, PresenceChange("present", name, channel.count), _END
                )
            for (node, member), (kind, newest) in changes.items():
                count += _STEP[kind]
                change = PresenceChange(kind, name, count, self._shown(node), member)
                yield from self._send_change(channel, change, newest)
        finally:  # after a mistake, too
            delay = CROWD_SECONDS if is_crowd else 0.0
            if self._channels.get(name) is channel:
                channel.resting = self._clock.callLater(delay, self._deliver_on, name, channel)

    def _deliver_on(self, name: str, channel: _Channel) -> None:
        channel.resting, channel.delivers = None, False
        if channel.changes or channel.is_crowd:
            self._deliver_soon(name, channel)

    def _send_change(
        self, channel: _Channel, change: PresenceChange, newest: int
    ) -> Iterator[None]:
        """Send a change to all watchers that were there before it."""
        for number in tuple(channel.watchers):
            watcher = channel.watchers.get(number)
            if watcher is not None and number <= newest:
                watcher.changed(change)
                yield

    # announcing

    def _announce_soon(self, name: str, channel: _Channel) -> None:
        """Announce what has changed, together with what changes in the next moment."""
        if is_channel(name) and not self._is_stopped and channel.gathering is None:
            channel.gathering = self._clock.callLater(GATHER_SECONDS, self._announce, name)
        self._forget_empty(name, channel)

    def _announce(self, name: str) -> None:
        channel = self._channels[name]
        channel.gathering = None
        joined, channel.joined = list(channel.joined.values()), {}
        left, channel.left = tuple(channel.left), []
        if channel.asks:
            self._ask(name, channel)
        peers = self._audience(name, channel)
        if peers and (joined or left):
            self._plan(self._announcing_changes(name, joined, left, peers))
        self._forget_empty(name, channel)

    def _audience(self, name: str, channel: _Channel) -> set[str]:
        """Return the peers toward all asking nodes, and those that cannot ask."""
        return channel.asking.keys() | set(self._node.dispatcher.one_way(name))

    def _ask(self, name: str, channel: _Channel, peers: Collection[str] | None = None) -> None:
        """Query the members at `peers`, or at all that the channel reaches."""
        channel.asks = False
        self._plan(self._sending(name, _Announced(asks=HOLD * channel.period), peers))

    def _plan(self, job: Iterator[None]) -> None:
        """Send something in its turn; where too much waits, not at all: it is repeated."""
        if len(self._jobs.waiting) < MAX_JOBS:
            self._jobs.add(job)

    def _sending(
        self, name: str, announced: _Announced, peers: Collection[str] | None
    ) -> Iterator[None]:
        self._node.announce(name, msgspec.json.encode(announced), peers)
        yield

    def _announcing_changes(
        self, name: str, joined: list[Member], left: tuple[int, ...], peers: Collection[str]
    ) -> Iterator[None]:
        for start in range(0, max(len(joined), len(left)), MAX_CHANGES):
            end = start + MAX_CHANGES
            changes = _Announced(tuple(joined[start:end]), left[start:end])
            yield from self._sending(name, changes, peers)

    def _announcing_here(
        self, name: str, channel: _Channel, peers: Collection[str], to: str = ""
    ) -> Iterator[None]:
        members = list(channel.here.values())  # by number
        if not all(map(_is_sister, peers)):
            theirs = [each.members for one, each in channel.elsewhere.items() if _is_sister(one)]
            if theirs:
                members += [member for there in theirs for member in there.values()]
                members.sort(key=lambda member: member.number)
        least = 0
        while members:
            some, members = members[:MAX_CHANGES], members[MAX_CHANGES:]
            below = members[0].number if members else _END
            here = _Announced((), (), tuple(some), least, below, to=to)
            yield from self._sending(name, here, peers)
            least = below

    def _answer(self, name: str) -> None:
        channel = self._channels[name]
        channel.answering = None
        asked, channel.to_answer = channel.to_answer, set()
        for node in asked & channel.askers.keys():
            peers = {channel.askers[node].link.peer}
            self._plan(self._announcing_here(name, channel, peers, node))
        self._forget_empty(name, channel)

    def _pass_on(
        self, name: str, channel: _Channel, joined: list[Member], left: tuple[int, ...]
    ) -> None:
        """Announce what has changed at another instance of this node to our peers."""
        peers = {peer for peer in self._audience(name, channel) if not _is_sister(peer)}
        if peers and (joined or left):
            self._plan(self._announcing_changes(name, joined, left, peers))

    # from time to time

    def _swept(self) -> None:
        self._sweep = None
        if self._channels:
            self._sweep = self._clock.callLater(SWEEP_SECONDS, self._swept)
            if not self._sweeps:
                self._sweeps = True
                self._jobs.add(self._sweep_all())

    def _sweep_all(self) -> Iterator[None]:
        """Forget what is too old, and repeat what is due."""
        self._sweeps = False  # the next one may be planned behind it, after a mistake, too
        for name, channel in list(self._channels.items()):
            now = self._clock.seconds()
            if channel.wanted_until <= now:
                channel.wanted_until = 0.0
            for node in [node for node, each in channel.askers.items() if each.until <= now]:
                self._forget_asker(channel, node)
            hears = channel.is_watched or channel.askers
            oldest = now - HOLD * channel.period if hears else now
            for node in [node for node, each in channel.elsewhere.items() if each.heard <= oldest]:
                self._end(name, channel, node)
            if channel.repeat_at <= now and is_channel(name):
                channel.repeat_at = now + channel.period
                if channel.is_watched:
                    self._ask(name, channel)
                peers = self._node.dispatcher.one_way(name) if channel.here else ()
                if peers:
                    self._plan(self._announcing_here(name, channel, peers))
            self._forget_empty(name, channel)
            yield

    def _forget_asker(self, channel: _Channel, node: str) -> None:
        asker = channel.askers.pop(node)
        self._remote -= 1
        asker.link.count(node, -1)
        channel.asking[asker.link.peer] -= 1
        if not channel.asking[asker.link.peer]:
            del channel.asking[asker.link.peer]

    # what others announce

    def _sister_changed(self, word: str, is_up: bool) -> None:
        """Ask another instance that is there; remove the members at one that is gone."""
        if is_up and not self._is_stopped:
            self._sisters.add(word)
            self._clock.callLater(0, lambda: self._jobs.add(self._greet(word)))
        else:
            self._sisters.discard(word)
            self._fell(word)

    def _happened(self, event: Event) -> None:
        """Announce our members on a link that came up; remove the members behind one that fell."""
        peer = event.peer
        if peer is None or event.new is None:
            return
        if event.new == "up":
            self._clock.callLater(0, lambda: self._jobs.add(self._greet(peer)))
        elif event.old == "up":
            self._fell(peer)

    def _greet(self, peer: str) -> Iterator[None]:
        for name, channel in list(self._channels.items()):
            others = channel.asking.keys() - {peer}
            if _is_sister(peer):  # the others have asked it themselves
                others = {other for other in others if not _is_sister(other)}
            if channel.is_watched or others:
                self._ask(name, channel, (peer,))
            if channel.here and peer in self._node.dispatcher.one_way(name):
                yield from self._announcing_here(name, channel, (peer,))
            yield

    def _fell(self, peer: str) -> None:
        link = self._links.pop(peer, None)
        if link is not None:
            link.has_fallen = True
            self._jobs.add(self._end_behind(link))

    def _end_behind(self, link: _Link) -> Iterator[None]:
        """Remove all members learned over a link that fell."""
        for name, channel in list(self._channels.items()):
            gone = [node for node, each in channel.elsewhere.items() if each.link is link]
            for node in gone:
                self._end(name, channel, node)
                yield
            for node in [node for node, each in channel.askers.items() if each.link is link]:
                self._forget_asker(channel, node)
            peers = self._audience(name, channel)
            gone = [node for node in gone if not _is_sister(node)]
            for start in range(0, len(gone) if peers else 0, MAX_CHANGES):
                ended = _Announced(ended=tuple(gone[start : start + MAX_CHANGES]))
                yield from self._sending(name, ended, peers)
            self._forget_empty(name, channel)
            yield

    def _end(self, name: str, channel: _Channel, node: str) -> None:
        """Remove all members of another node."""
        ended = channel.elsewhere.pop(node, None)
        if ended is None:
            return
        self._count(channel, node, ended, -len(ended.members))
        for member in ended.members.values():
            self._note(name, channel, "left", node, member)
        if _is_sister(node):
            self._pass_on(name, channel, [], tuple(ended.members))

    def _count(self, channel: _Channel, node: str, known: _Elsewhere, more: int) -> None:
        self._remote += more
        channel.remote += more
        known.link.count(node, more)

    def _heard(self, message: Volatile, peer: str) -> None:
        """Another node announced something; what can't be read is none of ours."""
        name, node = message.channel, message.node
        announced = None if self._is_stopped else _read(message)
        if announced is None:
            return
        if node == self._node.name:
            if not _is_sister(peer):
                return  # it went round: we hear the other instances over the bus
            node = peer
        link = self._links.get(peer)
        if link is None:
            link = self._links[peer] = _Link(peer)
        if announced.asks:
            self._asked(message, node, announced.asks, link)
            return
        channel = self._channels.get(name)
        if channel is None or not (channel.is_watched or channel.askers):
            return
        self._relay(message, node, announced, channel, peer)
        for gone in announced.ended:
            if gone in channel.elsewhere and channel.elsewhere[gone].link is link:
                self._end(name, channel, gone)
        known = channel.elsewhere.get(node)
        if known is not None and (known.run != message.run or known.link.has_fallen):
            self._end(name, channel, node)
            known = None
        if known is not None and known.link is not link:
            known.link.count(node, -len(known.members))
            known.link = link
            link.count(node, len(known.members))
        known = known or _Elsewhere(message.run, link)
        known.heard = self._clock.seconds()
        self._take(name, channel, node, announced, known)
        self._forget_empty(name, channel)

    def _relay(
        self, message: Volatile, node: str, announced: _Announced, channel: _Channel, peer: str
    ) -> None:
        """Send what another node announced on to those that asked for it."""
        name, asker = message.channel, channel.askers.get(announced.to)
        if announced.to in ("", self._node.name) or _is_sister(announced.to):
            peers = set(channel.asking)
        else:
            peers = set() if asker is None else {asker.link.peer}
        if _is_sister(peer):  # the bus brought it to all instances
            peers = {one for one in peers if not _is_sister(one)}
        if not _is_sister(node):
            if peers - {peer}:
                self._plan(self._relaying(message, peer, peers))
        elif announced.ended and peers:  # `_take` passes the rest on, as ours
            self._plan(self._sending(name, _Announced(ended=announced.ended), peers))

    def _relaying(
        self, message: Volatile, source: str, peers: Collection[str] | None
    ) -> Iterator[None]:
        self._node.dispatcher.volatile(message, source, peers)
        yield

    def _asked(self, message: Volatile, node: str, seconds: float, link: _Link) -> None:
        """Remember the query of another node, answer it and relay it."""
        name = message.channel
        self._plan(self._relaying(message, link.peer, None))
        channel = self._channel(name)
        if node in channel.askers:
            self._forget_asker(channel, node)
        if self._room(node, link) > 0:
            channel.askers[node] = _Asker(link, self._clock.seconds() + seconds)
            self._remote += 1
            link.count(node, 1)
            channel.asking[link.peer] += 1
            if channel.here or any(map(_is_sister, channel.elsewhere)):
                channel.to_answer.add(node)
                if channel.answering is None:
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
        gone = [members.pop(number) for number in left & members.keys()]
        self._count(channel, node, known, -len(gone))
        for member in gone:
            self._note(name, channel, "left", node, member)
        joined: list[Member] = []
        for number, member in wanted.items():
            is_new = number not in members and len(members) < MAX_THERE
            if is_new and member.is_printable and self._room(node, known.link) > 0:
                members[number] = member
                self._count(channel, node, known, 1)
                self._note(name, channel, "joined", node, member)
                joined.append(member)
        if members:
            channel.elsewhere[node] = known
        else:
            channel.elsewhere.pop(node, None)
        if _is_sister(node):
            self._pass_on(name, channel, joined, tuple([member.number for member in gone]))

    def _room(self, node: str, link: _Link) -> int:
        """Return how much more of a node may be remembered."""
        left = max(LINK_RESERVE, MAX_REMOTE - self._remote) - link.total
        return left - link.members[node]


def _is_sister(node: str) -> bool:
    """Return whether this is another instance of this node, and no node or peer."""
    return node.startswith(SISTER)


def shown(node: str, member: Member) -> dict[str, Any]:
    """Return a member as JSON has it."""
    return {
        "id": f"{node}/{member.number}",
        "name": member.name,
        "key": member.key,
        "node": node,
    }


def _read(message: Volatile) -> _Announced | None:
    """Return what a message announces; None where it can't be read. linkd sends one record."""
    for record in read_records(message.records, message.count):
        if isinstance(record, EncodedRecord):
            try:
                return _decoder.decode(record.body)
            except (msgspec.DecodeError, UnicodeDecodeError):
                return None
    return None


_STEP: Final = {"joined": 1, "left": -1}
_decoder = msgspec.json.Decoder(_Announced)
