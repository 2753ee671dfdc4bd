"""The instances of a node: what each writes of itself, and what it knows of the others."""

from __future__ import annotations

import hashlib
import secrets
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from linkd.clock import wall
from linkd.config import Config, PeerSettings
from linkd.config.settings import ClusterSettings
from linkd.log import CursorStore
from linkd.node.outages import Outages
from linkd.protocol.json import rfc3339
from linkd.status import InstanceState, InstanceStatus, LinkState, LinkStatus
from linkd.version import VERSION

if TYPE_CHECKING:
    from linkd.node.link_driver import LinkDriver
    from linkd.node.node import Node

INSTANCE: Final = "instance"
"""Kind of the shared values that instances write of themselves, by their names."""

WRITE_SECONDS: Final = 5.0
SILENT_SECONDS: Final = 15.0
FORGET_SECONDS: Final = 86_400.0
"""The keeper then deletes what an instance wrote that has stopped or is silent for so long."""

_PATHS: Final = {"secret_file", "ca", "certificate", "key", "proxy_secret_file"}
"""Settings of a peer that may differ between hosts."""


class LinkNote(msgspec.Struct, array_like=True, frozen=True):
    """A link as the instance that has it writes it; what is added later is last, with a default."""

    peer: str
    state: LinkState
    since_seconds: float
    generation: str | None = None
    address: str | None = None
    rtt_seconds: float | None = None
    silence_seconds: float | None = None
    peer_version: str | None = None
    reason: str | None = None
    detail: str | None = None
    down_since: str | None = None
    attempts: int = 0
    attempt_reason: str | None = None
    attempt_detail: str | None = None


class InstanceNote(msgspec.Struct, frozen=True, kw_only=True):
    """What an instance writes of itself: other versions of linkd read it.

    What is added later needs a default. Times are in Unix seconds.
    """

    instance: str
    run: str
    version: str
    state: str
    keeper: bool
    host: str
    api: str | None
    time: float
    log_time: float
    log_next: int
    uptime_seconds: float
    links: int
    peers: str
    keys: dict[str, str]
    notes: list[LinkNote]


_encode = msgspec.msgpack.Encoder().encode
decode_note = msgspec.msgpack.Decoder(InstanceNote).decode


def peers_checksum(config: Config) -> str:
    """Return a checksum of the `[[peer]]` tables: of what is set, without paths of files."""
    found = sorted((peer.name, _set_of(peer)) for peer in config.peers)
    return hashlib.sha256(msgspec.json.encode(found)).hexdigest()[:16]


def _set_of(peer: PeerSettings) -> list[tuple[str, Any]]:
    """Return the settings of a peer that are not the default: a newer linkd has more of them."""
    return sorted(
        (field.encode_name, msgspec.to_builtins(value))
        for field in msgspec.structs.fields(peer)
        if (value := getattr(peer, field.name)) != field.default and field.name not in _PATHS
    )


def differences(
    peers: str, keys: Mapping[str, str], others: str, keys_there: Mapping[str, str]
) -> list[str]:
    """Return a sentence for each thing that two instances should have the same, and do not.

    Args:
        peers: The checksum of the `[[peer]]` tables here.
        keys: The fingerprints of keys here, by setting.
        others: That checksum there.
        keys_there: Those fingerprints there.
    """
    found = [] if peers == others else ["its [[peer]] tables are not those here"]
    for setting in sorted({*keys, *keys_there}):
        if setting not in keys_there:
            found.append(f"it has no {setting}")
        elif setting not in keys:
            found.append(f"it has a {setting}, which is not set here")
        elif keys[setting] != keys_there[setting]:
            found.append(f"its {setting} has another private key than the one here")
    return found


class _Known(msgspec.Struct):
    """Another instance: what it wrote last, when that came (None: before the start)."""

    note: InstanceNote
    links: dict[str, LinkNote]
    heard: float | None
    is_silent: bool = False
    over_at: float | None = None
    """Since when it has stopped or is silent, as seen here."""


class Instances:
    """The instances that serve a node: this one writes of itself, and reads what others wrote.

    Each one's silence is measured from the arrival of what it writes, by this instance's clock.

    Args:
        node: The node.
        name: This instance.
        store: What instances share.
        outages: Those of the links.

    Attributes:
        name: This instance.
        keys: Fingerprints of the keys in files, by setting.
    """

    def __init__(self, node: Node, name: str, store: CursorStore, outages: Outages) -> None:
        self.name = name
        self.keys: Mapping[str, str] = {}
        self._node = node
        self._store = store
        self._outages = outages
        self._run = secrets.token_hex(8)
        self._host = socket.gethostname()
        self._began = node.clock.seconds()
        self._others: dict[str, _Known] = {}
        self._wrote: float | None = None
        self._is_due = False
        self._checksum: tuple[object, str] = (None, "")
        self._warned: set[str] = set()
        self._followers: list[Callable[[str, str], None]] = []

    # what is written

    def start(self) -> None:
        """Read what was written before, and follow what others write."""
        for name, value in self._store.shared(INSTANCE).items():
            self._take(name, value, None)
        self._store.watch(INSTANCE, self._changed)
        self._node.events.follow(lambda _: self.write_soon())
        self._write(self._state())

    def set_keys(self, keys: Mapping[str, str]) -> None:
        """Write these fingerprints of the private keys, by setting, from now on."""
        self._is_due |= keys != self.keys
        self.keys = keys

    def write_soon(self) -> None:
        """Write at the next tick: something has changed."""
        self._is_due = True

    def tick(self) -> None:
        """Write what is due, and look who is silent; called about once a second."""
        now = self._node.clock.seconds()
        if self._is_due or self._wrote is None or now - self._wrote >= WRITE_SECONDS:
            self._write(self._state())
        for known in tuple(self._others.values()):
            self._look(known, now)
        self._warn()

    def stop(self) -> None:
        """Write that this instance stops: it has no links any more."""
        self._write("stopped")

    def _state(self) -> InstanceState:
        return "draining" if self._node.drain.active else "up"

    def _write(self, state: InstanceState) -> None:
        self._is_due = False
        self._wrote = self._node.clock.seconds()
        drivers = self._node.links.drivers.values() if state != "stopped" else ()
        notes = [note for driver in drivers if (note := self._link_note(driver)) is not None]
        self._store.share(INSTANCE, self.name, _encode(self._note(state, notes)))

    def _note(self, state: InstanceState, notes: list[LinkNote]) -> InstanceNote:
        node = self._node
        up = sum(driver.link.state == "up" for driver in node.links.drivers.values())
        return InstanceNote(
            instance=self.name,
            run=self._run,
            version=VERSION,
            state=state,
            keeper=node.log.is_keeper,
            host=self._host,
            api=node.config.api.http,
            time=wall(),
            log_time=node.log.clock(),
            log_next=node.log.next,
            uptime_seconds=node.clock.seconds() - self._began,
            links=up if state != "stopped" else 0,
            peers=self._peers(),
            keys=dict(self.keys),
            notes=notes,
        )

    def _link_note(self, driver: LinkDriver) -> LinkNote | None:
        """Return what others should know of a link; None where it is not this instance's."""
        link, connection = driver.link, driver.connection
        if link.state == "up" and connection is not None:
            return LinkNote(
                driver.peer,
                link.state,
                self._node.clock.seconds() - link.since,
                driver.generation,
                connection.address,
                connection.rtt_seconds,
                connection.silence_seconds(),
                driver.peer_version,
            )
        if not self._is_ours(driver.peer, link.state, driver.dialer is not None):
            return None
        status = self._node.own_link(driver)
        return LinkNote(
            driver.peer,
            link.state,
            status.since_seconds,
            silence_seconds=status.last_heard_seconds,
            reason=status.reason,
            detail=status.detail,
            down_since=status.down_since,
            attempts=status.attempts,
            attempt_reason=status.attempt_reason,
            attempt_detail=status.attempt_detail,
        )

    def _is_ours(self, peer: str, state: str, dials: bool) -> bool:
        """Return whether this instance had a link last that is down, or dials it."""
        return self._holder(peer) == self.name or (dials and state != "stopped")

    def _holder(self, peer: str) -> str | None:
        """Return the instance that was the last to have a connection with a peer, if known."""
        run = self._node.log.holder(peer)
        return None if run is None else run.rpartition("/")[0]

    def _peers(self) -> str:
        """Return the checksum of the peers, made again after a reload."""
        config = self._node.config
        if self._checksum[0] is not config:
            self._checksum = (config, peers_checksum(config))
        return self._checksum[1]

    # what others have written

    def _changed(self, name: str, value: bytes | None) -> None:
        self._take(name, value, self._node.clock.seconds())

    def _take(self, name: str, value: bytes | None, heard: float | None) -> None:
        """Take what an instance has written of itself."""
        if name == self.name:
            return
        before = self._others.get(name)
        try:
            note = None if value is None else decode_note(value)
        except msgspec.DecodeError:
            return  # of a newer version: without it the instance becomes silent
        if note is None:
            self._others.pop(name, None)
            return
        links = {link.peer: link for link in note.notes}
        old = {} if before is None or before.heard is None else before.links
        known = self._others[name] = _Known(note, links, heard, heard is None)
        if heard is None:
            return
        self._changed_links(
            peer for peer in {*old, *links} if _state_of(old, peer) != _state_of(links, peer)
        )
        is_new = before is None or before.note.run != note.run or before.is_silent
        if note.state == "stopped":
            self._log("info", "instance.stopped", known)
        elif is_new or (before is not None and before.note.state == "stopped"):
            self._log("info", "instance.seen", known)
            if not self._node.stopping:
                self._write(self._state())  # it knows nothing of us yet

    def _look(self, known: _Known, now: float) -> None:
        """Log once that an instance is silent; forget one that has ended long ago."""
        note = known.note
        if note.state != "stopped" and not known.is_silent and self._silence(known) is None:
            known.is_silent = True
            self._log("warn", "instance.silent", known)
            self._changed_links(known.links)
        if not (note.state == "stopped" or known.is_silent):
            known.over_at = None
        elif known.over_at is None:
            known.over_at = now
        over = 0.0 if known.over_at is None else now - known.over_at
        if self._node.log.is_keeper and over >= FORGET_SECONDS:
            del self._others[note.instance]
            self._store.share(INSTANCE, note.instance, None)

    def _log(self, level: str, event: str, known: _Known) -> None:
        note = known.note
        what = {
            "instance.seen": "runs",
            "instance.stopped": "was stopped",
            "instance.silent": f"has written nothing for {SILENT_SECONDS:g} s: its links are"
            " unknown until they are up elsewhere",
        }[event]
        detail = f"the instance {note.instance} at {note.host} {what}"
        self._node.log_event(level, event, other=note.instance, detail=detail)

    def follow(self, call: Callable[[str, str], None]) -> Callable[[], None]:
        """Call with peer and event of each link that changes elsewhere; return what ends that."""
        self._followers.append(call)
        return lambda: self._followers.remove(call)

    def _changed_links(self, peers: Iterable[str]) -> None:
        for peer in peers:
            driver, link = self._node.link(peer), self._node.link_status(peer)
            if driver is None or link is None:
                continue  # it is configured there alone
            if driver.link.state != "up":
                self._record(link)
            for call in tuple(self._followers):
                call(peer, f"link.{link.state}")

    def _record(self, link: LinkStatus) -> None:
        """Record the outages of a link that is not here: any instance shows those of the node."""
        outages, now = self._outages, self._node.clock.seconds()
        if link.state == "up":
            outages.is_up_elsewhere(link.peer, now - link.since_seconds)
        elif outages.current(link.peer, now) is None:
            age = link.since_seconds
            outages.fell(link.peer, link.reason or "silence", None, now - age, wall() - age)

    def _silence(self, known: _Known) -> float | None:
        """Return for how long an instance has written nothing; None: for too long."""
        if known.heard is None:
            return None
        silence = self._node.clock.seconds() - known.heard
        return silence if silence <= SILENT_SECONDS else None

    def _live(self) -> Iterator[_Known]:
        """Yield the other instances that run, as far as known."""
        for known in self._others.values():
            if known.note.state != "stopped" and self._silence(known) is not None:
                yield known

    def _warn(self) -> None:
        """Keep warnings of silent instances, and of those with other keys or peers."""
        found = {}
        for known in self._others.values():
            note = known.note
            if note.state == "stopped":
                continue
            about = f"instance {note.instance}"
            if self._silence(known) is None:
                found[about] = f"the {about} is silent since {rfc3339(note.time)}"
            elif differs := self._differs(note):
                found[about] = f"the {about} differs: {'; '.join(differs)}"
        warnings = self._node.warnings
        for about in self._warned - found.keys():
            warnings.pop(about, None)
        warnings.update(found)
        self._warned = set(found)

    def agree(self) -> bool:
        """Return whether all instances that were not stopped have the same `[[peer]]` tables."""
        notes = [known.note for known in self._others.values()]
        mine = self._peers()
        return all(note.state == "stopped" or note.peers == mine for note in notes)

    def _differs(self, note: InstanceNote) -> list[str]:
        return differences(self._peers(), self.keys, note.peers, note.keys)

    # what is shown

    def should_dial(self) -> bool:
        """Return whether this instance dials: the keeper does, another one while that drains."""
        node = self._node
        if node.log.is_keeper or node.drain.active:
            return not node.drain.active
        live = list(self._live())
        keeper = next((known.note for known in live if known.note.keeper), None)
        if keeper is None or keeper.state != "draining":
            return False
        rest = [known.note.instance for known in live if known.note.state == "up"]
        return all(self.name < name for name in rest)

    def link(self, own: LinkStatus) -> LinkStatus:
        """Return the status of a link over all instances.

        Args:
            own: What it is at this instance.
        """
        if own.state == "up":
            return msgspec.structs.replace(own, instance=self.name)
        peer, holder = own.peer, self._holder(own.peer)
        theirs = [(one, one.links[peer]) for one in self._live() if peer in one.links]
        up = [(known, note) for known, note in theirs if note.state == "up"]
        if up:
            # One that has lost it may not have noticed, or written that, yet.
            return self._shown(own, *min(up, key=lambda pair: self._age(*pair)))
        silent = self._silent_holder(peer, holder)
        if silent is not None:
            return self._unknown(own, silent)
        ours = self._is_ours(peer, own.state, own.role == "dialer")
        if theirs and not ours:
            by_holder = (pair for pair in theirs if pair[0].note.instance == holder)
            return self._shown(own, *next(by_holder, theirs[0]))
        return msgspec.structs.replace(own, instance=self.name if ours else None)

    def up_elsewhere(self) -> set[str]:
        """Return the peers whose links are up at other instances."""
        return {
            peer
            for known in self._live()
            for peer, link in known.links.items()
            if link.state == "up"
        }

    def _silent_holder(self, peer: str, holder: str | None) -> InstanceNote | None:
        """Return the silent instance that may have a link."""
        for name, known in self._others.items():
            if known.note.state == "stopped" or self._silence(known) is not None:
                continue
            link = known.links.get(peer)
            had_it = link is not None and link.state == "up"
            if name == holder or (holder is None and had_it):
                return known.note
        return None

    def _age(self, known: _Known, note: LinkNote) -> float:
        return note.since_seconds + (self._silence(known) or 0.0)

    def _shown(self, own: LinkStatus, known: _Known, note: LinkNote) -> LinkStatus:
        """Return a link as another instance sees it."""
        is_up = note.state == "up"
        since, later = self._age(known, note), self._silence(known) or 0.0
        silence = note.silence_seconds
        heard = silence if is_up or silence is None else silence + later
        return msgspec.structs.replace(
            own,
            state=note.state,
            instance=known.note.instance,
            since_seconds=since,
            generation=note.generation,
            address=note.address,
            rtt_seconds=note.rtt_seconds,
            silence_seconds=silence if is_up else None,
            last_heard_seconds=heard,
            peer_version=note.peer_version,
            reason=note.reason,
            detail=note.detail,
            outage_reason=note.reason,
            down_since=note.down_since,
            down_seconds=None if note.down_since is None else since,
            attempts=note.attempts,
            attempt_seconds=None,
            attempt_reason=note.attempt_reason,
            attempt_detail=note.attempt_detail,
            next_attempt_seconds=None,
        )

    def _unknown(self, own: LinkStatus, note: InstanceNote) -> LinkStatus:
        """Return a link that a silent instance had."""
        known = self._others[note.instance]
        heard = known.heard
        since = wall() - note.time if heard is None else self._node.clock.seconds() - heard
        return msgspec.structs.replace(
            own,
            state="unknown",
            instance=note.instance,
            since_seconds=max(0.0, since),
            generation=None,
            address=None,
            reason=None,
            detail=f"the instance {note.instance} has written nothing since {rfc3339(note.time)}",
            outage_reason=None,
            down_since=None,
            down_seconds=None,
            last_heard_seconds=None,
            attempts=0,
            attempt_seconds=None,
            attempt_reason=None,
            attempt_detail=None,
            next_attempt_seconds=None,
        )

    def statuses(self) -> list[InstanceStatus]:
        """Return all instances, by name."""
        found = [self._status(self._note(self._state(), []), 0.0, here=True)]
        for known in self._others.values():
            heard = known.heard
            seen = None if heard is None else self._node.clock.seconds() - heard
            found.append(self._status(known.note, seen, here=False))
        return sorted(found, key=lambda one: one.instance)

    def _status(self, note: InstanceNote, seen: float | None, *, here: bool) -> InstanceStatus:
        state: InstanceState = "draining" if note.state == "draining" else "up"
        if note.state == "stopped":
            state = "stopped"
        elif seen is None or seen > SILENT_SECONDS:
            state = "silent"
        is_live = state in ("up", "draining")
        return InstanceStatus(
            instance=note.instance,
            run=note.run,
            version=note.version,
            state=state,
            here=here,
            keeper=note.keeper and is_live,
            host=note.host,
            api=note.api,
            uptime_seconds=note.uptime_seconds + (seen or 0.0),
            seen_seconds=seen,
            time=rfc3339(note.time),
            log_time=rfc3339(note.log_time),
            log_next=note.log_next,
            links=note.links if is_live else 0,
            peers=note.peers,
            keys=note.keys,
            differs=[] if here or not is_live else self._differs(note),
        )


def _state_of(links: Mapping[str, LinkNote], peer: str) -> str | None:
    return links[peer].state if peer in links else None


def instances_of(
    node: Node, cluster: ClusterSettings | None, store: CursorStore, outages: Outages
) -> Instances | None:
    """Return the instances of a node, or None where there is only one; its events have its name."""
    if cluster is None:
        return None
    node.events.instance = cluster.instance
    return Instances(node, cluster.instance, store, outages)
