"""A node for tests of the API: a log in memory, the real readers, links that a test sets."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import msgspec
from twisted.internet.defer import CancelledError, Deferred, succeed

from linkd.api.metrics import Metrics, consumer_lags
from linkd.config import ApiKey, ApiSettings, ChannelSettings, Config, LimitSettings, NodeSettings
from linkd.errors import LinkdError
from linkd.log import CursorStore
from linkd.log.interface import Appended, OnDurable, Owned
from linkd.node.subscriptions import Subscriptions
from linkd.protocol.channels import Patterns
from linkd.protocol.records import Batch, NewRecords, Origin
from linkd.status import (
    Availability,
    CertificateStatus,
    Event,
    InstanceState,
    InstanceStatus,
    LinkHistory,
    LinkStatus,
    LogStatus,
    NodeStatus,
    Outage,
)
from tests.support.memory_log import MemoryLog

KEY = "k" * 40
SHOP_KEY = "s" * 40


class FakeLinks(dict[str, LinkStatus]):
    """The states of the links, and the part of `linkd.node.links.Links` that the API uses."""

    def __init__(self) -> None:
        super().__init__(hub=link("hub"))
        self.reached: dict[str, int] = {}
        self.waits: list[tuple[str, int, Deferred[None]]] = []

    def wait_for(self, peer: str, next: int) -> Deferred[None]:
        if peer not in self:
            raise KeyError(peer)
        if self.reached.get(peer, 0) >= next:
            return succeed(None)
        waiting: Deferred[None] = Deferred()
        self.waits.append((peer, next, waiting))
        return waiting


class FakeEvents:
    """The part of `linkd.node.history.EventBuffer` that the API uses."""

    def __init__(self) -> None:
        self.kept: list[Event] = []
        self._watchers: list[Callable[[Event], None]] = []

    def add(self, event: Event) -> None:
        """Keep an event, and call the watchers."""
        self.kept.append(event)
        for watcher in list(self._watchers):
            watcher(event)

    def after(self, number: int) -> list[Event]:
        return [event for event in self.kept if event.number > number]

    def follow(self, call: Callable[[Event], None]) -> Callable[[], None]:
        self._watchers.append(call)
        return lambda: self._watchers.remove(call)


class FakeNode:
    """A `linkd.node.node.Node` without links.

    Attributes:
        links: What status says of them; `change` sets one and tells the event.
        published: Drafts as they came.
    """

    def __init__(self, config: Config, clock: Any, *, delayed: bool = False) -> None:
        self.name = config.node.name
        self.config = config
        self.clock = clock
        self.log = MemoryLog(self.name, Random(7), delayed=delayed, clock=clock.seconds)
        self.starting = False
        self.stopping = False
        self.drain = SimpleNamespace(active=False)
        self.instances: Any = None
        self.shared: Any = None
        self.links = FakeLinks()
        self.published: list[NewRecords] = []
        self.counts: Counter[tuple[str, str]] = Counter()
        self.on_measured: list[Any] = []
        self.on_fell: list[Any] = []
        self.on_rose: list[Any] = []
        self.certificates: list[CertificateStatus] = []
        self.on_presence: list[Any] = []
        self.on_sister: list[Any] = []
        self.bus: Any = None
        self.announced: list[tuple[str, bytes, Collection[str] | None]] = []
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.kicked: list[str] = []
        self.absent = {"old": (12, 345)}
        self.recorded: list[Outage] = []
        self.events = FakeEvents()
        self.dispatcher: Any = SimpleNamespace(volatile=lambda *_: None, one_way=lambda _: ())
        self.subscriptions = Subscriptions(self, self.log, CursorStore())
        self._seen = self.log.next
        self.log.on_commit.append(self._committed)

    # what readers need

    def log_event(self, level: str, event: str, **fields: Any) -> None:
        self.told.append((event, fields))

    def count(self, what: str, peer: str, records: int) -> None:
        self.told.append((what, {"records": records}))

    def routes_changed(self) -> None:
        pass

    def _committed(self, next: int) -> None:
        seen, self._seen = self._seen, next
        batches = self.log.read(seen, 1 << 62) or []
        for follower in list(self.subscriptions._followers):
            mine = [batch for batch in batches if follower.patterns.match(batch.channel)]
            follower.offer(mine, next)
        self.subscriptions.offered = next

    # as a Node

    def publish(self, draft: NewRecords, settled: OnDurable) -> None:
        self.published.append(draft)
        for rule in self.config.channels:
            if rule.delivery == "volatile" and Patterns((rule.name,)).match(draft.channel):
                origin = Origin(self.name, self.log.id, "", 0)
                batch = Batch(0, draft.channel, draft.count, draft.records, draft.time, origin)
                for follower in self.subscriptions.interested(batch.channel):
                    follower.volatile(batch)
                settled(Appended(0, draft.count))
                return
        self.log.append(draft, settled)

    def announce(self, channel: str, body: bytes, peers: Collection[str] | None = None) -> None:
        self.announced.append((channel, body, peers))

    def remove(self, peer: str) -> None:
        """Let a reload take a peer out of the configuration."""
        del self.links[peer]
        gone = [entry for entry in self.links.waits if entry[0] == peer]
        self.links.waits = [entry for entry in self.links.waits if entry[0] != peer]
        for _, _, waiting in gone:
            waiting.errback(CancelledError())

    def reach(self, peer: str, next: int) -> None:
        """Let a peer have everything below `next`."""
        self.links.reached[peer] = next
        for entry in list(self.links.waits):
            if entry[0] == peer and entry[1] <= next:
                self.links.waits.remove(entry)
                if not entry[2].called:
                    entry[2].callback(None)

    def sends(self, peer: str, channel: str) -> bool:
        if peer not in self.links:
            raise KeyError(peer)
        return not channel.startswith("private")

    def drill_began(self, peer: str, drill: str, seconds: float) -> None:
        self._tell_drill(peer, "drill.started", drill, seconds)

    def drill_ended(self, peer: str, drill: str, verdict: str | None) -> None:
        self._tell_drill(peer, "drill.ended", drill, verdict)

    def _tell_drill(self, peer: str, event: str, drill: str, more: object) -> None:
        if peer not in self.links:
            raise KeyError(peer)
        self.told.append((event, {"peer": peer, "drill": drill, "more": more}))

    async def refreshed(self) -> None:
        """There is one instance only: nothing is known elsewhere."""

    async def reached(self, offset: int) -> None:
        """The log here has all that was read."""

    def ack(self, consumer: Owned, next: int) -> Deferred[None]:
        done: Deferred[None] = Deferred()
        self.subscriptions.ack(consumer, next, lambda error: done.callback(None))
        return done

    def move(self, old: Owned, new: Owned) -> Deferred[None]:
        done: Deferred[None] = Deferred()
        self.subscriptions.move(old, new, lambda error: done.callback(None))
        return done

    def forget(self, consumer: Owned) -> Deferred[bool]:
        return succeed(self.subscriptions.forget(consumer, lambda error: None))

    def peers(self) -> list[str]:
        return list(self.links)

    def status(self, links: list[LinkStatus] | None = None, owner: str | None = None) -> NodeStatus:
        log = self.log
        return NodeStatus(
            self.name,
            "0.0.0",
            1.5,
            LogStatus(log.id, log.first, log.next, log.size_bytes, log.max_bytes, log.full),
            self.subscriptions.statuses(owner),
            list(self.links.values()) if links is None else links,
            certificates=self.certificates,
        )

    def link_status(self, peer: str) -> LinkStatus | None:
        return self.links.get(peer)

    def change(self, peer: str, state: Any, reason: str | None = None) -> None:
        """Let a link change its state."""
        old = self.links[peer].state
        self.links[peer] = msgspec.structs.replace(self.links[peer], state=state, reason=reason)
        event = Event(
            len(self.events.kept) + 1,
            "2026-11-21T03:00:00.000Z",
            f"link.{state}",
            peer,
            "b-1",
            old,
            state,
            reason,
            None,
        )
        self.events.add(event)

    def outages(
        self, peer: str | None = None, since_seconds: float | None = None, drills: bool = True
    ) -> list[Outage]:
        return [one for one in self.recorded if peer in (None, one.peer)]

    def availability(self, peer: str | None = None, drills: bool = True) -> list[Availability]:
        return [
            Availability(one, None, None, None, None, None)
            for one in self.links
            if peer in (None, one)
        ]

    def history(self, peer: str) -> LinkHistory:
        if peer not in self.links:
            raise KeyError(peer)
        return LinkHistory(peer, 5.0, "2026-11-21T03:00:00.000Z", [0.04], [1.0], [3], [None], [2])

    def kick(self, peer: str) -> None:
        if peer not in self.links:
            raise KeyError(peer)
        self.kicked.append(peer)

    def resync(self, peer: str, confirmed: bool) -> Deferred[str]:
        if peer not in self.links:
            raise KeyError(peer)
        if peer == "stubborn":
            raise LinkdError("this link has nothing to resync")
        return succeed("nothing would be sent again")

    def count_absent(self, peer: str) -> Iterator[None]:
        """Nothing is to be counted."""
        return iter(())

    def forget_peer(self, peer: str, confirmed: bool) -> tuple[int, int]:
        if peer in self.links:
            raise LinkdError(f"{peer} is configured")
        owed = self.absent[peer]
        if confirmed:
            del self.absent[peer]
        return owed

    def trim(self, before: int, confirmed: bool) -> tuple[int, int]:
        if confirmed:
            return self.log.trim(before), 0
        return max(0, min(before, self.log.next) - self.log.first), 1


def link(peer: str, **changes: Any) -> LinkStatus:
    """Return a link that is up."""
    status = LinkStatus(
        peer, "dialer", "up", 10.0, "b-1", "192.0.2.7:9443", 0.012, 0.4, 0, 0, None, 5, 6, 1,
        None, None, None, "0.0.0", 5_200_000.0, required=True,
    )  # fmt: skip
    return msgspec.structs.replace(status, **changes)


def make_config(directory: Path, **api: Any) -> Config:
    """Return a configuration of an API with two keys, on a free port."""
    directory.mkdir(parents=True, exist_ok=True)
    keys = []
    for name, secret, publish, subscribe in (
        ("admin", KEY, (">",), (">",)),
        ("shop", SHOP_KEY, ("orders",), ("orders", "news.*")),
    ):
        path = directory / f"{name}.key"
        path.write_text(secret)
        path.chmod(0o600)
        keys.append(ApiKey(name=name, secret_file=str(path), publish=publish, subscribe=subscribe))
    settings: dict[str, Any] = {
        "socket": str(directory / "linkd.sock"),
        "http": "127.0.0.1:0",
        "keys": tuple(keys),
        **api,
    }
    return Config(
        node=NodeSettings(name="edge-1", state_dir=str(directory)),
        api=ApiSettings(**settings),
        channels=(ChannelSettings(name="telemetry.>", delivery="volatile"),),
        limits=LimitSettings(subscriptions=256),
    )


def instance(name: str, state: InstanceState = "up", **more: Any) -> InstanceStatus:
    """Return the status of an instance."""
    fields: dict[str, Any] = {
        "here": False, "keeper": False, "host": f"{name}.example.net", "api": None,
        "uptime_seconds": 3605.0, "seen_seconds": 1.5, "time": "2026-12-01T12:00:00.000Z",
        "log_time": "2026-12-01T12:00:00.000Z", "log_next": 7, "links": 3, "peers": "0" * 16,
    } | more  # fmt: skip
    return InstanceStatus(instance=name, run="r", version="0.1.0", state=state, **fields)


def now() -> float:
    """Return Unix seconds."""
    return time.time()


def metrics_text(metrics: Metrics) -> str:
    """Return the whole text of `/metrics`, for a caller who may see all consumers."""
    status = metrics._node.status()
    return "\n".join(metrics.lines(status)) + consumer_lags(status.consumers).decode()
