"""The links of a node, one for each configured peer; what is kept for all of them together.

Cursors of absent peers, callers that wait for an ack, the memory that received records take.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator
from heapq import heapify, heappop, heappush
from random import Random
from secrets import token_hex
from typing import TYPE_CHECKING, Literal

import msgspec
from twisted.internet.defer import CancelledError, Deferred, succeed

from linkd.config import Config, PeerSettings
from linkd.core.backoff import Backoff
from linkd.log.base import Log
from linkd.log.cursor_store import CursorStore
from linkd.log.interface import PeerCursor
from linkd.net.dialer import LinkDialer
from linkd.node.backlog import COUNT_SECONDS, BacklogCounts, count
from linkd.node.link_driver import LinkDriver
from linkd.protocol.records import BATCH_OVERHEAD_BYTES
from linkd.status import AbsentPeer

if TYPE_CHECKING:
    from linkd.node.node import Node
    from linkd.node.replicator import Replicator

COMMAND = "command"
"""Kind of shared values: what another instance is asked to do with a link, by `PEER/COMMAND`."""

Command = Literal["kick", "rejoin", "revoke"]

BUSY_SECONDS = 1.0
"""Peers that are sent away come back after so long, if no other instance takes them."""

KEPT_SECONDS = 86_400.0
"""Running time for which the cursor of a peer that is not configured is kept, in seconds."""

NOTED_EVERY = 60.0
"""Interval of saving how long a peer has been absent, which adds up over restarts."""


class _Absent(msgspec.Struct):
    """A peer that is no longer configured.

    Attributes:
        cursor: Its position in our log.
        owes: Returns whether it receives a channel, as far as known.
        drops: Its entry had `when_full = "drop-oldest"`.
        seconds: Running time since its entry was removed.
        records: Owed records, at the last count.
        bytes: Their size.
    """

    cursor: PeerCursor
    owes: Callable[[str], bool]
    drops: bool
    seconds: float
    records: int = 0
    bytes: int = 0


class AbsentPeers:
    """The peers with a cursor in our log that are no longer configured.

    Args:
        log: The node's log.
        cursors: Where the peers' cursors are.
        log_event: Logs an event.
        forgotten: Called with a peer whose cursor was removed.
    """

    def __init__(
        self,
        log: Log,
        cursors: CursorStore,
        log_event: Callable[..., None],
        forgotten: Callable[[str], None],
    ) -> None:
        self._log = log
        self._cursors = cursors
        self._log_event = log_event
        self._forgotten = forgotten
        self._absent: dict[str, _Absent] = {}
        self._ticked: float | None = None
        self._noted = 0.0
        self._counting: Iterator[None] = iter(())

    def start(self, configured: set[str]) -> None:
        """Find the peers whose entries were removed before this run."""
        counted: dict[int, tuple[int, int]] = {}  # by position: many are at the log's end
        for name, cursor in list(self._cursors.peers.items()):
            if name in configured:
                if cursor.absent_seconds is not None:  # configured again before this run
                    self._cursors.set_peer(msgspec.structs.replace(cursor, absent_seconds=None))
                continue
            absent = _Absent(cursor, lambda _: True, False, cursor.absent_seconds or 0.0)
            if cursor.acked not in counted:
                deque(self._count(absent), 0)
                counted[cursor.acked] = absent.records, absent.bytes
            absent.records, absent.bytes = counted[cursor.acked]
            self._add(absent)

    def leave(
        self, settings: PeerSettings, owes: Callable[[str], bool], records: int, size: int
    ) -> None:
        """Keep the cursor of a peer whose entry was removed, and log what it is owed.

        Args:
            settings: Its former settings.
            owes: Returns whether it receives a channel.
            records: Owed records.
            size: Their size in bytes.
        """
        cursor = self._cursors.peers.get(settings.name)
        if cursor is not None:
            drops = settings.when_full == "drop-oldest"
            self._add(_Absent(cursor, owes, drops, 0.0, records, size))

    def _add(self, absent: _Absent) -> None:
        name = absent.cursor.peer
        self._absent[name] = absent
        if self._log.is_keeper:
            self._note(absent)
        left = (KEPT_SECONDS - absent.seconds) / 3600
        self._log_event(
            "error" if absent.records else "info",
            "link.absent",
            peer=name,
            records=absent.records,
            bytes=absent.bytes,
            detail=f"{name} is not configured any more and is owed {_owed(absent)}; its cursor is"
            f" kept for {left:.1f} h of running time: put its [[peer]] back, or run `linkd peers"
            f" --forget {name}`",
        )

    def back(self, name: str) -> None:
        """Continue at the kept cursor of a peer that is configured again."""
        absent = self._absent.pop(name, None)
        if absent is not None:
            self._cursors.set_peer(msgspec.structs.replace(absent.cursor, absent_seconds=None))
            self._log_event(
                "info",
                "link.returned",
                peer=name,
                detail=f"{name} is configured again; the link goes on at offset"
                f" {absent.cursor.acked}",
            )

    def noted(self, cursor: PeerCursor) -> None:
        """Take what another instance has noted of a peer, if that is absent."""
        absent = self._absent.get(cursor.peer)
        if absent is not None:
            absent.cursor, absent.seconds = cursor, cursor.absent_seconds or 0.0

    def drop(self, name: str) -> None:
        """Forget a peer, as another instance did."""
        if self._absent.pop(name, None) is not None:
            self._forgotten(name)

    def follow(self, configured: Collection[str]) -> None:
        """Find the peers that are absent since another instance had their entries removed."""
        if len(self._cursors.peers) > len(configured) + len(self._absent):
            for name in self._cursors.peers.keys() - self._absent.keys() - set(configured):
                cursor = self._cursors.peers[name]
                seconds = cursor.absent_seconds or 0.0
                self._add(_Absent(cursor, lambda _: True, False, seconds))

    def wait(self) -> None:
        """Count no time until the next tick: another instance does, or still has such peers."""
        self._ticked = None

    def count(self, name: str) -> Iterator[None]:
        """Count again what an absent peer is owed, in short steps.

        Raises:
            KeyError: No absent peer has that name.
        """
        return self._count(self._absent[name])

    def forget(self, name: str, confirmed: bool) -> tuple[int, int]:
        """Return (records, bytes) owed to an absent peer when last counted; forget where confirmed.

        Raises:
            KeyError: No absent peer has that name.
        """
        absent = self._absent[name]
        if confirmed:
            self._end(absent, "warn", "an operator has it forgotten")
        return absent.records, absent.bytes

    def tick(self, now: float) -> None:
        """Count running time, about once a second; forget peers that were absent for a day."""
        since = now if self._ticked is None else self._ticked
        self._ticked = now
        due = now - self._noted >= NOTED_EVERY
        if due:
            self._noted = now
        for absent in tuple(self._absent.values()):
            absent.seconds += now - since
            if absent.seconds >= KEPT_SECONDS:
                self._end(absent, "error", "it was not configured for 24 h of running time")
            elif due:
                self._note(absent)
        self._count_some()

    def _count_some(self) -> None:
        """Go on counting one peer after the other: a long log with many channels takes minutes."""
        until = self._log.clock() + COUNT_SECONDS
        for _ in self._counting:
            if self._log.clock() >= until:
                return
        if self._absent:
            name = next(iter(self._absent))
            absent = self._absent[name] = self._absent.pop(name)
            self._counting = self._count(absent)

    def _end(self, absent: _Absent, level: str, why: str) -> None:
        """Forget a peer, and log the records that it will not receive."""
        name = absent.cursor.peer
        del self._absent[name]
        self._cursors.remove_peer(name)
        self._log_event(
            level,
            "link.forgotten",
            peer=name,
            records=absent.records,
            bytes=absent.bytes,
            detail=f"{why}: {name}, which was owed {_owed(absent)} from offset"
            f" {absent.cursor.acked} on, has no cursor any more",
        )
        self._forgotten(name)

    def _note(self, absent: _Absent) -> None:
        """Save for how long it has been absent."""
        absent.cursor = msgspec.structs.replace(absent.cursor, absent_seconds=absent.seconds)
        self._cursors.set_peer(absent.cursor)

    def _count(self, absent: _Absent) -> Iterator[None]:
        """Count the records that it is owed, of all channels where its `send` is unknown.

        Yields after each few channels; the figures change at the end.
        """
        total = 0, 0
        for step in count(self._log, absent.cursor.acked, absent.owes):
            total = step
            yield
        absent.records, absent.bytes = total

    def low_water(self, crowded: bool) -> int:
        """Return the offset below which no absent peer is owed anything.

        Args:
            crowded: Peers with `drop-oldest` hold nothing back.
        """
        held = (
            absent.cursor.acked
            for absent in self._absent.values()
            if not (crowded and absent.drops)
        )
        return min(held, default=self._log.next)

    def warnings(self) -> list[str]:
        """Return a sentence for each absent peer with owed records, ten at most."""
        return [
            f"{name} is not configured any more and is owed {_owed(absent)}: see `linkd peers`"
            for name, absent in sorted(self._absent.items())
            if absent.records
        ][:10]

    def statuses(self) -> list[AbsentPeer]:
        """Return the absent peers, by name."""
        return [
            AbsentPeer(
                peer=name,
                next=absent.cursor.acked,
                owed_records=absent.records,
                owed_bytes=absent.bytes,
                absent_seconds=absent.seconds,
                forgotten_seconds=max(0.0, KEPT_SECONDS - absent.seconds),
            )
            for name, absent in sorted(self._absent.items())
        ]


def _owed(absent: _Absent) -> str:
    """Return the owed records as text."""
    noun = "record" if absent.records == 1 else "records"
    return f"{absent.records:,} {noun} ({absent.bytes:,} bytes)"


_TIDY_FROM = 64


class AckWaiters:
    """The callers that wait for acks of one peer."""

    __slots__ = ("_given_up", "_heap", "_number")

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Deferred[None]]] = []
        self._number = 0
        self._given_up = 0

    def until(self, next: int) -> Deferred[None]:
        """Fire once the peer has everything below `next`; cancelled if the peer is removed."""
        waiting: Deferred[None] = Deferred(self._gave_up)
        self._number += 1
        heappush(self._heap, (next, self._number, waiting))
        return waiting

    def _gave_up(self, waiting: Deferred[None]) -> None:
        """Remove cancelled waiters, once they are the majority."""
        self._given_up += 1
        if self._given_up >= _TIDY_FROM and self._given_up * 2 > len(self._heap):
            self._heap = [row for row in self._heap if not row[2].called and row[2] is not waiting]
            heapify(self._heap)
            self._given_up = 0

    def acked(self, next: int) -> None:
        """Fire the waiters for offsets below `next`, which the peer has acknowledged."""
        while self._heap and self._heap[0][0] <= next:
            waiting = heappop(self._heap)[2]
            if not waiting.called:
                waiting.callback(None)

    def end(self) -> None:
        """Cancel all waiters: the peer was removed."""
        rows, self._heap = self._heap, []
        for _, _, waiting in rows:
            if not waiting.called:
                waiting.errback(CancelledError())


_OVERDUE_SECONDS = 10.0
"""An attempt that is overdue by this many seconds makes no progress."""

_CROWDED = 0.85
"""Fraction of `log.max_bytes` above which peers with `drop-oldest` no longer retain records."""


class Links:
    """All links of a node, with their cursors and ack waiters.

    Args:
        node: The node.
        cursors: The peers' cursors.
        make_dialer: Creates the dialer of a link.
        rng: Random source of the delays.

    Attributes:
        drivers: The links, by peer.
        absent: The peers that are no longer configured.
        counts: What counts the backlogs of peers.
    """

    def __init__(
        self,
        node: Node,
        cursors: CursorStore,
        make_dialer: Callable[[LinkDriver], LinkDialer],
        rng: Random,
    ) -> None:
        self.drivers: dict[str, LinkDriver] = {}
        self._node = node
        self.absent = AbsentPeers(node.log, cursors, node.log_event, node.forget_outages)
        self._cursors = cursors
        self._make_dialer = make_dialer
        self._rng = rng
        self._waits: dict[str, AckWaiters] = {}
        self.counts = BacklogCounts(node.clock)
        node.log.on_taken.append(self._taken)
        node.log.on_epoch.append(self._epoch_opened)
        cursors.on_peer.append(self._noted_elsewhere)
        cursors.on_peer_removed.append(self._forgotten_elsewhere)
        cursors.watch(COMMAND, self._commanded)

    # -- other instances of this node ---------------------------------------------------------

    def _taken(self, peer: str) -> None:
        """End the connection of a peer that another instance has now."""
        driver = self.drivers.get(peer)
        if driver is not None:
            driver.taken()

    def _epoch_opened(self) -> None:
        """Restart all links: the database of the log was started again, and maybe put back."""
        for driver in self.drivers.values():
            driver.rejoin("the log has a new epoch")

    def _noted_elsewhere(self, cursor: PeerCursor) -> None:
        """Note how far a peer is that is connected to another instance."""
        driver = self.drivers.get(cursor.peer)
        if driver is not None and driver.connection is None:
            driver.replicator.follow(cursor.acked)
            self._waits[cursor.peer].acked(cursor.acked)
        self.absent.noted(cursor)

    def _forgotten_elsewhere(self, cursor: PeerCursor) -> None:
        """Keep the cursor of a peer that is configured here; forget an absent one."""
        if cursor.peer in self.drivers:
            self._cursors.create_peer(msgspec.structs.replace(cursor, absent_seconds=None))
        else:
            self.absent.drop(cursor.peer)

    def look_for_absent(self) -> None:
        """Let the instance that keeps the log forget peers that none has configured; each second.

        Instances with other `[[peer]]` tables may have them.
        """
        node = self._node
        self.absent.follow(self.drivers)
        if node.log.is_keeper and node.instances is not None and node.instances.agree():
            self.absent.tick(node.clock.seconds())
        else:
            self.absent.wait()

    def command(self, peer: str, word: Command) -> None:
        """Let the other instances of this node act on a link, whichever has it."""
        self._cursors.share(COMMAND, f"{peer}/{word}", token_hex(8).encode())

    def _commanded(self, key: str, value: bytes | None) -> None:
        """Act on a link, as was asked for at another instance."""
        peer, _, word = key.rpartition("/")
        driver = self.drivers.get(peer)
        if driver is None:
            return
        if word == "kick" and driver.link.state not in ("up", "stopped"):
            driver.kick()
        elif word == "rejoin":
            driver.rejoin("the link restarts after a resync")
        elif word == "revoke" and driver.connection is not None:
            driver.connection.abort("rejected", "its certificate was revoked")

    def send_away(self, why: str) -> None:
        """Let peers dial another instance: this one can't store what they send."""
        for driver in self.drivers.values():
            driver.send_away(why, BUSY_SECONDS)

    def share_dialing(self) -> None:
        """Dial from one instance alone; called about once a second."""
        instances = self._node.instances
        if instances is None or self._node.drain.active:
            return  # a drain ends the links itself
        dials = instances.should_dial()
        for driver in self.drivers.values():
            if driver.dialer is not None and dials != (driver.link.state != "stopped"):
                if dials:
                    driver.start()
                else:
                    driver.stop("another instance of this node dials it")

    # -- life ---------------------------------------------------------------------------------

    def start(self, peers: tuple[PeerSettings, ...]) -> None:
        """Start all links; cursors of peers that are no longer configured are kept for a day."""
        self.absent.start({peer.name for peer in peers})
        for settings in peers:
            self._add(settings)

    def stop(self, detail: str) -> None:
        """Stop all links."""
        for driver in self.drivers.values():
            driver.stop(detail)

    def reload(self, old: Config, new: Config) -> None:
        """Go from one configuration to another.

        Links of peers that it doesn't change stay up.
        """
        before = {peer.name: peer for peer in old.peers}
        after = {peer.name: peer for peer in new.peers}
        for name in [name for name in before if name not in after]:
            replicator = self.drivers[name].replicator
            outbound = replicator.session.outbound
            owed = outbound.owed_records, outbound.owed_bytes
            self._remove(name, "the peer was removed from the configuration")
            self.absent.leave(before[name], replicator.owes, *owed)
            self._waits.pop(name).end()
        # A dialer follows its listener's [heartbeat], not this node's.
        restarts = old.reconnect != new.reconnect
        for name, settings in after.items():
            if name not in before:
                self._add(settings)
            elif settings != before[name] or (restarts and settings.dial):
                self._remove(name, "its configuration has changed")
                self._add(settings)

    def _add(self, settings: PeerSettings) -> None:
        """Start the link to one peer."""
        self.absent.back(settings.name)
        if self._cursors.peers.get(settings.name) is None:
            here = self._node.log.next
            self._cursors.create_peer(PeerCursor(settings.name, here, here))
        backoff = None
        if settings.dial:
            reconnect = self._node.config.reconnect
            backoff = Backoff(
                reconnect.max_delay, reconnect.stable_after, self._rng.random, len(settings.dial)
            )
        stored, ends = self._node.log.cursor(settings.name), self._node.ends
        if stored is not None and ends.owner(stored.log) is None:
            ends.own(stored.log, settings.name)
        driver = LinkDriver(self._node, settings, backoff)
        self.drivers[settings.name] = driver
        self._waits.setdefault(settings.name, AckWaiters())
        if settings.dial:
            driver.dialer = self._make_dialer(driver)
        self._node.dispatcher.changed()
        dials = driver.dialer is None or self._node.log.is_keeper
        if dials and not self._node.drain.active:
            driver.start()

    def _remove(self, name: str, detail: str) -> None:
        """Stop the link to one peer."""
        self.drivers.pop(name).stop(detail)
        self._node.ends.disown(name)
        self._node.dispatcher.changed()

    # -- all links ----------------------------------------------------------------------------

    def network_changed(self) -> None:
        """Dial again where it may help: addresses or routes of this host have changed."""
        for driver in self.drivers.values():
            driver.network_changed()

    def clock_set(self) -> None:
        """Retry links that TLS has rejected: a certificate may be valid by the new time."""
        for driver in self.drivers.values():
            if driver.link.state == "rejected" and driver.link.attempt_reason == "tls":
                driver.network_changed()

    def kick(self) -> None:
        """Make every dialer try again immediately."""
        for driver in self.drivers.values():
            driver.kick()

    def catch_up(self) -> None:
        """Make each link process what reached the disk meanwhile, and check for overdue acks."""
        now = self._node.clock.seconds()
        for driver in tuple(self.drivers.values()):
            driver.replicator.catch_up()
            driver.replicator.watch(now)

    def trimmed(self, first: int) -> None:
        """Note the log's new first offset; peers that were owed older records get a gap."""
        for driver in self.drivers.values():
            driver.replicator.trimmed(first)

    def progress(self, now: float) -> str | None:
        """Return what makes no progress (for the watchdog), or None where all do."""
        for driver in self.drivers.values():
            dialer = driver.dialer
            if dialer is None or dialer.deadline is None:
                continue
            overdue = now - dialer.deadline
            if overdue > _OVERDUE_SECONDS:
                return f"the attempt to reach {driver.peer} is {overdue:.0f} s overdue"
        return None

    def summary(self) -> tuple[int, list[str]]:
        """Return how many links are up, at any instance, and the peers of those that are not."""
        down = [d.peer for d in self.drivers.values() if d.link.state != "up"]
        if self._node.instances is not None:
            elsewhere = self._node.instances.up_elsewhere()
            down = [peer for peer in down if peer not in elsewhere]
        return len(self.drivers) - len(down), down

    # -- how far the peers have our log -------------------------------------------------------

    def acked_by(self, peer: str) -> int:
        """Return the offset below which the peer has everything, as noted on disk."""
        known = self._cursors.peers.get(peer)
        assert known is not None  # set before the link starts
        return min(known.acked, self._node.log.next)

    def acked(self, peer: str, next: int) -> None:
        """Note that the peer has acknowledged everything below `next`."""
        known, driver = self._cursors.peers.get(peer), self.drivers.get(peer)
        if known is None or driver is None:
            return
        if known.acked != next:
            self._cursors.set_peer(PeerCursor(peer, known.made, next))
        self._waits[peer].acked(next)
        if driver.drain_to is not None and next >= driver.drain_to:
            self._node.recorder.drained(driver)

    def wait_for(self, peer: str, next: int) -> Deferred[None]:
        """Fire once everything below `next` is on `peer`'s disk."""
        waits = self._waits[peer]
        if self.drivers[peer].replicator.session.outbound.acked >= next:
            return succeed(None)
        return waits.until(next)

    def low_water(self) -> int:
        """Return the offset below which no peer is owed anything."""
        log = self._node.log
        low = log.next
        crowded = log.size_bytes > _CROWDED * log.max_bytes
        for driver in self.drivers.values():
            if not (crowded and driver.settings.when_full == "drop-oldest"):
                low = min(low, driver.replicator.session.outbound.acked)
        if self._node.config.cluster is not None:  # other instances may have other peers
            peers = self._cursors.peers.items()
            others = (cursor.acked for peer, cursor in peers if peer not in self.drivers)
            low = min(low, min(others, default=low))
        return min(low, self.absent.low_water(crowded))


MOST_HELD_BYTES = 96 * 1024 * 1024
"""Bytes that the records of all peers together may take in memory.

Beyond it each peer still has its share of the same amount, so that no peer can shut out others.
"""

WINDOW_BYTES = 8 * 1024 * 1024
"""Bytes that a peer may send at once when it is asked to send again."""


class Held:
    """Admits received batches to memory, and asks refused peers to send again once there is room.

    A node never stops reading a link, since its heartbeat would suffer: records for which there is
    no room are dropped and not acknowledged.

    Args:
        log: The node's log, with its pending writes.
        peers: Returns the number of peers.

    Attributes:
        part_bytes: Bytes of partially received records.
    """

    def __init__(self, log: Log, peers: Callable[[], int]) -> None:
        self.part_bytes = 0
        self._log = log
        self._peers = peers
        self._refused: dict[Replicator, None] = {}

    def admits(self, peer: str, size: int, part_bytes: int = 0) -> bool:
        """Return whether there is room for `size` more bytes of a peer.

        Args:
            peer: Its name.
            size: Bytes of a batch to store, or 0.
            part_bytes: Bytes of a partially received record, which are counted already.
        """
        size += BATCH_OVERHEAD_BYTES
        if self._log.held() + self.part_bytes + size <= MOST_HELD_BYTES:
            return True
        share = MOST_HELD_BYTES // max(1, self._peers())
        return self._log.held(peer) + part_bytes + size <= share

    def refuse(self, sender: Replicator) -> None:
        """Note that a batch of this peer was dropped."""
        self._refused[sender] = None

    def forget(self, sender: Replicator) -> None:
        """Forget a link that rejoins by itself, or has ended."""
        self._refused.pop(sender, None)

    def __contains__(self, sender: Replicator) -> bool:
        """Return whether a batch of this peer was dropped and not requested again yet."""
        return sender in self._refused

    def tick(self) -> None:
        """Ask as many peers to send again as there is room for, in order of waiting."""
        if not self._refused or self._log.withholds():
            return
        room = MOST_HELD_BYTES // 2 - self._log.held() - self.part_bytes
        for sender in tuple(self._refused):
            if room <= 0:
                break
            room -= WINDOW_BYTES
            del self._refused[sender]
            sender.ask_again()
