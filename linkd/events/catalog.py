"""The catalogue of log events, and `emit`, the one way to log.

A row has name, level and fields of an event, and which lines are repeats of one another.
docs/events.md has its meaning and what a reader does about it; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final, Literal

import msgspec
from twisted.logger import Logger, LogLevel

Level = Literal["debug", "info", "warn", "error"]
Shown = Literal["", "event", "loss"]

COMMON_FIELDS = ("instance", "peer", "generation", "address", "old", "new", "reason", "detail")
"""Fields that any line may have, in this order, ahead of its own."""


class EventSpec(msgspec.Struct, frozen=True):
    """One event in the log.

    Args:
        name: Stable, since programs search for it.
        level: The level unless the caller gives another.
        fields: Its own fields, beside the common ones.
        folds: Two lines with equal values of these fields are repeats; empty: never folded.
        shown: `linkd events` shows it beside the state changes of links: as an `event`, or as a
            `loss` of records, or of a consumer that receives none any more.
    """

    name: str
    level: Level
    fields: tuple[str, ...]
    folds: tuple[str, ...] = ()
    shown: Shown = ""


def _event(
    level: Level, name: str, fields: str = "", folds: str = "", shown: Shown = ""
) -> EventSpec:
    """Return a row of the table; `fields` and `folds` are words separated by spaces."""
    return EventSpec(name, level, tuple(fields.split()), tuple(folds.split()), shown)


debug, info, warn, error = (partial(_event, level) for level in ("debug", "info", "warn", "error"))

_LINK_DOWN = "noticed_after_seconds delay_seconds attempts"

_ROWS = (
    # The daemon
    info("node.starting", "node version state_dir"),
    info("node.ready", "node peers start_seconds"),
    warn("node.drain-started", "links", shown="event"),
    info("node.drained", "drain_seconds", shown="event"),
    info("node.drain-undone", shown="event"),
    info("instance.seen", "other", shown="event"),
    info("instance.stopped", "other", shown="event"),
    warn("instance.silent", "other", shown="event"),
    info("node.stopping", "signal"),
    info("node.stopped", "stop_seconds"),
    info("node.reloaded", "changes"),
    error("node.reload-refused"),
    warn("node.restart-needed", "setting"),
    info("node.network-changed", folds="event"),
    info("node.clock-set", "step_seconds", folds="event"),
    info("node.kicked"),
    warn("node.loop-lag", "late_seconds", folds="event"),
    error("node.stuck", folds="event"),
    error("node.internal-error", "where", folds="where"),
    error("node.thread-died", "thread"),
    error("node.aborted", "signal"),
    error("node.stop-hung", "signal stop_seconds"),
    warn("node.lines-dropped", "lines first last"),
    # The API
    info("api.started", "tls"),
    warn("api.socket-lost", folds="detail"),
    warn("api.refused", "caller status path", folds="reason caller"),
    warn("api.busy", "connections", folds="reason"),
    error("node.descriptors-short", "limit", folds="event"),
    info("node.descriptors-enough", "limit", folds="event"),
    warn("node.limits-held", "limit api_connections pending"),
    # Pairing and drills
    info("pairing.invited", "name expires_seconds"),
    info("pairing.joined", "name"),
    warn("pairing.refused", "name", folds="reason"),
    warn("pairing.revoked", "name"),
    error("pairing.not-revoked", "name"),
    error("pairing.list-not-written", "certificate", folds="event"),
    error("pairing.not-opened"),
    info("pairing.successor", "certificate expires_seconds"),
    info("pairing.trusts", "certificate"),
    warn("drill.started", "drill", shown="event"),
    info("drill.ended", "drill verdict", shown="event"),
    # What libraries log
    warn("library.warn", "namespace", folds="namespace detail"),
    error("library.error", "namespace", folds="namespace detail"),
    # Links
    debug("link.connecting"),
    debug("link.opening"),
    debug("link.resuming"),
    info("link.up", "outage_seconds attempts replayed_records peer_version"),
    warn("link.waiting", _LINK_DOWN, folds="peer reason"),
    error("link.rejected", _LINK_DOWN, folds="peer reason detail"),
    error("link.diverged"),
    info("link.stopped"),
    info("link.drained", "drained_seconds replayed_records"),
    info("link.replaced"),
    error("link.cloned-host", folds="peer"),
    error("link.gap", "first next records", shown="loss"),
    error("link.records-lost", "first next records", shown="loss"),
    warn("link.large-messages-lost", folds="peer"),
    warn("link.nothing-passes", folds="peer"),
    warn("link.clock-skew", "skew_seconds", folds="peer"),
    error("link.ack-overdue", folds="peer"),
    warn("link.left-out", folds="peer"),
    error("link.out-of-step", folds="peer"),
    warn("link.new-log", shown="event"),
    info("link.duplicate-records", "channel records", folds="peer"),
    error("link.relay-refused", "channel records"),
    error("link.false-origin", "channel records", folds="peer"),
    warn("link.late-records", "channel origin first"),
    error("link.unproven-records", "channel origin first records", folds="peer"),
    warn("link.unwanted-records", "channel records", folds="peer"),
    warn("link.acks-paused", folds="peer", shown="event"),
    error("link.absent", "records bytes", shown="event"),
    info("link.returned", shown="event"),
    error("link.forgotten", "records bytes", shown="loss"),
    info("link.kicked"),
    warn("link.resynced"),
    # Connections and the listener
    info("listener.started", "tls"),
    info("listener.stopped"),
    warn("listener.rate-limited", "pending", folds="reason"),
    warn("listener.addresses-lost", folds="event"),
    warn("connection.refused", "claimed close_code balancer", folds="peer reason balancer"),
    error("connection.protocol", "close_code", folds="peer reason"),
    info("tls.loaded", "certificate expires_seconds days"),
    error("tls.reload-failed", "certificate"),
    warn("tls.repaired", "certificate"),
    warn("tls.expiring", "certificate expires_seconds days", folds="certificate"),
    # The bus between the instances of a cluster
    info("bus.connected", shown="event"),
    error("bus.away", shown="event"),
    warn("bus.refused", folds="reason"),
    # The log and consumers
    info("log.opened", "id epoch first next bytes open_seconds"),
    error("log.damaged", "file first next", shown="loss"),
    warn("log.repaired", "file bytes", shown="event"),
    info("log.unclean-shutdown", "file bytes"),
    warn("cursors.rebuilt", "file", shown="event"),
    error("log.gone", shown="event"),
    warn("log.clock-doubtful", shown="event"),
    error("log.full", "bytes max_bytes", shown="event"),
    error("log.engine-away", shown="event"),
    info("log.engine-back", shown="event"),
    info("log.epoch", shown="event"),
    error("log.fenced", shown="event"),
    warn("log.no-standby"),
    error("log.went-back", shown="event"),
    info("log.space-available", "bytes max_bytes", shown="event"),
    error("log.disk-failed", "file", folds="reason", shown="event"),
    warn("log.dropped", "first next records", folds="peer", shown="loss"),
    warn("log.trimmed", "first next records", shown="event"),
    error("log.stalled", "seconds", shown="event"),
    info("log.stall-ended", shown="event"),
    warn("log.slow", folds="event"),
    info("consumer.created", "owner consumer next"),
    warn("consumer.replaced", "owner consumer", folds="owner consumer"),
    error(
        "consumer.gap", "owner consumer first next records", folds="owner consumer", shown="loss"
    ),
    error(
        "consumer.passed-over", "owner consumer first next", folds="owner consumer", shown="loss"
    ),
    error("consumer.removed", "owner consumer next idle_seconds", shown="loss"),
    info("consumer.deleted", "owner consumer next"),
    info("consumer.moved", "owner consumer next"),
    error("consumer.orphaned", "owner consumers records", shown="loss"),
    warn("ids.forgotten"),
    warn("producers.forgotten"),
)

EVENTS: Mapping[str, EventSpec] = {row.name: row for row in _ROWS}

Value = str | int | float | bool | None

_log = Logger(namespace="linkd")
LEVELS: Final[dict[Level, Any]] = {
    "debug": LogLevel.debug,
    "info": LogLevel.info,
    "warn": LogLevel.warn,
    "error": LogLevel.error,
}


_unwanted: tuple[Level, ...] = ()


def leave_out(*levels: Level) -> None:
    """Skip events of these levels from now on: no observer writes them."""
    global _unwanted  # noqa: PLW0603 - as the log, it is one for the process
    _unwanted = levels


def unknown_fields(event: str, fields: list[str] | tuple[str, ...]) -> list[str]:
    """Return what of `fields` the table lacks for `event`; `["event"]` for an unknown event."""
    kind = EVENTS.get(event)
    if kind is None:
        return ["event"]
    return [name for name in fields if name not in kind.fields and name not in COMMON_FIELDS]


def emit(event: str, level: Level | None = None, /, **fields: Value) -> None:
    """Log one line.

    A name or a field that the table lacks does not stop the daemon: the line is written, and a
    `node.internal-error` beside it. tests/unit/test_events.py finds such calls in the source.

    Args:
        event: A name in the table.
        level: Another than the table's, where the case is better or worse.
        fields: What was measured; None is left out. Durations in seconds, sizes in bytes.
    """
    loose = unknown_fields(event, tuple(fields))
    if loose:
        emit(
            "node.internal-error",
            where=event,
            detail=f"the table of events has no {', '.join(loose)}",
        )
    kind = EVENTS.get(event)
    chosen = level or (kind.level if kind else "error")
    if chosen in _unwanted:
        return
    _log.emit(LEVELS[chosen], None, event=event, **fields)
