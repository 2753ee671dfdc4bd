"""Metrics for Prometheus: the node's status at each scrape, and histograms of past events.

The text is written here: prometheus_client takes ten times as long, and a scrape of 1,000 peers
must not hold up a heartbeat. A test parses it with that library.
"""

from __future__ import annotations

import platform
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred

from linkd.node.bus import DROPPED as BUS_DROPPED
from linkd.status import ConsumerStatus, InstanceStatus, LinkStatus, NodeStatus

if TYPE_CHECKING:
    from linkd.net.rate_limit import FairShare
    from linkd.node.node import Node
    from linkd.node.replicator import Measure

OUTAGE_BUCKETS = (
    *(0.5, 1.0, 2.0, 3.0, 5.0, 6.0, 7.5, 9.0, 10.5, 12.0, 15.0, 30.0, 60.0, 300.0, 1800.0),
    *(7200.0, 43_200.0),
)
"""A listener notices after 7 s and a dialer after 10 s, and a little: bounds are beyond those."""

FAST_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
AGE_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 600.0, 3600.0)
PAGE_SECONDS = 1.0
"""Seconds for which one rendered page serves all requests."""

_Value = Callable[[LinkStatus], float | None]

LINK_GAUGES: tuple[tuple[str, str, _Value], ...] = (
    ("linkd_link_up", "1 while the link is up.", lambda link: link.state == "up"),
    ("linkd_link_rtt_seconds", "The last round trip.", lambda link: link.rtt_seconds),
    (
        "linkd_link_silence_seconds",
        "How long nothing was heard.",
        lambda link: link.silence_seconds,
    ),
    (
        "linkd_link_outage_seconds",
        "Of the outage that the link is in, 0 while it is up.",
        lambda link: link.down_seconds or 0.0,
    ),
    (
        "linkd_link_clock_skew_seconds",
        "By how much the peer's wall clock is ahead of this host's.",
        lambda link: link.clock_skew_seconds,
    ),
    ("linkd_link_backlog_records", "Records owed.", lambda link: link.backlog_records),
    ("linkd_link_backlog_bytes", "Bytes owed.", lambda link: link.backlog_bytes),
    (
        "linkd_link_backlog_age_seconds",
        "The age of the oldest record owed.",
        lambda link: link.backlog_age_seconds or 0.0,
    ),
)
LINK_COUNTERS: tuple[tuple[str, str, _Value], ...] = (
    ("linkd_records_sent_total", "Records sent.", lambda link: link.sent_records),
    ("linkd_records_received_total", "Records received.", lambda link: link.received_records),
)


DROPPED = (
    *("refused", "expired", "dropped", "stale", "gap"),
    *("not-relayed", "false-origin", "repeated"),
)
FELL = ("silence", "ping-timeout", "closed")
"""Counters that each peer has from the start, at 0: Prometheus sees no increase in a series that
begins with its count. A link falls for other reasons too, but seldom."""

REFUSED = ("busy", "protocol", "rejected", "tls", "closed", "duplicate")
STORED = {
    "late": "Records stored behind later ones of their origin and channel.",
    "unproven": "Records stored although nothing proves that they are new.",
}
"""Counters of records that were not dropped."""


INSTANCE_GAUGES: tuple[tuple[str, str, Callable[[InstanceStatus], float | None]], ...] = (
    (
        "linkd_instance_up",
        "1 while an instance of this node runs, 0 if it is silent.",
        lambda one: None if one.state == "stopped" else one.state != "silent",
    ),
    ("linkd_instance_links", "Links that are up there.", lambda one: one.links),
    ("linkd_instance_keeper", "1 for the one that keeps the log.", lambda one: one.keeper),
    (
        "linkd_instance_differs",
        "1 if its peers or keys are not those here.",
        lambda one: bool(one.differs),
    ),
)


class Histogram:
    """The counts of a histogram.

    Args:
        bounds: Upper bounds of the buckets, ascending.
    """

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def text(self, name: str, label: str = "") -> str:
        """Return its lines, with a label such as `peer="hub"`."""
        below = 0
        lines = []
        more, alone = (f"{label},", f"{{{label}}}") if label else ("", "")
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            below += count
            lines.append(f'{name}_bucket{{{more}le="{bound}"}} {below}')
        lines.append(f"{name}_count{alone} {below}")
        lines.append(f"{name}_sum{alone} {self._sum!r}")
        return "\n".join(lines)


class PeerHistogram:
    """A histogram for each peer; its text is rendered again only after a new value.

    Args:
        name: Of the metric.
        about: Its help.
        bounds: Upper bounds of the buckets, ascending.
    """

    def __init__(self, name: str, about: str, bounds: tuple[float, ...]) -> None:
        self._head = _head(name, about, "histogram")
        self._name = name
        self._bounds = bounds
        self._buckets: dict[str, Histogram] = {}
        self._texts: dict[str, str] = {}

    def begin(self, peer: str) -> None:
        """Have a peer from now on, without a value."""
        if peer not in self._buckets:
            self._buckets[peer] = Histogram(self._bounds)

    def observe(self, peer: str, value: float) -> None:
        """Count a value."""
        if peer not in self._buckets:  # this is asked for each batch
            self.begin(peer)
        self._buckets[peer].observe(value)
        self._texts.pop(peer, None)

    def lines(self) -> Iterator[str]:
        """Yield its text."""
        yield self._head
        texts = self._texts
        for peer, buckets in list(self._buckets.items()):
            text = texts.get(peer)
            if text is None:
                text = texts[peer] = buckets.text(self._name, f'peer="{peer}"')
            yield text


class Metrics:
    """The metrics of one node.

    Args:
        node: The node.
        delayed_calls: Returns the number of delayed calls in the reactor.

    Attributes:
        publish: Seconds from a publish to its answer.
        refused: Connections that the listener refused, by reason, where there is one.
        api_refused: Connections that the API refused, by reason.
        shortages: Returns how often descriptors have run short.
    """

    def __init__(self, node: Node, delayed_calls: Callable[[], int] = lambda: 0) -> None:
        self.refused: Mapping[str, int] = {}
        self.api_refused: Mapping[Any, int] = {}
        self.shortages: Callable[[], int] = lambda: 0
        self._node = node
        self._delayed_calls = delayed_calls
        self.publish = Histogram(FAST_SECONDS)
        self._commit = Histogram(FAST_SECONDS)
        node.log.on_written.append(self._commit.observe)
        node.on_measured.append(self._measured)
        node.on_fell.append(self._fell)
        self._round_trip = PeerHistogram(
            "linkd_link_round_trip_seconds",
            "Round trips of pings.",
            FAST_SECONDS,
        )
        self._age = PeerHistogram(
            "linkd_records_age_seconds",
            "Of received batches, from their publish to their arrival, by both wall clocks.",
            AGE_SECONDS,
        )
        self._noticed = PeerHistogram(
            "linkd_link_noticed_after_seconds",
            "From the last byte until the outage was noticed.",
            OUTAGE_BUCKETS,
        )
        self._down = PeerHistogram(
            "linkd_link_down_seconds",
            "From the last byte until the next connection was up.",
            OUTAGE_BUCKETS,
        )
        node.on_rose.append(self._down.observe)
        self._outages: Counter[tuple[str, str]] = Counter()
        self._zeros: dict[tuple[str, str], str] = {}  # text by metric and peer
        self._attempts: Counter[str] = Counter()
        self._attempts_seen: dict[str, int] = {}
        self._page: bytes | None = None
        self._page_at = 0.0
        self._waiting: list[Deferred[None]] = []  # for the page that is made

    async def page(
        self, links: Callable[[], Coroutine[object, object, list[LinkStatus]]], share: FairShare
    ) -> bytes:
        """Return all of it but the named consumers in the text format 0.0.4, made in slices.

        It is made once for all who ask within `PAGE_SECONDS`.

        Args:
            links: Looks at the state of all links, in slices.
            share: Gives turns.
        """
        if self._page is None or share.seconds() - self._page_at >= PAGE_SECONDS:
            waiting: Deferred[None] = Deferred()
            self._waiting.append(waiting)
            if len(self._waiting) == 1:
                Deferred.fromCoroutine(self._make_page(links, share)).addBoth(self._made)
            await waiting
        return self._page or b""

    async def _make_page(
        self, links: Callable[[], Coroutine[object, object, list[LinkStatus]]], share: FairShare
    ) -> None:
        status = self._node.status(await links())
        lines: list[str] = []
        until = share.end()
        for line in self.lines(status):
            lines.append(line)
            if share.seconds() >= until:
                await share.turn()
                until = share.end()
        self._page = "\n".join(lines).encode()
        self._page_at = share.seconds()

    def _made(self, outcome: Any) -> None:
        """Go on with all waiting requests; a Failure fails them."""
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            if not one.called:
                one.callback(outcome)

    def lines(self, status: NodeStatus) -> Iterator[str]:
        """Yield its lines, some of them together."""
        peers = [link.peer for link in status.links]
        for peer in peers:
            self._noticed.begin(peer)
        yield from _of_links(status.links, LINK_GAUGES, "gauge")
        yield from _of_certificates(status)
        yield from _of_links(status.links, LINK_COUNTERS, "counter")
        yield from self._of_attempts(status.links)
        yield from self._of_outages(peers)
        yield from self._noticed.lines()
        yield from self._down.lines()
        yield from self._round_trip.lines()
        yield from self._age.lines()
        yield from self._of_dropped(peers)
        yield from self._of_refused()
        yield from _of_node(status)
        yield from self._of_instances()
        yield from self._of_bus()
        yield from self._of_disk()
        name = "linkd_process_delayed_calls"
        yield _head(name, "Calls that wait for their time: a leak of timers shows here.", "gauge")
        yield f"{name} {float(self._delayed_calls())!r}\n"

    def _measured(self, what: Measure, peer: str, seconds: float) -> None:
        """Count what was measured on a link."""
        (self._age if what == "age" else self._round_trip).observe(peer, seconds)

    def _fell(self, peer: str, reason: str, silence: float | None) -> None:
        """Count that a link has left `up`."""
        self._outages[peer, reason] += 1
        if silence is not None:
            self._noticed.observe(peer, silence)

    def _of_attempts(self, links: Iterable[LinkStatus]) -> Iterator[str]:
        """Yield the attempts: status restarts its count with each outage."""
        name = "linkd_link_attempts_total"
        yield _head(name, "Attempts to reach a peer, as seen at scrapes.", "counter")
        for link in links:
            seen = self._attempts_seen.get(link.peer, 0)
            self._attempts_seen[link.peer] = link.attempts
            self._attempts[link.peer] += link.attempts - (seen if link.attempts >= seen else 0)
            yield f'{name}{{peer="{link.peer}"}} {self._attempts[link.peer]}'

    def _of_outages(self, peers: list[str]) -> Iterator[str]:
        name = "linkd_link_outages_total"
        yield _head(name, "How often a link has left `up` since the start.", "counter")
        fallen = {peer for peer, _ in self._outages}
        for peer in peers:
            counts = self._outages if peer in fallen else None
            yield self._seeded(name, peer, FELL, counts)
        for (peer, reason), count in list(self._outages.items()):
            if reason not in FELL:
                yield f'{name}{{peer="{peer}",reason="{reason}"}} {count}'

    def _of_dropped(self, peers: list[str]) -> Iterator[str]:
        name = "linkd_records_dropped_total"
        yield _head(name, "Records refused, expired, dropped or lost.", "counter")
        counts = {(peer, reason): count for (reason, peer), count in self._node.counts.items()}
        known, counted = {"", *peers}, {peer for peer, _ in counts}
        for peer in peers:
            yield self._seeded(name, peer, DROPPED, counts if peer in counted else None)
        yield _each(name, "", ("expired",), counts)
        for (peer, reason), count in counts.items():
            seeded = ("expired",) if not peer else DROPPED if peer in known else ()
            if reason not in STORED and reason not in seeded:
                yield f'{name}{{peer="{peer}",reason="{reason}"}} {count}'
        for what, about in STORED.items():
            name = f"linkd_records_{what}_total"
            yield _head(name, about, "counter")
            absent = [peer for peer, reason in counts if reason == what and peer not in known]
            for peer in (*peers, *absent):
                yield f'{name}{{peer="{peer}"}} {counts.get((peer, what), 0)}'

    def _of_instances(self) -> Iterator[str]:
        """Yield the instances, where `[cluster]` is set."""
        instances = self._node.instances
        if instances is None:
            return
        found = instances.statuses()
        name = "linkd_instance_info"
        yield _head(name, "1 for the instance that answers, with its name.", "gauge")
        for one in found:
            if one.here:
                yield f'{name}{{name="{one.instance}"}} 1.0'
        for name, about, value in INSTANCE_GAUGES:
            yield _head(name, about, "gauge")
            for one in found:
                figure = value(one)
                if figure is not None:
                    yield f'{name}{{name="{one.instance}"}} {float(figure)!r}'

    def _of_bus(self) -> Iterator[str]:
        """Yield how the bus is, where `cluster.bus` is set."""
        bus = self._node.bus
        if bus is None:
            return
        name = "linkd_bus_connected"
        yield _head(name, "1 while messages reach the other instances over the bus.", "gauge")
        yield f"{name} {float(bus.is_connected)!r}"
        name = "linkd_bus_dropped_total"
        yield _head(name, "Messages of the bus that were dropped.", "counter")
        for reason in BUS_DROPPED:
            yield f'{name}{{reason="{reason}"}} {bus.dropped.get(reason, 0)}'

    def _seeded(
        self,
        name: str,
        peer: str,
        reasons: Iterable[str],
        counts: Mapping[tuple[str, str], int] | None,
    ) -> str:
        """Return a counter's lines of one peer; kept where nothing was counted."""
        if counts is not None:
            return _each(name, peer, reasons, counts)
        text = self._zeros.get((name, peer))
        if text is None:
            text = self._zeros[name, peer] = _each(name, peer, reasons, {})
        return text

    def _of_disk(self) -> Iterator[str]:
        name = "linkd_publish_seconds"
        yield _head(name, "From a publish to its answer, once it is on disk.", "histogram")
        yield self.publish.text(name)
        name = "linkd_log_commit_seconds"
        yield _head(name, "From a commit's first byte until it is on disk.", "histogram")
        yield self._commit.text(name)

    def _of_refused(self) -> Iterator[str]:
        name = "linkd_listener_refused_total"
        yield _head(name, "Connections refused before they were a peer's.", "counter")
        for reason in dict.fromkeys((*REFUSED, *self.refused)):
            yield f'{name}{{reason="{reason}"}} {self.refused.get(reason, 0)}'
        name = "linkd_api_refused_total"
        yield _head(name, "Connections to the API refused because there were too many.", "counter")
        for reason in dict.fromkeys(("connections", "address", *self.api_refused)):
            yield f'{name}{{reason="{reason}"}} {self.api_refused.get(reason, 0)}'
        name = "linkd_descriptor_shortages_total"
        yield _head(name, "How often nearly no descriptor was left.", "counter")
        yield f"{name} {self.shortages()}"


def _head(name: str, about: str, kind: str) -> str:
    return f"# HELP {name} {about}\n# TYPE {name} {kind}"


def _of_links(
    links: list[LinkStatus], metrics: Iterable[tuple[str, str, _Value]], kind: str
) -> Iterator[str]:
    """Yield one line a link for each metric; none where a value is not known."""
    for name, about, value in metrics:
        yield _head(name, about, kind)
        for link in links:
            found = value(link)
            if found is not None:
                yield f'{name}{{peer="{link.peer}"}} {float(found)!r}'


def _each(
    name: str, peer: str, reasons: Iterable[str], counts: Mapping[tuple[str, str], int]
) -> str:
    """Return a counter's lines of one peer, for reasons that have not occurred too."""
    return "\n".join(
        f'{name}{{peer="{peer}",reason="{reason}"}} {counts.get((peer, reason), 0)}'
        for reason in reasons
    )


def _of_certificates(status: NodeStatus) -> Iterator[str]:
    """Yield when each certificate ends: also while no link is up."""
    name = "linkd_certificate_expires_seconds"
    yield _head(name, "Until a certificate ends; negative once it has.", "gauge")
    ends = {(each.role, each.peer): each.expires_seconds for each in status.certificates}
    for link in status.links:
        if link.certificate_expires_seconds is not None:
            ends["peer", link.peer] = link.certificate_expires_seconds
    for (role, peer), seconds in ends.items():
        labels = f'role="{role}"' if peer is None else f'role="{role}",peer="{peer}"'
        yield f"{name}{{{labels}}} {seconds!r}"


def _of_node(status: NodeStatus) -> Iterator[str]:
    log = status.log
    yield _head("linkd_build_info", "Always 1; the versions are in its labels.", "gauge")
    labels = f'version="{status.version}",python="{platform.python_version()}"'
    yield f"linkd_build_info{{{labels}}} 1.0"
    for name, about, value in (
        ("linkd_log_bytes", "What the log occupies.", log.bytes),
        ("linkd_log_max_bytes", "Its bound.", log.max_bytes),
        ("linkd_log_first_offset", "Its oldest offset.", log.first),
        ("linkd_log_next_offset", "Its next offset.", log.next),
        ("linkd_log_full", "1 while publishes are refused.", int(log.full is not None)),
        (
            "linkd_log_stalled_seconds",
            "For which the disk has not finished a commit; 0 below 5.",
            log.stalled_seconds or 0.0,
        ),
        ("linkd_draining", "1 while the node takes no links: `linkd drain`.", int(status.draining)),
        ("linkd_uptime_seconds", "Since the node started.", status.uptime_seconds),
    ):
        yield _head(name, about, "gauge")
        yield f"{name} {float(value)!r}"


def consumer_lags(consumers: Iterable[ConsumerStatus]) -> bytes:
    """Return how far named consumers are behind, in the text format 0.0.4."""
    name = "linkd_consumer_lag_records"
    head = _head(name, "Offsets between a named consumer and the log's end.", "gauge")
    lines = [
        f'{name}{{owner="{one.owner}",consumer="{one.name}"}} {one.lag_records:.1f}'
        for one in consumers
    ]
    return "\n".join([head, *lines, ""]).encode()
