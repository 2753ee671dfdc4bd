"""The one way to log."""

from __future__ import annotations

from typing import Any, Final

from twisted.logger import Logger, LogLevel

from linkd.events.catalog import COMMON_FIELDS, EVENTS, Level

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
