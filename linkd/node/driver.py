"""The driver of one link: performs what the two pure cores decide, tells them what came of it.

`core.link` decides about connections, `core.session` about records. Append comes before send, and
commit before ack: both follow from the order in which effects are performed here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, Protocol

from linkd.clock import Clock, Timer, wall
from linkd.config import Config, PeerSettings
from linkd.core import link as links
from linkd.core import session_types as sessions
from linkd.core import wire
from linkd.core.backoff import Backoff
from linkd.core.batch import Batch
from linkd.core.channels import Patterns
from linkd.core.session import Greeting, Session
from linkd.errors import AttemptFailed, Gap, LinkdError, Reason, RemoteProtocolError
from linkd.log.engine import Appended, Log
from linkd.net.ports import Connection, Dialer
from linkd.node.codec import pack, unpack
from linkd.status import LinkStatus

_READ_BYTES = 512 * 1024


class Around(Protocol):
    """What a driver needs of its node."""

    name: str
    software: str
    config: Config
    log: Log
    clock: Clock

    def acked_by(self, peer: str) -> int:
        """Return the offset below which the peer has everything, as noted on disk."""

    def peer_acked(self, driver: LinkDriver, next: int) -> None:
        """The peer has acknowledged."""

    def passed(self, message: wire.Volatile, driver: LinkDriver) -> None:
        """A volatile message came."""

    def changed(self, driver: LinkDriver, change: links.Changed, silence: float | None) -> None:
        """The link's state has changed; `silence`: of its connection, where that has just ended."""

    def tell(self, level: str, event: str, **fields: str | int | float | None) -> None:
        """Say something in the log."""

    def count(self, what: str, peer: str, channel: str, records: int) -> None:
        """Count records that were refused, expired, dropped or lost."""

    def routes_changed(self) -> None:
        """What some peer wants has changed."""


class LinkDriver:
    """One link; `linkd.net.ports.LinkPort`.

    Attributes:
        peer: The peer's name.
        link: Its connections.
        session: Its records.
        connection: The one that counts, or None.
        drain_to: The end of what was owed when the link came up, until the peer has it.
    """

    def __init__(self, around: Around, settings: PeerSettings, backoff: Backoff | None) -> None:
        self.peer = settings.name
        self.role: Literal["dialer", "listener"] = "dialer" if settings.dial else "listener"
        self.settings = settings
        self._around = around
        self._log = around.log
        self._clock = around.clock
        self.link = links.Link(around.name, settings.name, backoff)
        self.session = self._new_session(settings)
        self.session.outbound.begin(around.acked_by(settings.name))
        self.session.outbound.log_next = self._log.next
        self.dialer: Dialer | None = None
        self.connection: Connection | None = None
        self.peer_version: str | None = None
        self._greeted: dict[int, tuple[Connection, wire.Hello]] = {}
        self._said: wire.Hello | None = None
        self._ack_due = False
        self._unproved = False  # up, but nothing of what was owed has been acknowledged yet
        self.drain_to: int | None = None
        self._link_timer: Timer | None = None
        self._wake_timer: Timer | None = None
        self._last_silence: float | None = None
        self._performers: dict[type, Callable[..., None]] = {
            sessions.Send: self._send,
            sessions.Read: self._read,
            sessions.Store: self._store,
            sessions.Rewind: self._rewind,
            sessions.Acked: self._acked,
            sessions.Pass: self._pass,
            sessions.Tell: self._tell,
            sessions.Refused: self._refused,
            sessions.Expired: self._expired,
            sessions.Gone: self._gone,
            sessions.Diverged: self._diverged,
        }
        self._link_performers: dict[type, Callable[..., None]] = {
            links.Dial: self._dial,
            links.StopDialing: self._stop_dialing,
            links.Adopt: self._adopt,
            links.Abort: self._abort,
            links.Refuse: self._refuse,
            links.Changed: self._changed,
        }

    def _new_session(self, settings: PeerSettings) -> Session:
        """Make the session, by the settings in force."""
        around = self._around
        bounds = sessions.SessionSettings(
            node=around.name,
            peer=settings.name,
            send=Patterns(settings.send),
            receive=Patterns(settings.receive),
        )
        return Session(bounds, around.log.epoch_below, pack if settings.compress else None, unpack)

    # -- what the connections tell (LinkPort) -------------------------------------------------

    def hello(self, generation: wire.Generation) -> wire.Hello:
        """Return what we say first on a connection."""
        around, log = self._around, self._log
        self._said = wire.Hello(
            version=wire.VERSION,
            node=around.name,
            software=around.software,
            generation=generation,
            log=log.id,
            epochs=log.epochs(),
            next=log.next,
            cursor=log.cursor(self.peer),
            wants=self.settings.receive,
            ping_interval=around.config.heartbeat.ping_interval,
            compress=("zstd",) if unpack is not None else (),
        )
        return self._said

    def greeted(self, connection: Connection, hello: wire.Hello) -> None:
        """The peer has proved who it is and said hello."""
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
        """A message after the hello; a late one of an older connection is dropped here."""
        if connection is not self.connection:
            return
        try:
            effects = self.session.received(message, self._clock.seconds())
        except RemoteProtocolError as error:
            self._around.tell("warn", "connection.protocol", peer=self.peer, detail=str(error))
            connection.abort("protocol", str(error))
            return
        if effects:
            self._perform(effects)

    def writable(self, connection: Connection) -> None:
        """There is room for more."""
        if connection is self.connection:
            self._perform(
                self.session.outbound.writable(True, self._log.clock(), self._clock.seconds())
            )

    def lost(
        self,
        connection: Connection,
        reason: Reason,
        detail: str,
        goodbye: wire.Goodbye | None,
    ) -> None:
        """A greeted connection has ended."""
        self._greeted.pop(connection.key, None)
        retry_after = None if goodbye is None else goodbye.retry_after
        silent = reason in ("ping-timeout", "silence")
        if connection is self.connection:
            self._last_silence = connection.silence_seconds()
            self._drop()
        self._run(links.Lost(connection.key, reason, detail, retry_after, silent))

    def attempting(self, url: str, address: str | None) -> None:
        """An attempt has begun."""
        self._run(links.AttemptBegan())

    def opening(self) -> None:
        """TCP stands."""
        self._run(links.Opening())

    def failed(self, failure: AttemptFailed) -> None:
        """The attempt has failed."""
        self._run(
            links.AttemptFailed(failure.kind, failure.reason, failure.detail, failure.retry_after)
        )

    # -- what the node tells ------------------------------------------------------------------

    def start(self) -> None:
        """Begin: dial, or wait to be dialed."""
        self._run(links.Start())

    def stop(self, detail: str, retry_after: float | None = None) -> None:
        """End: say goodbye, dial no more."""
        connection = self.connection
        if connection is not None:
            connection.goodbye(wire.Goodbye("stopped", detail, retry_after))
        self._run(links.Stop(detail))
        for timer in (self._link_timer, self._wake_timer):
            if timer is not None and timer.active():
                timer.cancel()
        self._link_timer = self._wake_timer = None

    def kick(self) -> None:
        """Try again at once."""
        self._run(links.Kick())

    def network_changed(self) -> None:
        """Addresses or routes of this host have changed."""
        self._run(links.NetworkChanged())

    def offer(self, batches: list[Batch], next: int) -> None:
        """Take what was committed: the peer's batches, and the log's new end."""
        outbound = self.session.outbound
        effects = outbound.offer(batches, next, self._log.clock(), self._clock.seconds())
        if effects or outbound.deadline is not None:
            self._perform(effects)

    def trimmed(self, first: int) -> None:
        """The log now begins at `first`; what was owed below is said when the peer is met."""
        outbound = self.session.outbound
        if outbound.acked < first and outbound.owed_records:
            self._recount()

    def volatile(self, payload: bytes) -> bool:
        """Send records that were never in a log; False if they had to be dropped."""
        connection = self.connection
        if connection is None or self.link.state != "up" or not connection.writable:
            return False
        connection.send(payload)
        return True

    def owes(self, channel: str) -> bool:
        """Tell whether the peer gets `channel`."""
        wants = self.session.outbound.wants
        return Patterns(self.settings.send).match(channel) and (
            wants is None or wants.match(channel)
        )

    # -- performing ---------------------------------------------------------------------------

    def _run(self, input: links.Input) -> None:
        """Feed the link's core, perform its effects, re-arm its timer."""
        for effect in self.link.handle(input, self._clock.seconds()):
            self._link_performers[type(effect)](effect)
        self._arm_link()

    def _arm_link(self) -> None:
        """Have the link's core woken at its deadline."""
        deadline = self.link.deadline
        if self._link_timer is not None and self._link_timer.active():
            self._link_timer.cancel()
        self._link_timer = None
        if deadline is not None:
            after = max(0.0, deadline - self._clock.seconds())
            self._link_timer = self._clock.callLater(after, self._run, links.Wake())

    def _perform(self, effects: list[sessions.Effect]) -> None:
        """Perform a session's effects; ask for more as long as the connection has room."""
        outbound, performers = self.session.outbound, self._performers
        while True:
            for effect in effects:
                performers[type(effect)](effect)
            connection = self.connection
            if connection is None or not outbound.eager:
                break
            if not connection.writable:
                outbound.writable(False, 0.0, 0.0)
                break
            effects = outbound.writable(True, self._log.clock(), self._clock.seconds())
            if not effects:
                break
        if outbound.deadline is not None and self._wake_timer is None:
            after = max(0.0, outbound.deadline - self._clock.seconds())
            self._wake_timer = self._clock.callLater(after, self._wake)

    def _wake(self) -> None:
        """The session's deadline may have come."""
        self._wake_timer = None
        self._perform(self.session.wake(self._clock.seconds()))

    def _send(self, effect: sessions.Send) -> None:
        if self.connection is not None:
            self.connection.send(effect.payload)

    def _read(self, effect: sessions.Read) -> None:
        try:
            batches = self._log.read(effect.position, effect.max_bytes)
        except Gap as gap:
            self._perform(self.session.outbound.missing(gap.first))
            return
        if batches is None:
            done = partial(self._fetched, self.connection)
            self._log.fetch(effect.position, effect.max_bytes, done)
            return
        self._perform(self.session.outbound.read(batches, self._log.clock(), self._clock.seconds()))

    def _fetched(self, connection: Connection | None, batches: list[Batch] | LinkdError) -> None:
        """Take what was read from disk, unless for an older connection."""
        if connection is not self.connection or connection is None:
            return
        outbound = self.session.outbound
        if isinstance(batches, Gap):
            self._perform(outbound.missing(batches.first))
        elif isinstance(batches, LinkdError):
            self._around.tell("error", "log.damaged", peer=self.peer, detail=str(batches))
            connection.abort("closed", str(batches))
        else:
            self._perform(outbound.read(batches, self._log.clock(), self._clock.seconds()))

    def _store(self, effect: sessions.Store) -> None:
        source = effect.batch.source
        assert source is not None  # a received batch has one
        self._log.store(effect.batch, partial(self._stored, source.next))

    def _stored(self, next: int, outcome: Appended | LinkdError) -> None:
        """A received batch is on disk, or was there before."""
        if isinstance(outcome, LinkdError):
            self._around.tell("error", "log.disk-failed", peer=self.peer, detail=str(outcome))
            return
        self.session.inbound.stored(next)
        if not self._ack_due:
            self._ack_due = True
            self._clock.callLater(0, self._flush_ack)

    def _flush_ack(self) -> None:
        """Acknowledge what one commit has brought to disk, in one message."""
        self._ack_due = False
        self._perform(self.session.inbound.ack())

    def _rewind(self, effect: sessions.Rewind) -> None:
        self._log.set_cursor(self.peer, effect.cursor, _ignore)

    def _acked(self, effect: sessions.Acked) -> None:
        self._around.peer_acked(self, effect.next)
        if self._unproved and self.link.state == "up":
            self._unproved = False
            self._run(links.Acknowledged())

    def _pass(self, effect: sessions.Pass) -> None:
        self._around.passed(effect.message, self)

    def _tell(self, effect: sessions.Tell) -> None:
        self._around.tell(effect.level, effect.event, peer=self.peer, detail=effect.detail)

    def _refused(self, effect: sessions.Refused) -> None:
        self._around.count("refused", self.peer, effect.channel, effect.count)
        self._around.tell(
            "warn",
            "link.unwanted-records",
            peer=self.peer,
            channel=effect.channel,
            records=effect.count,
            detail=f"{self.peer} sent {effect.channel}, which is not in `receive`: left out",
        )

    def _expired(self, effect: sessions.Expired) -> None:
        self._around.count("expired", self.peer, effect.channel, effect.count)

    def _gone(self, effect: sessions.Gone) -> None:
        whose = f"{self.peer}'s log" if effect.inbound else "this node's log"
        detail = f"offsets {effect.first} to {effect.next - 1} of {whose} are gone"
        self._around.count("gap", self.peer, "", effect.next - effect.first)
        self._around.tell(
            "error",
            "link.gap",
            peer=self.peer,
            first=effect.first,
            next=effect.next,
            detail=detail,
        )

    def _diverged(self, effect: sessions.Diverged) -> None:
        self._run(links.Diverged(effect.detail))

    def _dial(self, effect: links.Dial) -> None:
        if self.dialer is not None:
            self.dialer.dial(effect.after)

    def _stop_dialing(self, effect: links.StopDialing) -> None:
        if self.dialer is not None:
            self.dialer.stop()

    def _adopt(self, effect: links.Adopt) -> None:
        """Make a greeted connection the one that counts, and begin the session on it."""
        connection, theirs = self._greeted[effect.connection]
        self._drop()
        self.connection = connection
        self.peer_version = theirs.software
        if connection.dialed and self._said is not None:
            ours = self._said
        else:
            ours = self.hello(connection.generation)
            connection.answer(ours)
        acked = self._around.acked_by(self.peer)
        outbound = self.session.outbound
        before = (outbound.acked, outbound.wants)
        outbound.log_next = self._log.next
        effects = self.session.greeted(
            Greeting(ours, theirs, acked, connection.writable), self._clock.seconds()
        )
        if (outbound.acked, outbound.wants) != before:
            self._recount()
        self._around.routes_changed()
        if not any(isinstance(effect, sessions.Diverged) for effect in effects):
            owed = self._unproved = outbound.owed_records > 0
            self._run(links.Resumed(connection.key, owed))
        self._perform(effects)

    def _recount(self) -> None:
        """Count anew what the peer is owed, after its position has jumped."""
        outbound = self.session.outbound
        outbound.owed_records = outbound.owed_bytes = 0
        position = max(outbound.acked, self._log.first)
        if position >= self._log.next:
            return
        for channel, (records, size) in self._log.owed(position).items():
            if self.owes(channel):
                outbound.owe(records, size)

    def begin(self) -> None:
        """Count what the peer is owed, once the log is open."""
        self._recount()

    def _drop(self) -> None:
        """Let go of the connection that counted."""
        if self.connection is not None:
            self.connection = None
            self.session.disconnected()

    def _abort(self, effect: links.Abort) -> None:
        held = self._greeted.get(effect.connection)
        if held is not None:
            if held[0] is self.connection:
                self._last_silence = held[0].silence_seconds()
                self._drop()
            held[0].abort(effect.reason, effect.detail)

    def _refuse(self, effect: links.Refuse) -> None:
        held = self._greeted.pop(effect.connection, None)
        if held is not None:
            message = wire.Goodbye(effect.reason, effect.detail)
            held[0].goodbye(message)

    def _changed(self, effect: links.Changed) -> None:
        silence, self._last_silence = self._last_silence, None
        self._around.changed(self, effect, silence)

    # -- what is true now ---------------------------------------------------------------------

    @property
    def generation(self) -> str | None:
        """The generation of the connection that counts, for people and logs."""
        return None if self.connection is None else _say(self.connection.generation)

    def measured(self, silence: float | None) -> dict[str, str | int | float | None]:
        """Return what was measured about the link's going down, for its line in the log."""
        upcoming = None if self.dialer is None else self.dialer.next_attempt
        delay = None if upcoming is None else max(0.0, upcoming - self._clock.seconds())
        if self.link.state not in ("waiting", "rejected"):
            return {}
        return {
            "noticed_after_seconds": None if silence is None else round(silence, 3),
            "delay_seconds": None if delay is None else round(delay, 3),
            "attempts": self.link.attempts or None,
        }

    def rejoin(self) -> None:
        """Begin the link anew, after an operator's resync."""
        connection = self.connection
        if connection is not None:
            connection.abort("closed", "the link begins anew after a resync")

    def backlog_age(self) -> float | None:
        """Return the age in seconds of the oldest record owed, or None."""
        outbound = self.session.outbound
        if not outbound.owed_records:
            return None
        stamp = outbound.oldest_stamp()
        if stamp is None:
            stamp = self._log.stamp_at(max(outbound.acked, self._log.first))
        return None if stamp is None else max(0.0, self._log.clock() - stamp)

    def status(self) -> LinkStatus:
        """Return what is true now."""
        now, link, connection = self._clock.seconds(), self.link, self.connection
        dialer, outbound = self.dialer, self.session.outbound
        upcoming = None if dialer is None else dialer.next_attempt
        expires = None if connection is None else connection.certificate_expires
        if expires is not None:
            expires -= wall()
        return LinkStatus(
            peer=self.peer,
            role=self.role,
            state=link.state,
            since_seconds=now - link.since,
            generation=self.generation,
            address=None if connection is None else connection.address,
            rtt_seconds=None if connection is None else connection.rtt_seconds,
            silence_seconds=None if connection is None else connection.silence_seconds(),
            backlog_records=outbound.owed_records,
            backlog_bytes=outbound.owed_bytes,
            backlog_age_seconds=self.backlog_age(),
            sent_records=outbound.sent_records,
            received_records=self.session.inbound.received_records,
            attempts=link.attempts,
            next_attempt_seconds=None if upcoming is None else max(0.0, upcoming - now),
            reason=link.reason,
            detail=link.detail,
            peer_version=self.peer_version,
            certificate_expires_seconds=expires,
            required=self.settings.required,
        )


def _ignore(outcome: Appended | LinkdError) -> None:
    """What follows in the log waits for it."""


def _say(generation: wire.Generation) -> str:
    """Return a generation for people and logs."""
    return f"{generation.boot}:{generation.counter}"
