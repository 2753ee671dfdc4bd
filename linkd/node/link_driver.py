"""Drive one link: perform the effects of its core on connections."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Literal

from twisted.internet.base import DelayedCall

from linkd.clock import wall
from linkd.config import PeerSettings
from linkd.core import link as links
from linkd.core.backoff import Backoff
from linkd.core.liveness import LEAST_SEGMENT_BYTES, SEGMENT_BYTES
from linkd.core.session import outdated, repeats
from linkd.errors import AttemptFailed, FailureKind, LinkdError, PeerMoved, Reason
from linkd.net.connection import Connection
from linkd.net.dialer import LinkDialer
from linkd.node.outages import Current
from linkd.node.replicator import Replicator
from linkd.protocol import peer as wire
from linkd.protocol.channels import may_overlap
from linkd.protocol.json import rfc3339
from linkd.status import LinkStatus

if TYPE_CHECKING:
    from linkd.node.node import Node

MAX_SKEW_SECONDS = 5.0
"""Difference between two nodes' clocks above which a warning is logged."""


class LinkDriver:
    """One link; implements `linkd.net.connection.LinkPort`.

    Args:
        node: The node.
        settings: The peer's.
        backoff: The delays of our dialer; None where the peer dials us.

    Attributes:
        peer: The peer's name.
        link: The core's state machine of its connections.
        replicator: Replicates its records.
        dialer: Our dialing end, set before `start`; None where the peer dials us.
        drain_to: The end of what was owed when the link came up, until the peer has it.
    """

    def __init__(self, node: Node, settings: PeerSettings, backoff: Backoff | None) -> None:
        self.peer = settings.name
        self.role: Literal["dialer", "listener"] = "dialer" if settings.dial else "listener"
        self.settings = settings
        self._node = node
        self._clock = node.clock
        self.link = links.Link(node.name, settings.name, backoff)
        self.replicator = Replicator(node, settings, self)
        self.writable = self.replicator.writable
        self.dialer: LinkDialer | None = None
        self.peer_version: str | None = None
        self._expires: float | None = None  # of the peer's last certificate
        self.drain_to: int | None = None
        # The peer's wall clock, and our monotonic time then.
        self._peer_clock: tuple[float, float] | None = None
        self._greeted: dict[int, tuple[Connection, wire.Hello]] = {}
        # Messages of connections that wait until the peer is held by this instance.
        self._holding: dict[int, list[wire.Message]] = {}
        self._unheld: set[int] = set()
        self._said: wire.Hello | None = None  # our hello on the dialed connection
        self._dials_at_once = False  # the next attempt uses other settings
        self._repeated = False  # the live connection has had its second hello
        self._nothing_passes = False
        self._timer: DelayedCall | None = None
        self._last_silence: float | None = None
        self._performers: dict[type, Callable[..., None]] = {
            links.Dial: self._dial,
            links.StopDialing: self._stop_dialing,
            links.Adopt: self._adopt,
            links.Abort: self._abort,
            links.Refuse: self._refuse,
            links.Changed: self._changed,
        }

    @property
    def connection(self) -> Connection | None:
        """The live connection, or None."""
        return self.replicator.connection

    @property
    def is_connected(self) -> bool:
        """Whether a connection of the peer is still open, be it on its way to the close."""
        return bool(self._greeted)

    @property
    def generation(self) -> str | None:
        """The generation of the live connection, for logs and status."""
        connection = self.connection
        if connection is None:
            return None
        return f"{connection.generation.boot}:{connection.generation.counter}"

    # -- called by connections (LinkPort) -----------------------------------------------------

    def hello(self, generation: wire.Generation) -> wire.Hello:
        """Return our hello for a new connection."""
        self._said = self._hello(generation)
        return self._said

    def _hello(self, generation: wire.Generation) -> wire.Hello:
        """Return a hello with the current state."""
        node, log = self._node, self._node.log
        return wire.Hello(
            version=wire.VERSION,
            node=node.name,
            software=node.software,
            generation=generation,
            log=log.id,
            epochs=log.state.epochs(),
            next=log.next,
            cursor=log.cursor(self.peer),
            wants=self.settings.receive,
            ping_interval=node.config.heartbeat.ping_interval,
            compress=("zstd",),
            relays=self.settings.relay,
            segment_bytes=SEGMENT_BYTES
            if self.dialer is None and self.replicator.path.narrow
            else 0,
            time=wire.sendable(wall()),
        )

    def greeted(self, connection: Connection, hello: wire.Hello) -> None:
        """Take over a peer that has proved its identity and sent its hello.

        From other instances of this node, where there are some: then the connection is adopted or
        refused with all known that they have stored.
        """
        self._holding[connection.key] = []
        generation, held = connection.generation, partial(self._held, connection, hello)
        self._node.log.hold(self.peer, generation.boot, generation.counter, held)

    def _held(self, connection: Connection, hello: wire.Hello, outcome: object) -> None:
        """Adopt or refuse a connection, if this instance may have the peer."""
        waiting = self._holding.pop(connection.key, None)
        if waiting is None:  # it was lost meanwhile
            return
        if isinstance(outcome, LinkdError):
            self._unheld.add(connection.key)
            moved = isinstance(outcome, PeerMoved)
            reason, wait = ("replaced", None) if moved else ("busy", 1.0)
            connection.goodbye(wire.goodbye(reason, str(outcome), wait))
            return
        self._adopt_or_refuse(connection, hello)
        for message in waiting:
            self.received(connection, message)

    def _adopt_or_refuse(self, connection: Connection, hello: wire.Hello) -> None:
        self._greeted[connection.key] = (connection, hello)
        greeted = links.Greeted(
            connection.key,
            connection.generation,
            hello.log,
            connection.dialed,
            connection.address,
        )
        self._run(greeted)

    def received(self, connection: Connection, message: wire.Message) -> None:
        """Handle a message after the hello."""
        waiting = self._holding.get(connection.key) if self._holding else None
        if waiting is not None:
            waiting.append(message)
            return
        if type(message) is wire.Hello and connection is self.connection:
            self._hello_again(connection, message)
        else:
            self.replicator.received(connection, message)

    def lost(
        self,
        connection: Connection,
        reason: Reason,
        detail: str,
        goodbye: wire.Goodbye | None,
    ) -> None:
        """Handle the end of a greeted connection."""
        unheld = self._holding.pop(connection.key, None) is not None
        if unheld or connection.key in self._unheld:
            self._unheld.discard(connection.key)
            if connection.dialed:
                retry_after = None if goodbye is None else goodbye.retry_after
                kind: FailureKind = "busy" if reason == "busy" else "broken"
                self.failed(AttemptFailed(kind, reason, detail, retry_after))
            return
        self._greeted.pop(connection.key, None)
        retry_after = None if goodbye is None else goodbye.retry_after
        silent = reason in ("ping-timeout", "silence")
        if connection is self.connection:
            self._last_silence = connection.silence_seconds()
            self.replicator.drop()
        spread = connection.return_spread
        if self.dialer is not None and retry_after is not None:
            self.dialer.skip_url()  # another URL of the peer may take the link at once
        self._run(links.Lost(connection.key, reason, detail, retry_after, silent, spread))
        if self._dials_at_once:
            self._dials_at_once = False
            self.kick()

    def attempting(self, url: str, address: str | None) -> None:
        """Note that an attempt has begun."""
        self._run(links.AttemptBegan())

    def opening(self) -> None:
        """Note that TCP is established."""
        self._run(links.Opening())

    def failed(self, failure: AttemptFailed) -> None:
        """Note that the attempt has failed."""
        self._run(
            links.FailedAttempt(
                failure.kind,
                failure.reason,
                failure.detail,
                failure.retry_after,
                failure.return_spread,
            )
        )

    def turned_away(self, reason: Reason, detail: str) -> None:
        """Show in status, where the peer dials, that a connection under its name was refused."""
        if self.role == "listener":
            self._run(links.FailedAttempt("rejected", reason, detail))

    # -- called by the replicator -------------------------------------------------------------

    def log_event(self, level: str, event: str, **fields: str | int | float | None) -> None:
        """Log an event of this link."""
        fields["peer"] = self.peer
        self._node.log_event(level, event, **fields)

    def acknowledged(self) -> None:
        """Note that an owed record has been acknowledged."""
        if self.link.state == "up":
            self._run(links.Acknowledged())

    def diverged(self, detail: str) -> None:
        """Note that the two logs have no epoch in common."""
        self._run(links.Diverged(detail))

    def narrowed(self) -> None:
        """Log that the path loses large messages, and dial with smaller TCP segments."""
        self._narrow(SEGMENT_BYTES)
        self._log_narrow(f"small messages pass to {self.peer}, large ones do not")

    def _log_narrow(self, found: str) -> None:
        detail = f"{found}: MTU? The next connection is dialed with smaller TCP segments"
        self.log_event("warn", "link.large-messages-lost", detail=detail)

    def _narrow(self, segment_bytes: int) -> bool:
        """Limit the dialer's TCP segments; return whether that changes anything."""
        dialer = self.dialer
        limit = max(segment_bytes, LEAST_SEGMENT_BYTES)
        if dialer is None or not segment_bytes or 0 < dialer.segment_bytes <= limit:
            return False
        dialer.segment_bytes = limit
        self._dials_at_once = True
        return True

    # -- called by the node -------------------------------------------------------------------

    def start(self) -> None:
        """Start: dial, or wait for the peer to dial."""
        self._run(links.Start())

    def stop(self, detail: str, retry_after: float | None = None) -> None:
        """Stop: send a goodbye, and stop dialing."""
        connection = self.connection
        if connection is not None:
            if self.link.state == "up":
                self.replicator.acknowledge()
            connection.goodbye(wire.goodbye("stopped", detail, retry_after))
        self._run(links.Stop(detail))
        self.replicator.drop()
        self.replicator.stop()

    def kick(self) -> None:
        """Dial immediately."""
        self._run(links.RetryNow())

    def network_changed(self) -> None:
        """Dial again where it may help: addresses or routes of this host have changed."""
        self._run(links.NetworkChanged())

    def taken(self) -> None:
        """End the connection: another instance of this node has the peer now."""
        connection = self.connection
        if connection is not None:
            self.replicator.drop()
            detail = "another instance of this node has the peer now"
            self.log_event("info", "link.replaced", address=connection.address, detail=detail)
            connection.abort("replaced", detail)

    def send_away(self, detail: str, retry_after: float) -> None:
        """End a connection that the peer dialed: another instance of this node may take it."""
        connection = self.connection
        if connection is not None and not connection.dialed:
            self.replicator.drop()
            connection.goodbye(wire.goodbye("busy", detail, retry_after))

    def rejoin(self, why: str) -> None:
        """Restart the link from what both ends have on disk."""
        connection = self.connection
        if connection is not None:
            self.replicator.drop()  # send nothing more on it: records may be missing
            connection.abort("closed", why)

    def volatile(self, payload: bytes) -> bool:
        """Send volatile records; return False where they were dropped."""
        return self.link.state == "up" and self.replicator.volatile(payload)

    # -- performing ---------------------------------------------------------------------------

    def _run(self, input: links.Input) -> None:
        """Pass an input to the core, perform the effects, and re-arm the timer."""
        for effect in self.link.handle(input, self._clock.seconds()):
            self._performers[type(effect)](effect)
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
        deadline = self.link.deadline
        if deadline is not None:
            after = max(0.0, deadline - self._clock.seconds())
            self._timer = self._clock.callLater(after, self._run, links.Deadline())

    def _dial(self, effect: links.Dial) -> None:
        if self.dialer is not None:
            self.dialer.dial(effect.after)

    def _stop_dialing(self, effect: links.StopDialing) -> None:
        if self.dialer is not None:
            self.dialer.stop()

    def _adopt(self, effect: links.Adopt) -> None:
        """Make a greeted connection the live one, and start the session on it."""
        connection, theirs = self._greeted[effect.connection]
        self.replicator.drop()
        owner = self._other_owner(theirs.log)
        if owner is not None:
            self._refuse_log(connection, theirs.log, owner)
            return
        self.peer_version = theirs.software
        self._expires = connection.certificate_expires
        self._note_clock(theirs.time, connection.began)
        self._repeated = False
        connection.on_round_trip = partial(self._node.observe, "round trip", self.peer)
        ours = self._hello(connection.generation)
        if connection.dialed and self._narrow(theirs.segment_bytes):
            self._log_narrow(f"small messages from {self.peer} pass, large ones do not")
            connection.abort("closed", "it is dialed again with smaller TCP segments")
            return
        if connection.dialed:
            waits = self._said is None or repeats(self._said, ours, theirs)
        else:
            connection.answer(ours)
            waits = outdated(theirs, ours.cursor)
        if not waits:
            self._agree(connection, ours, theirs)
        elif theirs.version < wire.HELLO_AGAIN_VERSION:
            connection.abort("closed", "another connection carried records during the handshake")
        else:
            self.replicator.wait_for_hello(connection)
            if connection.dialed:
                self._said = ours
                connection.send(wire.encode(ours))

    def _note_patterns(self, wants: tuple[str, ...]) -> None:
        """Warn where the peer receives none of the channels that this node sends."""
        sends, before = self.settings.send, self._nothing_passes
        self._nothing_passes = bool(sends) and not may_overlap(sends, wants)
        if self._nothing_passes and not before:
            detail = (
                f"nothing that is published here passes to {self.peer}: this node's send ="
                f" {_in_short(sends)}, its receive = {_in_short(wants)}"
            )
            self.log_event("warn", "link.nothing-passes", detail=detail)

    def _note_clock(self, stamp: float, began: float) -> None:
        """Record the peer's wall clock; warn where it differs much from ours.

        A hello may take seconds to arrive. The peer sent it after the connection began, so any
        difference within that time proves nothing: only the smallest proven skew counts.

        Args:
            stamp: The peer's wall clock when it sent its hello; 0: not given.
            began: When the connection began, monotonic seconds.
        """
        self._peer_clock = None
        if not stamp:
            return
        now, ours = self._clock.seconds(), wall()
        ahead = stamp - ours
        skew = ahead if ahead > 0 else min(0.0, ahead + max(0.0, now - began))
        self._peer_clock = (ours + skew, now)
        if abs(skew) > MAX_SKEW_SECONDS:
            where = "ahead of" if skew > 0 else "behind"
            detail = f"the clock of {self.peer} is {abs(skew):.0f} s {where} this host's"
            self.log_event("warn", "link.clock-skew", skew_seconds=round(skew, 1), detail=detail)

    def _clock_skew(self) -> float | None:
        """Return by how many seconds the peer's clock is ahead of ours, or None where unknown.

        Steps of our clock show immediately, steps of the peer's clock with its next hello.
        """
        if self._peer_clock is None:
            return None
        stamp, at = self._peer_clock
        return stamp + (self._clock.seconds() - at) - wall()

    def _other_owner(self, log: str) -> str | None:
        """Return the node whose log the peer calls its own, or None where nothing contradicts.

        The owner of a log decides which of its records count as received.
        """
        node, stored = self._node, self._node.log
        if log == stored.id:
            return node.name
        owner = node.ends.owner(log)
        if owner is None and not self.settings.relay:
            owner = stored.state.origins.node(log)
            named = [self.peer] if owner is None else [self.peer, owner]
            cursors = [stored.cursor(name) for name in named]
            if any(cursor is not None and cursor.log == log for cursor in cursors):
                return None  # its own records: under this name, or the one before
        return None if owner == self.peer else owner

    def _refuse_log(self, connection: Connection, log: str, owner: str) -> None:
        """Refuse a peer that presents another node's log as its own."""
        detail = (
            f"{self.peer} at {connection.address} calls {owner}'s log ({log}) its own: a copy of"
            f" {owner}'s state_dir, or a forgery; give {self.peer} an empty state_dir"
        )
        self._log_duplicate(connection.address, detail)
        connection.goodbye(wire.goodbye("duplicate", detail))

    def _log_duplicate(self, address: str, detail: str) -> None:
        """Log and show a second host with the peer's name, or one with another node's log."""
        self.log_event(
            "error", "link.cloned-host", address=address, reason="duplicate", detail=detail
        )
        self._node.refused(self.peer, address, "duplicate", detail)

    def _hello_again(self, connection: Connection, theirs: wire.Hello) -> None:
        """Accept the second hello of a connection, which replaces the first.

        A dialer sends it where another connection carried records while its first hello was in
        flight; the listener answers it. Messages of the listener in between are ignored.
        """
        first = self._greeted[connection.key][1]
        expected = self.replicator.waits if connection.dialed else not self._repeated
        if not expected or (theirs.node, theirs.log) != (first.node, first.log):
            connection.fail("protocol", "unexpected second hello", 3002)
            return
        self._repeated = True
        ours = self._said
        if ours is None or not connection.dialed:
            ours = self._hello(connection.generation)
            connection.send(wire.encode(ours))
        self._agree(connection, ours, theirs)

    def _agree(self, connection: Connection, ours: wire.Hello, theirs: wire.Hello) -> None:
        """Start the session on a connection whose hellos are both current."""
        self._note_patterns(theirs.wants)
        agreed = self.replicator.begin(connection, ours, theirs)
        self._node.dispatcher.changed()
        if agreed:
            if self.link.state == "diverged":
                self._run(links.Resynced())
            if self.link.state == "resuming":
                owed = self.replicator.session.outbound.owed_records > 0
                self._run(links.Resumed(connection.key, owed))
        self.replicator.go_on()

    def _abort(self, effect: links.Abort) -> None:
        held = self._greeted.get(effect.connection)
        if held is not None:
            if held[0] is self.connection:
                self._last_silence = held[0].silence_seconds()
                self.replicator.drop()
                if effect.reason == "replaced":
                    address = held[0].address
                    self.log_event("info", "link.replaced", address=address, detail=effect.detail)
            held[0].abort(effect.reason, effect.detail)

    def _refuse(self, effect: links.Refuse) -> None:
        held = self._greeted.pop(effect.connection, None)
        if held is None:
            return
        if effect.reason == "duplicate":
            self._log_duplicate(held[0].address, effect.detail)
        # One that was upgraded before a drain began, and comes too late.
        wait = self._node.busy() if effect.reason == "stopped" else None
        held[0].goodbye(wire.goodbye(effect.reason, effect.detail, wait))

    def _changed(self, effect: links.Changed) -> None:
        silence, self._last_silence = self._last_silence, None
        self._node.recorder.changed(self, effect, silence)

    # -- status -------------------------------------------------------------------------------

    def measured(self, silence: float | None) -> dict[str, str | int | float | None]:
        """Return measured fields for the log line of a link that goes down."""
        if self.link.state not in ("waiting", "rejected"):
            return {}
        upcoming = None if self.dialer is None else self.dialer.next_attempt
        delay = None if upcoming is None else max(0.0, upcoming - self._clock.seconds())
        return {
            "noticed_after_seconds": None if silence is None else round(silence, 3),
            "delay_seconds": None if delay is None else round(delay, 3),
            "attempts": self.link.attempts or None,
        }

    def status(self, outage: Current | None, last_reason: str | None) -> LinkStatus:
        """Return the link's status.

        Args:
            outage: The current outage, or None.
            last_reason: Why the newest outage began, including earlier runs.
        """
        now, link, connection = self._clock.seconds(), self.link, self.connection
        outbound = self.replicator.session.outbound
        upcoming = None if self.dialer is None else self.dialer.next_attempt
        silence = None if connection is None else connection.silence_seconds()
        heard = silence
        if link.state == "up":
            outage = None
        elif outage is not None and silence is None and not outage.never_up:
            heard = outage.seconds
        reason: str | None = link.reason or (last_reason if link.state == "up" else None)
        detail = link.detail
        if outage is not None and reason is None:
            reason = outage.reason
            detail = "it has never been up" if outage.never_up else None
        return LinkStatus(
            peer=self.peer,
            role=self.role,
            state=link.state,
            since_seconds=now - link.since if outage is None else outage.seconds,
            generation=self.generation,
            address=None if connection is None else connection.address,
            rtt_seconds=None if connection is None else connection.rtt_seconds,
            silence_seconds=silence,
            backlog_records=outbound.owed_records,
            backlog_bytes=outbound.owed_bytes,
            backlog_age_seconds=self.replicator.backlog_age(),
            sent_records=outbound.sent_records,
            received_records=self.replicator.session.inbound.received_records,
            attempts=link.attempts,
            next_attempt_seconds=None if upcoming is None else max(0.0, upcoming - now),
            reason=reason,
            detail=detail,
            peer_version=self.peer_version,
            certificate_expires_seconds=None if self._expires is None else self._expires - wall(),
            required=self.settings.required,
            large_messages_lost=self.replicator.path.narrow
            or (self.dialer is not None and self.dialer.segment_bytes > 0),
            nothing_passes=self._nothing_passes,
            not_relayed_records=self.replicator.not_relayed_records,
            down_since=None if outage is None else rfc3339(outage.began),
            down_seconds=None if outage is None else outage.seconds,
            last_heard_seconds=heard,
            outage_reason=reason,
            attempt_seconds=None if link.attempt_began is None else now - link.attempt_began,
            attempt_reason=link.attempt_reason,
            attempt_detail=link.attempt_detail,
            compressed=outbound.compresses if link.state == "up" else None,
            silence_limit_seconds=None if connection is None else connection.silence_limit,
            clock_skew_seconds=self._clock_skew() if link.state == "up" else None,
        )


def _in_short(patterns: tuple[str, ...]) -> str:
    """Return the first patterns of a set, for a log line."""
    more = f" and {len(patterns) - 5} more" if len(patterns) > 5 else ""
    return f"{list(patterns[:5])}{more}"
