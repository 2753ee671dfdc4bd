"""What the API needs of the node; `linkd.node.Node` provides it. All in the reactor's thread."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal, Protocol

from twisted.internet.defer import Deferred

from linkd.config import Config
from linkd.log.interface import Consumer, Log, OnDurable, Owned
from linkd.protocol.peer import Volatile
from linkd.protocol.records import Batch, NewRecords
from linkd.status import Availability, Event, LinkHistory, LinkStatus, NodeStatus, Outage

Measure = Literal["round trip", "age"]
"""`age`: of a received batch, by the wall clocks of its origin and of this host."""

Start = int | Literal["earliest", "latest"]


class Sink(Protocol):
    """Where a subscription's records go. All of it is called in order."""

    def has_room(self, size: int) -> bool:
        """Return whether records of `size` bytes may come now.

        Where they may not, `Subscription.resume` is called once they may.
        """

    def hold(self, size: int) -> bool:
        """Count bytes that are kept for the sink, negative where they no longer are.

        Return whether there is room for them: else they must not be kept.
        """

    def batch(self, batch: Batch) -> bool:
        """Take records of the log.

        Their first is the next one wanted. Return whether there is room for more:
        after False nothing comes until `Subscription.resume`.
        """

    def volatile(self, batch: Batch) -> None:
        """Take records without an offset (it is 0); drop them where there is no room."""

    def gap(self, first: int, next: int) -> None:
        """Hear that offsets `first` to `next` - 1 are gone; some of them may have been wanted."""

    def end(self, reason: str) -> None:
        """Hear that nothing more comes.

        Another took the consumer's name (`replaced`), `stopped`, or an error.
        """


class Subscription(Protocol):
    """A reader of the log, following its end."""

    next: int

    def position(self) -> int:
        """Return the offset below which everything that it wants was handed to its sink."""

    def resume(self) -> None:
        """There is room again."""

    def ack(self, next: int, done: Callable[[Exception | None], None]) -> None:
        """Set the named consumer's cursor; `done(None)` once it is durable. Cumulative.

        Never moves back.
        """

    def close(self) -> None:
        """Nothing more is wanted."""


class NodePort(Protocol):
    """The node."""

    name: str
    config: Config
    log: Log
    starting: bool
    stopping: bool
    counts: Mapping[tuple[str, str], int]
    """Records by (refused, expired, dropped or lost; peer)."""
    on_measured: list[Callable[[Measure, str, float], None]]
    """Called with what was measured on a link: peer, seconds."""
    on_fell: list[Callable[[str, str, float | None], None]]
    """Called once a link has left `up`: peer, reason, seconds of silence until then."""
    on_rose: list[Callable[[str, float], None]]
    """Called once an outage has ended: peer, its seconds."""
    on_presence: list[Callable[[Volatile, str], None]]
    """Called with what another node announced, and the peer that it came from."""

    def publish(self, draft: NewRecords, settled: OnDurable) -> None:
        """Publish on a durable channel (settled once on disk) or a volatile one (settled at once.

        Offset 0).

        The channel's rule adds its `ttl` where the draft has none. The draft's encoding has been
        checked.
        """

    def announce(self, channel: str, body: bytes, peers: Collection[str] | None = None) -> None:
        """Send who is there on a channel where the channel goes: to `peers` alone, or to all."""

    def relay(self, message: Volatile, source: str, peers: Collection[str] | None = None) -> None:
        """Pass on what another node announced and `source` sent, to `peers` alone, or to all."""

    def one_way(self, channel: str) -> Collection[str]:
        """Return the peers that get `channel` and from which it is not taken."""

    def wait_for(self, peer: str, next: int) -> Deferred[None]:
        """Fire once everything below `next` is on `peer`'s disk; cancel it to stop waiting.

        Raises:
            KeyError: No such peer.
        """

    def sends(self, peer: str, channel: str) -> bool:
        """Tell whether `peer` gets `channel`.

        Our `send`, and its `receive` as far as it is known.
        """

    def subscribe(
        self, patterns: Sequence[str], start: Start, sink: Sink, consumer: Owned | None = None
    ) -> Subscription:
        """Follow the log from `start`.

        Or from where `consumer` stands (`start` then only where it is new).

        The sink is never called from within. Volatile records come as they pass.
        """

    def consumers(self) -> list[Consumer]:
        """Return the named consumers."""

    def consumer(self, key: Owned) -> Consumer | None:
        """Return a named consumer, if there is one."""

    def ack(self, consumer: Owned, next: int) -> Deferred[None]:
        """Set a named consumer's cursor from outside a subscription; KeyError if there is none."""

    def move(self, old: Owned, new: Owned) -> Deferred[None]:
        """Give a named consumer another owner and name.

        Raises:
            KeyError: There is no such consumer.
            PublishError: The new name is in use, or its owner may have no further consumer.
        """

    def forget(self, consumer: Owned) -> Deferred[bool]:
        """Remove a named consumer; fires with whether there was one."""

    def status(self, links: list[LinkStatus] | None = None, owner: str | None = None) -> NodeStatus:
        """Return what is true now.

        `links` where the caller has them already; with an owner without the consumers of others.
        """

    def peers(self) -> list[str]:
        """Return the names of all peers."""

    def link_status(self, peer: str) -> LinkStatus | None:
        """Return what is true now of one link; None if there is no such peer."""

    def events(self, after: int = 0) -> list[Event]:
        """Return the remembered changes with a number above `after`, oldest first."""

    def on_event(self, call: Callable[[Event], None]) -> Callable[[], None]:
        """Have each change told as it happens, ahead of any message; returns how to end that."""

    def outages(
        self, peer: str | None = None, since_seconds: float | None = None, drills: bool = True
    ) -> list[Outage]:
        """Return the recorded outages, oldest first; KeyError if there is no such peer."""

    def availability(self, peer: str | None = None, drills: bool = True) -> list[Availability]:
        """Return the availability of the links, or of one; KeyError if there is no such peer."""

    def history(self, peer: str) -> LinkHistory:
        """Return the last hour of one link; KeyError if there is no such peer."""

    def kick(self, peer: str) -> None:
        """Try again at once; KeyError if there is no such peer."""

    def drill_began(self, peer: str, drill: str, seconds: float) -> None:
        """Hear that a fault is made on the link on purpose; KeyError if there is no such peer."""

    def drill_ended(self, peer: str, drill: str, verdict: str | None) -> None:
        """Hear that it is over; KeyError if there is no such peer.

        The verdict is None where there was none, as the drill was broken off.
        """

    def forget_peer(self, peer: str, confirmed: bool) -> tuple[int, int]:
        """Return (records, bytes) owed to a peer without an entry; where confirmed, forget it.

        Raises:
            KeyError: No such peer.
            LinkdError: It is configured.
        """

    def resync(self, peer: str, confirmed: bool) -> Deferred[str]:
        """Tell what a resync would send again or lose.

        Do it where confirmed. KeyError if there is no such peer.
        """

    def trim(self, before: int, confirmed: bool) -> tuple[int, int]:
        """Return (records, of them owed) below `before`; delete them where confirmed."""
