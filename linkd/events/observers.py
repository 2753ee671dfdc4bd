"""Write log events to standard error or the journal: as text or JSON, with repeats folded."""

from __future__ import annotations

import atexit
import json
import os
import re
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, Literal, NamedTuple, TextIO, cast

import msgspec
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogBeginner

from linkd.clock import wall
from linkd.events.catalog import COMMON_FIELDS, EVENTS, LEVELS, Level, leave_out
from linkd.events.sink import CLOSE_SECONDS, Dropped, Journal, LineSink, entry_fields
from linkd.protocol.json import rfc3339

Fields = Mapping[str, object]
WINDOW = 120.0
MOST_KEYS = 1024


class _Repeats(msgspec.Struct):
    """How often a line was repeated since it was last written, and its latest fields."""

    event: str
    written: float
    peer: object = None
    count: int = 0
    last: Fields = {}
    at: float = 0.0


_Key = tuple[object, ...]


class RepeatFilter:
    """Decide which lines are written.

    Args:
        window: Seconds after a written line in which its repeats are only counted.
    """

    def __init__(self, window: float = WINDOW) -> None:
        self._window = window
        self._known: OrderedDict[_Key, _Repeats] = OrderedDict()
        self._of_peer: dict[object, dict[_Key, None]] = {}

    def take(self, event: str, fields: Fields, now: float) -> list[tuple[str, Fields]]:
        """Return the lines to write for this one: none, itself, or summaries and itself.

        A summary has `repeats`, how many lines it summarises, and `within_seconds`. A line that is
        never folded first settles what was counted for its peer, so that the order stays readable.
        """
        kind = EVENTS.get(event)
        if kind is None or not kind.folds:
            lines = self._settle(fields.get("peer"), now)
            lines.append((event, fields))
            return lines
        key = (event, *(fields.get(name) for name in kind.folds))
        known = self._known.get(key)
        if known is None:
            peer = fields.get("peer") if "peer" in kind.folds else None
            self._known[key] = _Repeats(event, now, peer)
            self._of_peer.setdefault(peer, {})[key] = None
            return [*self._overflow(now), (event, fields)]
        known.count += 1
        known.last = fields
        known.at = now
        return [self._summary(known, now)] if now - known.written >= self._window else []

    def flush(self, now: float, all: bool = False) -> list[tuple[str, Fields]]:
        """Return the summaries that are due at `now`, or all; forget what has long been quiet."""
        lines = []
        for key, known in list(self._known.items()):
            if now - known.written < self._window and not all:
                continue
            if known.count:
                lines.append(self._summary(known, now))
            else:
                self._forget(key)
        return lines

    def _settle(self, peer: object, now: float) -> list[tuple[str, Fields]]:
        """Return the summaries of a peer's counted lines, and forget them."""
        lines = []
        for key in list(self._of_peer.get(peer, ()) if peer is not None else ()):
            known = self._forget(key)
            if known.count:
                lines.append(self._summary(known, now))
        return lines

    def _forget(self, key: _Key) -> _Repeats:
        """Forget a line, and return it."""
        known = self._known.pop(key)
        mine = self._of_peer[known.peer]
        del mine[key]
        if not mine:
            del self._of_peer[known.peer]
        return known

    def _overflow(self, now: float) -> list[tuple[str, Fields]]:
        """Bound the number of remembered lines."""
        if len(self._known) <= MOST_KEYS:
            return []
        oldest = self._forget(next(iter(self._known)))
        return [self._summary(oldest, now)] if oldest.count else []

    def _summary(self, known: _Repeats, now: float) -> tuple[str, Fields]:
        """Return a summary of the counted lines, and reset the count."""
        fields = {
            **known.last,
            "repeats": known.count,
            "within_seconds": round(known.at - known.written, 3),
        }
        known.written, known.count = now, 0
        return known.event, fields


Format = Literal["text", "json"]

_PRIORITIES: Mapping[str, int] = {"debug": 7, "info": 6, "warn": 4, "error": 3}
"""Priorities that the journal reads at the start of a line. Source: sd-daemon(3)."""

_LEVELS: Mapping[object, Level] = {
    **{level: name for name, level in LEVELS.items()},
    LogLevel.critical: "error",
}
_ORDER: Final[tuple[Level, ...]] = ("debug", "info", "warn", "error")

_PLACES: Final = {name: place for place, name in enumerate(COMMON_FIELDS)}
_UNQUOTED: Final = re.compile(r'[^ "=\\]+')

_NOISE = ("dropping connection to peer", "dropConnection", "Connection to/from peer")
"""Warnings of Autobahn whenever a connection ends: the link's own line is more precise."""


def text_line(event: str, fields: Fields) -> str:
    """Return `event key=value …`: common fields first, None left out, floats to a millisecond."""
    words = [event]
    for name in sorted(fields, key=_place):
        value = fields[name]
        if value is not None:
            words.append(f"{name}={_text_value(value)}")
    return " ".join(words)


def json_line(event: str, fields: Fields, level: Level, stamp: float) -> str:
    """Return one JSON object: `time`, `level`, `event`, then the fields; None left out.

    Where a character could command a terminal, all beyond ASCII is escaped.
    """
    line: dict[str, object] = {"time": rfc3339(stamp), "level": level, "event": event}
    for name in sorted(fields, key=_place):
        value = fields[name]
        if value is not None:
            line[name] = round(value, 3) if isinstance(value, float) else value
    text = json.dumps(line, ensure_ascii=False, default=str)
    return text if text.isprintable() else json.dumps(line, default=str)


class LineForm(NamedTuple):
    """The format of a line.

    Args:
        format: `text` or `json`.
        journal: The stream is the journal's: lines begin with their priority instead of the time,
            and have fields.
    """

    format: Format = "text"
    journal: bool = False

    def line(self, event: str, fields: Fields, level: Level, stamp: float) -> str:
        """Return one line."""
        if self.format == "json":
            body = json_line(event, fields, level, stamp)
        else:
            body = text_line(event, fields)
        return self._head(level, stamp) + body

    def traceback(self, text: str) -> str:
        """Return a traceback's lines, each with the priority of an error; none among JSON."""
        if self.format == "json":
            return ""
        head = "<3>" if self.journal else "    "
        return "\n".join(head + line for line in text.rstrip().splitlines())

    def fields(self, event: str, fields: Fields) -> bytes:
        """Return the fields of a line's entry in the journal; none elsewhere."""
        return entry_fields(event, fields) if self.journal else b""

    def dropped(self, dropped: Dropped) -> tuple[str, bytes]:
        """Return the line that reports dropped lines, and its fields."""
        fields = {
            "lines": dropped.lines,
            "first": rfc3339(dropped.first),
            "last": rfc3339(dropped.last),
        }
        event = "node.lines-dropped"
        return self.line(event, fields, EVENTS[event].level, wall()), self.fields(event, fields)

    def _head(self, level: Level, stamp: float) -> str:
        if self.journal:
            return f"<{_PRIORITIES[level]}>"
        return "" if self.format == "json" else f"{rfc3339(stamp)} {level:5} "


TEXT_LINES: Final = LineForm()
"""Lines of text, each with its time."""

Put = Callable[[str, bool, bytes], None]
"""Takes a line, whether it is urgent, and its fields, without blocking: `LineSink.put`."""


class Observer:
    """Write log events to a sink, with repeats folded; from any thread.

    Args:
        put: Takes the lines.
        form: How they look.
        least: Lines below this level are left out.
        clock: Monotonic seconds, for folding.
        common: Fields that every line has.
    """

    def __init__(
        self,
        put: Put,
        form: LineForm = TEXT_LINES,
        least: Level = "info",
        clock: Callable[[], float] = time.monotonic,
        common: Fields = MappingProxyType({}),
    ) -> None:
        self._put = put
        self._common = common
        self._form = form
        self._least = _ORDER.index(least)
        self._clock = clock
        self._folding = RepeatFilter()
        self._levels: dict[str, Level] = {}
        self._lock = threading.RLock()

    def __call__(self, event: LogEvent) -> None:
        """Handle one event of twisted.logger."""
        level = _LEVELS.get(event.get("log_level"), "info")
        name = event.get("event")
        if name is None:
            foreign = _foreign(event, level)
            if foreign is None:
                return
            name, level, fields = foreign
        else:
            fields = _fields(event)
        if _ORDER.index(level) < self._least:
            return
        stamp = event.get("log_time") or wall()
        with self._lock:
            self._levels[name] = level
            for line_event, line_fields in self._folding.take(name, fields, self._clock()):
                self._write(line_event, line_fields, stamp)
        if "log_failure" in event:
            trace = self._form.traceback(event["log_failure"].getTraceback())
            if trace:
                self._put(trace, True, b"")

    def flush(self, all: bool = False) -> None:
        """Write the summaries of repeats that are due, or all."""
        with self._lock:
            for event, fields in self._folding.flush(self._clock(), all):
                self._write(event, fields, wall())

    def _write(self, event: str, fields: Fields, stamp: float) -> None:
        """Write one line."""
        level = self._levels[event]
        if self._common:
            fields = {**self._common, **fields}
        line = self._form.line(event, fields, level, stamp)
        self._put(line, level == "error", self._form.fields(event, fields))


class Installed(NamedTuple):
    """The global log observer and the sink that it writes to."""

    observer: Observer
    sink: LineSink

    def finish(self, within: float = CLOSE_SECONDS) -> None:
        """Write all pending lines and summaries before the process ends."""
        self.observer.flush(all=True)
        self.sink.finish(within)


def to_journal(stream: TextIO, environment: Mapping[str, str]) -> bool:
    """Return whether `stream` is the journal's. Source: systemd.exec(5), JOURNAL_STREAM."""
    device, _, inode = environment.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return (device, inode) == (str(status.st_dev), str(status.st_ino))


def install(
    stream: TextIO, format: Format = "text", least: Level = "info", instance: str | None = None
) -> Installed:
    """Write all log events from now on to `stream`, and what is printed to `sys.stderr` too.

    If the journal reads `stream`, they are sent to it by its own protocol, with fields. What waits
    when the process exits is written then. With `instance` every line has that field.
    """
    form = LineForm(format, to_journal(stream, os.environ))
    sink = LineSink(stream.fileno(), form.dropped, Journal() if form.journal else None)
    common = {} if instance is None else {"instance": instance}
    observer = Observer(sink.put, form, least, common=common)
    leave_out(*_ORDER[: _ORDER.index(least)])
    sys.stderr = cast(TextIO, sink)
    installed = Installed(observer, sink)
    atexit.register(installed.finish)
    globalLogBeginner.beginLoggingTo(
        [cast(ILogObserver, observer)], redirectStandardIO=False, discardBuffer=True
    )
    return installed


def _fields(event: LogEvent) -> Fields:
    """Return the fields of one of our lines; a text beside them is its detail."""
    fields = {
        name: value for name, value in event.items() if name != "event" and name[:4] != "log_"
    }
    if event.get("log_format") and "detail" not in fields:
        fields["detail"] = formatEvent(event)
    return fields


def _foreign(event: LogEvent, level: Level) -> tuple[str, Level, Fields] | None:
    """Return our line for one of Twisted's or Autobahn's, or None if it is not worth one."""
    if level not in ("warn", "error"):
        return None
    text = " ".join(formatEvent(event).split())[:500]
    namespace = str(event.get("log_namespace", ""))
    if "autobahn" in namespace and level == "warn" and any(noise in text for noise in _NOISE):
        return None
    if "log_failure" in event:
        text = f"{text} {event['log_failure'].getErrorMessage()}".strip()
    fields = {"namespace": namespace, "detail": text}
    return (
        ("library.error", "error", fields) if level == "error" else ("library.warn", "warn", fields)
    )


def _place(name: str) -> int:
    """Common fields first, in their order; the rest in their order (sorting is stable)."""
    return _PLACES.get(name, len(_PLACES))


def _text_value(value: object) -> str:
    """Return a value for a line of text: bare if it is one word, without terminal controls."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.3f}"
    text = str(value)
    bare = text.isprintable() and _UNQUOTED.fullmatch(text)
    return text if bare else json.dumps(text, ensure_ascii=not text.isprintable())
