"""Record what happened on a node: link changes, losses, refused connections, link metrics."""

from __future__ import annotations

import math
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec
from twisted.internet.base import ReactorBase

from linkd import events
from linkd.clock import wall
from linkd.core.link import Changed
from linkd.log import CursorStore
from linkd.log.base import Log
from linkd.log.interface import OperatorNotice
from linkd.net.rate_limit import TokenBucket, origin
from linkd.node.link_driver import LinkDriver
from linkd.node.outages import Outages
from linkd.protocol.json import rfc3339
from linkd.status import Event, LinkHistory, RefusedConnection

if TYPE_CHECKING:
    from linkd.node.node import Node

MOST_STRANGERS = 32
"""Maximum number of sources; the newest are kept. Anyone who reaches the port can add one."""

KEPT_SECONDS = 3600.0


class _Refusal(msgspec.Struct):
    """The last refusal of one source, and how many there were."""

    claimed: str | None
    address: str
    reason: str
    detail: str
    count: int
    at: float


class Strangers:
    """Recently refused connections by address and reason; an IPv6 /64 counts as one address.

    Status shows them: a peer that never connects may be one that uses another name.
    """

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], _Refusal] = {}

    def refused(
        self, claimed: str | None, address: str, reason: str, detail: str, now: float
    ) -> None:
        """Record a refusal.

        Args:
            claimed: The name that the other end gave, or None.
            address: Its address and port.
            reason: One word.
            detail: One sentence.
            now: Monotonic seconds.
        """
        key = (origin(address.rpartition(":")[0].strip("[]")), reason)
        before = self._seen.pop(key, None)
        count = 1 if before is None or now - before.at > KEPT_SECONDS else before.count + 1
        self._seen[key] = _Refusal(claimed, address, reason, detail, count, now)
        if len(self._seen) > MOST_STRANGERS:
            # A duplicate has proved a peer's name: unproven entries must not displace it.
            oldest = next((each for each in self._seen if each[1] != "duplicate"), None)
            self._seen.pop(oldest or next(iter(self._seen)))

    def recent(self, now: float) -> list[RefusedConnection]:
        """Return the refusals of the last hour, newest first."""
        for key in [key for key, each in self._seen.items() if now - each.at > KEPT_SECONDS]:
            del self._seen[key]
        return [
            RefusedConnection(
                each.claimed, each.address, each.reason, each.detail, each.count, now - each.at
            )
            for each in reversed(self._seen.values())
        ]


MOST_EVENTS = 10_000
"""Maximum number of events that are kept."""

UNSURE = 100_000
"""Event numbers that each start skips.

A kill may lose events that followers have already received; a new event under the same number would
never reach them.
"""


class EventBuffer:
    """The last 10,000 events.

    The attempts of one outage are merged: one event covers all attempts with the same result, with
    their count and the times of the first and the last. The merged event gets a new number each
    time, so that a client that asks for new events receives it again.

    Args:
        store: Where they are kept; rows that cannot be decoded are removed.
        most: How many are kept.

    Attributes:
        instance: Of several that serve the node, the one whose events these are.
    """

    def __init__(self, store: CursorStore, most: int = MOST_EVENTS) -> None:
        self.instance: str | None = None
        self._store = store
        self._most = most
        self._events: dict[int, Event] = {}
        self._rows: dict[int, int] = {}  # an event's number, and that of its row
        self._attempts: dict[str, dict[tuple[str, str | None], int]] = {}
        self._followers: list[Callable[[Event], None]] = []
        found: list[tuple[int, Event]] = []
        for row, encoded in store.events():
            try:
                found.append((row, msgspec.json.decode(encoded, type=Event)))
            except msgspec.DecodeError:
                store.remove_event(row)
        for row, event in sorted(found, key=lambda pair: pair[1].number):
            self._events[event.number] = event
            self._rows[event.number] = row
        self._number = max(self._events) + UNSURE if self._events else 0

    def add(self, event: str, **fields: str | None) -> None:
        """Store an event and pass it to all followers."""
        self._number += 1
        names = ("peer", "generation", "old", "new", "reason", "detail", "owner")
        same: Any = {name: fields.get(name) for name in names}
        same["instance"] = self.instance
        made = Event(number=self._number, time=rfc3339(wall()), event=event, **same)
        self._keep(self._folded(made))
        for follower in list(self._followers):
            try:
                follower(made)
            except Exception as error:  # noqa: BLE001  # a follower's bug is not the link's
                self.end_of(follower)
                events.emit(
                    "node.internal-error",
                    where="follower",
                    detail=f"{type(error).__name__}: {error}",
                )

    def _folded(self, made: Event) -> Event:
        """Return the event to store: attempts of the same outage are merged into one."""
        if made.peer is None or made.new is None:
            return made
        if "up" in (made.old, made.new) or "stopped" in (made.old, made.new):
            self._attempts.pop(made.peer, None)
            return made
        attempts = self._attempts.setdefault(made.peer, {})
        before = self._events.get(attempts.get((made.event, made.reason), 0))
        attempts[made.event, made.reason] = made.number
        if before is None:
            return made
        # Reuse the row: a link that is down for long would otherwise write and delete two a second.
        del self._events[before.number]
        self._rows[made.number] = self._rows.pop(before.number)
        return msgspec.structs.replace(
            made, time=before.time, count=before.count + 1, until=made.time
        )

    def _keep(self, event: Event) -> None:
        self._events[event.number] = event
        row = self._rows.setdefault(event.number, event.number)
        self._store.set_event(row, msgspec.json.encode(event))
        if len(self._events) > self._most:
            oldest = next(iter(self._events))
            del self._events[oldest]
            self._store.remove_event(self._rows.pop(oldest))

    def after(self, number: int) -> list[Event]:
        """Return the events after `number`, oldest first."""
        found = []
        for event in reversed(self._events.values()):
            if event.number <= number:
                break
            found.append(event)
        return found[::-1]

    def follow(self, call: Callable[[Event], None]) -> Callable[[], None]:
        """Call `call` with each new event; returns a function that ends this."""
        self._followers.append(call)

        return lambda: self.end_of(call)

    def end_of(self, call: Callable[[Event], None]) -> None:
        """Stop calling `call`."""
        if call in self._followers:
            self._followers.remove(call)


Fields = Mapping[str, str | int | float | None]

_MOST = 20
_MOST_OF_OWNER = 4
"""Maximum number of reports about one owner's consumers, to leave room for the others."""

_LOOKS = 2
"""Consecutive polls after which a full log or a stalled disk is reported, or its end.

A log near its bound flaps, and a process that was frozen finds its finished commits only after the
first poll.
"""


class RecentLosses:
    """The newest losses of this run; selected log lines also become events.

    Args:
        book: Where events are stored.
    """

    def __init__(self, book: EventBuffer) -> None:
        self._book = book
        self._sentences: deque[tuple[str | None, str]] = deque(maxlen=_MOST)

    def take(self, event: str, fields: Fields) -> None:
        """Examine a log line; keep it where it is an event or a loss."""
        shown = events.EVENTS[event].shown if event in events.EVENTS else ""
        if not shown:
            return
        peer, detail = _text(fields.get("peer")), _text(fields.get("detail"))
        owner = _text(fields.get("owner"))
        self._book.add(event, peer=peer, detail=detail, owner=owner)
        if shown == "loss" and detail is not None:
            mine = [one for one in self._sentences if one[0] == owner]
            if owner is not None and len(mine) >= _MOST_OF_OWNER:
                self._sentences.remove(mine[0])
            self._sentences.append((owner, f"{event}: {detail}"))

    def sentences(self, owner: str | None = None) -> list[str]:
        """Return a sentence for each loss, oldest first, without those of owners but `owner`."""
        return [text for whose, text in self._sentences if owner is None or whose in (None, owner)]


def _text(value: str | int | float | None) -> str | None:
    return None if value is None else str(value)


class LogMonitor:
    """Logs the notices of a log and its cursors, a full log and a stalled disk.

    Args:
        node: The node.
        log: Its log.
        cursors: The cursors beside it.
    """

    def __init__(self, node: Node, log: Log, cursors: CursorStore) -> None:
        self._node = node
        self._log = log
        self._full = False
        self._looks_with_room = 0
        self._looks_stalled = 0
        self._waited: dict[str, int] = {}
        self._withheld: set[str] = set()
        for notice in (*log.notices, *cursors.notices):
            self._log_notice(notice)
        log.on_notice.append(self._log_notice)
        cursors.on_notice.append(self._log_notice)

    def look(self) -> None:
        """Compare with the last poll; called about once a second."""
        self._log.look()
        why, size, bound = self._log.full, self._log.size_bytes, self._log.max_bytes
        if self._log.unavailable is not None:
            why = None  # the engine reports that itself
        self._looks_with_room = 0 if why is not None else self._looks_with_room + 1
        if why is not None and not self._full:
            self._full = True
            self._node.log_event("error", "log.full", bytes=size, max_bytes=bound, detail=why)
        elif self._full and self._looks_with_room == _LOOKS:
            self._full = False
            self._node.log_event("info", "log.space-available", bytes=size, max_bytes=bound)
        self._look_at_disk()
        waiting = self._waiting() if self._full else {}
        for peer in sorted(waiting.keys() - self._withheld):
            if waiting[peer] == self._waited.get(peer):
                self._withheld.add(peer)
                detail = (
                    f"records of {peer} from offset {waiting[peer]} of its log on wait for room"
                )
                self._node.log_event("warn", "link.acks-paused", peer=peer, detail=detail)
        self._withheld &= waiting.keys()
        self._waited = waiting

    def _look_at_disk(self) -> None:
        """Log once that the disk is stalled, and once that it works again."""
        seconds = self._log.stalled()
        if seconds is None and self._looks_stalled >= _LOOKS:
            self._node.log_event(
                "info", "log.stall-ended", detail="the disk finishes commits again"
            )
        self._looks_stalled = 0 if seconds is None else self._looks_stalled + 1
        if self._looks_stalled == _LOOKS:
            detail = "the disk has not finished a commit; nothing is acknowledged until it does"
            self._node.log_event("error", "log.stalled", seconds=seconds, detail=detail)

    def _waiting(self) -> dict[str, int]:
        """Return the peers with records that wait for the disk, and the first offset of these."""
        waiting = {}
        for link in self._node.links.drivers.values():
            inbound = link.replicator.session.inbound
            if inbound.received is not None and inbound.committed < inbound.received:
                waiting[link.peer] = inbound.committed
        return waiting

    def _log_notice(self, notice: OperatorNotice) -> None:
        """Log a notice of the log or its cursors."""
        self._node.log_event(notice.level, notice.event, detail=notice.detail)


STEP_SECONDS: Final = 5.0
STEPS: Final = 720
"""One hour."""

MOST_LINKS: Final = 1000
"""Maximum number of links with a history, in order of configuration: 14 KB each, 14 MB in all."""

NEW_LINKS: Final = 50
"""Links whose rings are created in one second: creating a thousand at once takes 90 ms."""

_SERIES: Final = ("rtt", "silence", "backlog", "sent", "received")


class _Rings:
    """One link's series, each a ring of steps; an unknown value is NaN."""

    __slots__ = ("counted", "newest", "rings", "silence")

    def __init__(self, step: int) -> None:
        self.rings = {name: array("f", [math.nan]) * STEPS for name in _SERIES}
        self.newest = step - 1
        self.silence = math.nan
        self.counted: tuple[int, int] | None = None

    def put(self, step: int, values: dict[str, float]) -> None:
        """Store a step's values; steps that were missed, as by a frozen process, are unknown."""
        for missed in range(max(self.newest, step - STEPS) + 1, step):
            for ring in self.rings.values():
                ring[missed % STEPS] = math.nan
        for name, value in values.items():
            self.rings[name][step % STEPS] = value
        self.newest = step

    def listed(self, name: str) -> list[float | None]:
        """Return a series, oldest first."""
        ring, begin = self.rings[name], (self.newest + 1) % STEPS
        in_order = ring[begin:] + ring[:begin]
        return [None if math.isnan(value) else round(value, 5) for value in in_order]


class History:
    """The series of all links, sampled by `second`; nothing is kept over a restart."""

    def __init__(self) -> None:
        self._links: dict[str, _Rings] = {}

    def second(self, drivers: Iterable[LinkDriver], now: float) -> None:
        """Sample the links; call it once a second.

        The highest silence within a step is kept: one sample a step would always fall on the same
        moment between two pings.

        Args:
            drivers: All links.
            now: Monotonic seconds.
        """
        seen: set[str] = set()
        made = 0
        for driver in drivers:
            if len(seen) == MOST_LINKS:
                break
            seen.add(driver.peer)
            # A fifth of the links completes its step in each second, to spread the work.
            step = int((now + (len(seen) - 1) % STEP_SECONDS) // STEP_SECONDS)
            rings = self._links.get(driver.peer)
            if rings is None:
                if made == NEW_LINKS:
                    continue
                made += 1
                rings = self._links[driver.peer] = _Rings(step)
            connection = driver.connection
            if connection is not None:
                silence = connection.silence_seconds()
                # A comparison with NaN is false.
                rings.silence = max(silence, rings.silence)
            if step > rings.newest:
                rings.put(step, _values(driver, rings))
                rings.silence = math.nan
        if len(self._links) > len(seen) or not made:
            for peer in [peer for peer in self._links if peer not in seen]:
                del self._links[peer]

    def of(self, peer: str, stamp: float) -> LinkHistory:
        """Return the last hour of one link; empty where nothing is kept.

        Args:
            peer: Whose link.
            stamp: Unix seconds now, the time of the newest step.
        """
        rings = self._links.get(peer)
        series = ([] if rings is None else rings.listed(name) for name in _SERIES)
        return LinkHistory(peer, STEP_SECONDS, rfc3339(stamp), *series)


def _values(driver: LinkDriver, rings: _Rings) -> dict[str, float]:
    """Return a link's current values; counts are since the previous step."""
    connection = driver.connection
    session = driver.replicator.session
    counts = session.outbound.sent_records, session.inbound.received_records
    before, rings.counted = rings.counted, counts
    known = before is not None and counts[0] >= before[0] and counts[1] >= before[1]
    rtt = None if connection is None else connection.rtt_seconds
    return {
        "rtt": math.nan if rtt is None else rtt,
        "silence": rings.silence,
        "backlog": session.outbound.owed_records,
        "sent": counts[0] - before[0] if before is not None and known else math.nan,
        "received": counts[1] - before[1] if before is not None and known else math.nan,
    }


OWNER_EVENTS = 60.0
OWNER_BURST = 20.0
"""Events about one owner's consumers that are kept: per hour, and in a burst."""


class LinkRecorder:
    """Records every change of the links once, in the log, the events and the outages.

    Args:
        log: The node's log; its end shows when the backlog of an outage is drained.
        outages: The outages of the links, on disk.
        store: Where events are kept.
        clock: The reactor.

    Attributes:
        events: What `linkd events` shows.
        losses: The data-loss reports of this run.
        on_fell: Called when a link has left `up`: peer, reason, seconds of silence before.
        on_rose: Called when an outage has ended: peer, its seconds.
    """

    def __init__(self, log: Log, outages: Outages, store: CursorStore, clock: ReactorBase) -> None:
        self._log = log
        self._outages = outages
        self._clock = clock
        self.events = EventBuffer(store)
        self.losses = RecentLosses(self.events)
        self._shares: dict[str, TokenBucket] = {}
        self.on_fell: list[Callable[[str, str, float | None], None]] = []
        self.on_rose: list[Callable[[str, float], None]] = []

    def changed(self, driver: LinkDriver, change: Changed, silence: float | None) -> None:
        """Record and log a change of a link's state."""
        same: dict[str, str | None] = {
            "peer": driver.peer,
            "generation": driver.generation,
            "old": change.old,
            "new": change.new,
            "reason": change.reason,
            "detail": change.detail,
        }
        self.events.add(f"link.{change.new}", **same)
        if change.old == "up":  # an operator searches the log for this word
            same["detail"] = f"link down: {change.detail}" if change.detail else "link down"
        events.emit(
            f"link.{change.new}",
            "info" if change.old == "stopped" else None,
            **same,
            **self._measured(driver, change, silence),
        )

    def _measured(
        self, driver: LinkDriver, change: Changed, silence: float | None
    ) -> dict[str, str | int | float | None]:
        """Update the link's outages, and return the measured fields for the log line."""
        now, owed = self._clock.seconds(), driver.replicator.session.outbound.owed_records
        if change.old == "up":
            reason = change.reason or "closed"
            self._outages.fell(driver.peer, reason, silence, now, wall())
            for fell in self.on_fell:
                fell(driver.peer, reason, silence)
        elif change.reason is not None:
            self._outages.failed(driver.peer, change.reason)
        self._outages.tried(driver.peer, driver.link.attempts)
        if change.new != "up":
            return driver.measured(silence)
        down = self._outages.rose(driver.peer, driver.link.attempts, owed, now)
        if down is not None:
            for rose in self.on_rose:
                rose(driver.peer, down)
        driver.drain_to = self._log.next if owed else None
        return {
            "outage_seconds": None if down is None else round(down, 3),
            "attempts": driver.link.attempts or None,
            "replayed_records": owed if down is not None else None,
            "peer_version": driver.peer_version,
        }

    def drained(self, driver: LinkDriver) -> None:
        """Log that the peer has acknowledged the backlog of an outage."""
        driver.drain_to = None
        drained = self._outages.drained(driver.peer, self._clock.seconds())
        if drained is not None:
            seconds, records = drained
            events.emit(
                "link.drained",
                peer=driver.peer,
                drained_seconds=round(seconds, 3),
                replayed_records=records,
            )

    def log_event(self, level: str, event: str, **fields: str | int | float | None) -> None:
        """Log an event; losses and selected events are also stored."""
        owner = fields.get("owner")
        if owner is None or self._has_share(str(owner)):
            self.losses.take(event, fields)
        events.emit(event, level, **fields)  # type: ignore[arg-type]  # the core's level is a plain string

    def _has_share(self, owner: str) -> bool:
        """Return whether to keep an event about an owner's consumers; each owner has a limit."""
        now = self._clock.seconds()
        if owner not in self._shares:
            self._shares[owner] = TokenBucket(OWNER_EVENTS / 3600.0, OWNER_BURST, now)
        return not self._shares[owner].take(now)
