"""The structs of status, events and outages: the fields of docs/api.md.

Durations are seconds as floats, times RFC 3339 UTC with milliseconds, null if unknown.
"""

from __future__ import annotations

from typing import Literal

import msgspec

LinkState = Literal[
    "stopped", "connecting", "opening", "resuming", "up", "waiting", "rejected", "diverged"
]

InstanceState = Literal["up", "draining", "stopped", "silent"]


class LogStatus(msgspec.Struct, frozen=True):
    """The log: oldest offset, next offset, bytes on disk and their bound.

    `full` is the reason why publishes are refused, or null; `losses` has a sentence for each of the
    newest damages, gaps and losses since the start; `stalled_seconds` counts while the disk
    has not finished a commit, and is null below 5.
    """

    id: str
    first: int
    next: int
    bytes: int
    max_bytes: int
    full: str | None = None
    losses: list[str] = []
    stalled_seconds: float | None = None


class ConsumerStatus(msgspec.Struct, frozen=True):
    """A named consumer: whose it is, its cursor, and its distance to the log's end in offsets."""

    owner: str
    name: str
    next: int
    lag_records: int


class AbsentPeer(msgspec.Struct, frozen=True):
    """A peer whose `[[peer]]` entry is missing and whose cursor, `next`, is kept for a while.

    `absent_seconds` counts running time; after `forgotten_seconds` more the cursor goes.
    """

    peer: str
    next: int
    owed_records: int
    owed_bytes: int
    absent_seconds: float
    forgotten_seconds: float


class RefusedConnection(msgspec.Struct, frozen=True):
    """A connection that this node refused in the last hour, and how often from that address.

    `claimed` is the name that it gave, null where none: only with the reason `duplicate` has it
    proved that name. `address` and `detail` are the newest one's.
    """

    claimed: str | None
    address: str
    reason: str
    detail: str
    count: int
    seconds_ago: float


class LinkStatus(msgspec.Struct, frozen=True):
    """One link, as it is now.

    `large_messages_lost`: small messages pass and large ones did not, so it is dialed with small
    TCP segments, until the daemon restarts or the peer's settings change. `nothing_passes`: when it
    was up last, no channel of this node's `send` was in the peer's `receive`.
    `since_seconds` counts since the link went up, or since it last left `up` (never up: since it
    was configured or the node started), over restarts; never since an attempt began. `reason` and
    `detail` are those of the outage, of the last one where the link is up; `attempt_reason` and
    `attempt_detail` those of the last failed attempt, null while it is up; `attempt_seconds` is the
    age of the attempt that is being made. While it is down, `down_since`, `down_seconds` and
    `last_heard_seconds` (null if never) count from the last byte heard. `compressed`:
    whether the two ends agreed to compress batches; null while it is not up. `clock_skew_seconds`:
    by how much the peer's wall clock is ahead of ours, at least: what the way of its hello explains
    is left out; null while it is not up, or where the peer does not report its clock. At
    `silence_limit_seconds` of silence the link is given up; null without a connection.
    `instance`: of several that serve the node, the one whose link it is: that has it, had it last
    or dials it. `unknown`: that one is silent. Records are those of the instance that answers.
    """

    peer: str
    role: Literal["dialer", "listener"]
    state: LinkState | Literal["unknown"]
    since_seconds: float
    generation: str | None
    address: str | None
    rtt_seconds: float | None
    silence_seconds: float | None
    backlog_records: int
    backlog_bytes: int
    backlog_age_seconds: float | None
    sent_records: int
    received_records: int
    attempts: int
    next_attempt_seconds: float | None
    reason: str | None
    detail: str | None
    peer_version: str | None
    certificate_expires_seconds: float | None
    required: bool = False
    large_messages_lost: bool = False
    nothing_passes: bool = False
    not_relayed_records: int = 0
    down_since: str | None = None
    down_seconds: float | None = None
    last_heard_seconds: float | None = None
    outage_reason: str | None = None
    attempt_seconds: float | None = None
    attempt_reason: str | None = None
    attempt_detail: str | None = None
    compressed: bool | None = None
    clock_skew_seconds: float | None = None
    silence_limit_seconds: float | None = None
    instance: str | None = None


class LinkHistory(msgspec.Struct, frozen=True):
    """The last hour of one link, a value for each `step_seconds`, the newest at `end`.

    Null where it is not known: the link was down, or the node did not run. `silence_seconds` is the
    longest silence within the step; `sent_records` and `received_records` are those of the step.
    """

    peer: str
    step_seconds: float
    end: str
    rtt_seconds: list[float | None]
    silence_seconds: list[float | None]
    backlog_records: list[float | None]
    sent_records: list[float | None]
    received_records: list[float | None]


CertificateRole = Literal["own", "peer", "authority", "ca", "api"]


class CertificateStatus(msgspec.Struct, frozen=True):
    """When a certificate ends, negative once it has; of a chain, the first one that ends.

    `role`: `own`, which this node shows (to `peer`, or to dialers where that is null); `peer`,
    which `peer` showed last; `authority`, which pairing made and renews, here or on the hub `peer`;
    `ca`, any other authority that is trusted (for `peer`, or for dialers); `api`, of the API.
    """

    role: CertificateRole
    peer: str | None
    expires_seconds: float


class DrainStatus(msgspec.Struct, frozen=True):
    """How far `linkd drain` is.

    `done`: all links have ended. `seconds`: since it began, or how long it took; null where the
    node does not drain. `links`: those still connected; `unacknowledged`: those of them that have
    yet to acknowledge, or to be acknowledged, what was owed when the drain began. `owed_records`
    counts what all peers are owed, also those that were down: it waits for them in the log.
    """

    draining: bool
    done: bool
    seconds: float | None
    links: int
    unacknowledged: int
    owed_records: int


class NodeStatus(msgspec.Struct, frozen=True):
    """A node, as it is now.

    `warnings` has a sentence for each thing that an operator must act on and that is not one
    link's, for as long as it lasts: `status --check` is WARNING meanwhile. `absent` has the peers
    whose `[[peer]]` is missing, `refused` the connections that were refused in the last
    hour, newest first; `certificates` lists when those in files end, and those of paired peers.
    `draining`: it takes no links (`linkd drain`). `instance`: the one that answers, of several that
    serve the node; `log` and `links` are those of all.
    """

    node: str
    version: str
    uptime_seconds: float
    log: LogStatus
    consumers: list[ConsumerStatus]
    links: list[LinkStatus]
    warnings: list[str] = []
    absent: list[AbsentPeer] = []
    refused: list[RefusedConnection] = []
    certificates: list[CertificateStatus] = []
    draining: bool = False
    instance: str | None = None


class InstanceStatus(msgspec.Struct, frozen=True):
    """One of the instances that serve a node, as it last wrote of itself.

    `state`: `draining` (it takes no links), `stopped` (by its operator), `silent` (it has written
    nothing for more than 15 s, or not since the instance that answers has started). `here`: it
    answers. `keeper`: it deletes what nobody needs any more, and dials. `seen_seconds`: since it
    wrote, at `time` by its clock; null if that was before the start. `links` counts those that are
    up there. `peers` is a checksum of its `[[peer]]` tables, without paths; `keys` has, for each
    setting of a certificate, a fingerprint of the public key. `differs` has a sentence for each
    thing that must be the same here and there, and is not.
    """

    instance: str
    run: str
    version: str
    state: InstanceState
    here: bool
    keeper: bool
    host: str
    api: str | None
    uptime_seconds: float
    seen_seconds: float | None
    time: str
    log_time: str
    log_next: int
    links: int
    peers: str
    keys: dict[str, str] = {}
    differs: list[str] = []


class Event(msgspec.Struct, frozen=True):
    """One change of a link (`event` "link.<new state>") or of the node.

    `number` counts them, over restarts too; `owner` has the consumer that it is about. An attempt's
    event represents all `count` of one outage that had the same result, from `time` to `until`.
    `instance`: where it happened, of several that serve the node.
    """

    number: int
    time: str
    event: str
    peer: str | None
    generation: str | None
    old: str | None
    new: str | None
    reason: str | None
    detail: str | None
    owner: str | None = None
    count: int = 1
    until: str | None = None
    instance: str | None = None


class Outage(msgspec.Struct, frozen=True):
    """One outage of one link, from the last byte heard until the next connection is up.

    `ongoing`: it has not ended, and `down_seconds` and `attempts` are those so far. `drill`: a
    drill on this node made it. `never_up`: the link had not been up before, since it was configured
    or the node's first start.
    """

    peer: str
    began: str
    reason: str
    noticed_after_seconds: float | None
    down_seconds: float | None
    attempts: int
    replayed_records: int
    drained_seconds: float | None
    ongoing: bool = False
    drill: bool = False
    never_up: bool = False


class Availability(msgspec.Struct, frozen=True):
    """Which share of the time a link was up, of the time in which that was measured.

    Time in which the node did not run, or the link was not configured, counts neither as up nor as
    down. `measured_since` is null where nothing was measured in the last 30 days, a share where
    nothing of its window was. `measured` has the spans of the last 24 hours that were, as [from,
    to].
    """

    peer: str
    measured_since: str | None
    hour: float | None
    day: float | None
    week: float | None
    month: float | None
    measured: list[tuple[str, str]] = []
