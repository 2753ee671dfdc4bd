"""Lines on their way to standard error or the journal: a bounded queue, and a thread."""

from __future__ import annotations

import io
import os
import re
import select
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Final, NamedTuple

from linkd.clock import wall

JOURNAL_SOCKET: Final = "/run/systemd/journal/socket"
RETRY_SECONDS: Final = 5.0
"""The journal is tried again this long after it was lost; until then standard error is used."""

MAX_MESSAGE_BYTES: Final = 32_768
MAX_VALUE_BYTES: Final = 4_096
"""Longer texts are cut: one datagram must fit into a socket's buffer, 208 KiB by default."""

MESSAGE_IDS: Final[Mapping[str, str]] = {
    "node.ready": "1b6cabeebdf84f6e945740886378b9f1",
    "node.stopped": "968cffee78984af2b928d6918dc45ee0",
    "link.up": "8760110f28034e93a3e631aeda31efae",
    "link.waiting": "c92fea4e942b4edca34af95a1b7e990a",
    "link.rejected": "0af13f0ededd467d9f44c46feca0c14a",
    "link.diverged": "54ce930c8f5a47daa8911ecd689f9465",
    "link.gap": "72de4aab459345b9aa456154849091d2",
    "log.full": "0eef5d372dba4fcba8ccd8ddb8a36a31",
    "log.disk-failed": "05f526f55165447bb551e2a4ee2bf634",
    "tls.expiring": "e6bc5ff824a94394a98da8195873e4f2",
}
"""The events that another program may wait for, by an id that never changes."""

_HEAD: Final = re.compile(rb"<([0-7])>")
_HEADS: Final = re.compile(rb"^<[0-7]>", re.MULTILINE)
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,50}")
_INFO: Final = b"6"
"""The priority of a line without one, as the journal has it for standard error."""


def entry_fields(event: str, fields: Mapping[str, object]) -> bytes:
    """Return an event as fields of the journal: LINKD_EVENT, LINKD_PEER, …, and its MESSAGE_ID."""
    parts = [_field("LINKD_EVENT", event.encode())]
    for name, value in fields.items():
        if value is not None and (journal_name := _journal_name(name)):
            text = _text(value).encode("utf-8", "backslashreplace")
            parts.append(_field(journal_name, text[:MAX_VALUE_BYTES]))
    if event in MESSAGE_IDS:
        parts.append(_field("MESSAGE_ID", MESSAGE_IDS[event].encode()))
    return b"".join(parts)


def entry(line: bytes, fields: bytes) -> bytes:
    """Return the datagram of a line, which begins with its priority as for standard error."""
    found = _HEAD.match(line)
    message = _HEADS.sub(b"", line.rstrip(b"\n"))[:MAX_MESSAGE_BYTES]
    return (
        _field("MESSAGE", message)
        + _field("PRIORITY", found[1] if found else _INFO)
        + _field("SYSLOG_IDENTIFIER", b"linkd")
        + fields
    )


class Journal:
    """A socket of systemd's journal, by its native protocol: entries with fields to search for.

    Nothing here waits. Source: https://systemd.io/JOURNAL_NATIVE_PROTOCOL/ and
    systemd.journal-fields(7).

    Args:
        path: Of the journal's socket.
        clock: Monotonic seconds.
    """

    def __init__(
        self, path: str = JOURNAL_SOCKET, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = path
        self._clock = clock
        self._retry_at = 0.0
        self._is_connected = False
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        # One for the whole life, and connected: poll(2) then reports whether the journal has room.
        self._socket = socket.socket(socket.AF_UNIX, kind)
        self.fileno = self._socket.fileno

    def is_there(self) -> bool:
        """Return whether entries can be sent; connect if that is due."""
        if not self._is_connected and self._clock() >= self._retry_at:
            try:
                self._socket.connect(self._path)
                self._is_connected = True
            except OSError:
                self._lose()
        return self._is_connected

    def send(self, line: bytes, fields: bytes) -> bool:
        """Send one entry; return whether it is the journal's now.

        Raises:
            BlockingIOError: The journal has no room; wait for it.
        """
        try:
            self._socket.send(entry(line, fields))
        except BlockingIOError:
            raise
        except OSError:  # its socket is gone, or the entry larger than its buffer
            self._lose()
            return False
        return True

    def _lose(self) -> None:
        """Use standard error for a while."""
        self._is_connected = False
        self._retry_at = self._clock() + RETRY_SECONDS


@lru_cache(maxsize=1024)
def _journal_name(name: str) -> str:
    """Return the name of a field in the journal; empty if it can have none."""
    return f"LINKD_{name.upper()}" if _NAME.fullmatch(name) else ""


def _field(name: str, value: bytes) -> bytes:
    """Return one field: `NAME=value`, or with its length if it has several lines."""
    if b"\n" in value:
        return name.encode() + b"\n" + len(value).to_bytes(8, "little") + value + b"\n"
    return name.encode() + b"=" + value + b"\n"


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


MAX_BYTES: Final = 1_048_576
MAX_LINES: Final = 10_000
CLOSE_SECONDS: Final = 1.0

_RESERVE: Final = 8
"""This fraction of the queue is reserved for urgent lines."""

_WAIT_SECONDS: Final = 0.02
_GATHER_SECONDS: Final = 0.005
"""A line waits for others: to wake the thread for each took a tenth of a crowd's return."""

_PIECE: Final = 4096
"""Bytes that a pipe takes without blocking once poll(2) reports room. Source: pipe(7), PIPE_BUF."""


_ENTRIES: Final = 64
"""So many entries go to the journal at once. The reactor runs between them: each is a call."""


class Dropped(NamedTuple):
    """Lines dropped by the queue: how many, and Unix seconds of the first and last."""

    lines: int
    first: float
    last: float


class _Line(NamedTuple):
    content: bytes
    urgent: bool
    stamp: float
    fields: bytes

    @property
    def size(self) -> int:
        return len(self.content) + len(self.fields)


class LineSink(io.TextIOBase):
    """Write lines to a descriptor from a thread, so that no caller waits for its reader.

    The queue holds at most `MAX_BYTES` and `MAX_LINES`. Beyond that new lines are dropped and
    counted; once half of the queue is free, one line reports what was dropped. It is a text stream
    too, so that it can take the place of `sys.stderr`.

    The descriptor's flags stay as they are: other processes share them.

    With a journal all lines go there as entries, in the same order, and none to the descriptor;
    while the journal cannot be reached, all go to the descriptor.

    Args:
        descriptor: Where to; if its reader is gone, lines are discarded.
        notice: Returns the line that reports what was dropped, and its fields.
        journal: The journal that reads the descriptor, or None.
    """

    def __init__(
        self,
        descriptor: int,
        notice: Callable[[Dropped], tuple[str, bytes]],
        journal: Journal | None = None,
    ) -> None:
        self._descriptor = descriptor
        self._notice = notice
        self._journal = journal
        self._queue: deque[_Line] = deque()
        self._bytes = 0
        self._written = 0  # of the first line
        self._dropped: Dropped | None = None
        self._part = ""
        self._changed = threading.Condition()
        self._writing = threading.Lock()
        thread = threading.Thread(target=self._run, name="linkd-log-lines", daemon=True)
        # No signal is for this thread: it inherits the mask.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        thread.start()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def put(self, line: str, urgent: bool = False, fields: bytes = b"") -> None:
        """Queue one line, or drop and count it; urgent lines have reserved room.

        Args:
            line: The text, without its end.
            urgent: It reports an error.
            fields: Of its entry in the journal, see `entry_fields`.
        """
        content = (line + "\n").encode("utf-8", "backslashreplace")
        queued = _Line(content, urgent, wall(), fields)
        with self._changed:
            self._report_dropped()
            if self._has_room(queued.size, urgent):
                self._append(queued)
            else:
                self._count_dropped(queued.stamp)

    def write(self, text: str) -> int:
        """Queue the lines of a text; an unfinished line waits for its rest."""
        with self._changed:
            *lines, self._part = (self._part + text).split("\n")
            for line in lines:
                self.put(line, urgent=True)
        return len(text)

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._descriptor

    def drain(self, within: float) -> bool:
        """Write the queue in the calling thread; return whether all was written in time."""
        deadline = time.monotonic() + within
        while self._queue:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            # In short waits: the other thread may have filled the descriptor with the last piece.
            if self._is_ready(min(left, _WAIT_SECONDS)) and not self._write_piece(left):
                return False
        return True

    def finish(self, within: float = CLOSE_SECONDS) -> None:
        """Write what is queued before the process ends.

        Where half of the time is not enough, only urgent lines and the last one are written.

        Args:
            within: Seconds, if the descriptor's reader is slow or has stopped.
        """
        if self._part:
            self.write("\n")
        if not self.drain(within / 2):
            self._keep_urgent()
            self.drain(within / 2)

    def _has_room(self, size: int, urgent: bool) -> bool:
        part = 0 if urgent else 1
        return (urgent or self._dropped is None) and (
            self._bytes + size <= MAX_BYTES - part * MAX_BYTES // _RESERVE
            and len(self._queue) < MAX_LINES - part * MAX_LINES // _RESERVE
        )

    def _append(self, line: _Line) -> None:
        self._queue.append(line)
        self._bytes += line.size
        if len(self._queue) == 1:
            self._changed.notify()

    def _count_dropped(self, stamp: float) -> None:
        if self._dropped is None:
            self._dropped = Dropped(1, stamp, stamp)
        else:
            self._dropped = Dropped(self._dropped.lines + 1, self._dropped.first, stamp)

    def _report_dropped(self) -> None:
        """Queue the line that reports what was dropped, once half of the queue is free."""
        if (
            self._dropped is not None
            and self._bytes <= MAX_BYTES // 2
            and len(self._queue) <= MAX_LINES // 2
        ):
            line, fields = self._notice(self._dropped)
            self._dropped = None
            self._append(_Line((line + "\n").encode(), True, wall(), fields))

    def _keep_urgent(self) -> None:
        """Drop and count all queued lines except urgent, half-written ones and the last."""
        # Not while the other thread writes lines, which it removes from the queue afterwards.
        if not self._writing.acquire(timeout=_WAIT_SECONDS):
            return
        with self._changed:
            last = len(self._queue) - 1
            kept: deque[_Line] = deque()
            for place, line in enumerate(self._queue):
                if line.urgent or place == last or (place == 0 and self._written):
                    kept.append(line)
                else:
                    self._count_dropped(line.stamp)
            self._queue = kept
            self._bytes = sum(line.size for line in kept)
            self._report_dropped()
        self._writing.release()

    def _run(self) -> None:
        """Write queued lines forever."""
        while True:
            with self._changed:
                while not self._queue:
                    self._changed.wait()
            # The kernel counts poll's time: all other waits end late if the clock is stepped.
            select.poll().poll(_GATHER_SECONDS * 1000)
            if self._is_ready(None):
                self._write_piece(None)

    def _open_journal(self) -> Journal | None:
        """Return the journal if the next line goes there: not one that is half written already."""
        journal = self._journal
        return journal if journal is not None and not self._written and journal.is_there() else None

    def _is_ready(self, within: float | None) -> bool:
        """Wait until the descriptor or the journal accepts a piece, or has no reader any more."""
        poll = select.poll()
        poll.register(self._open_journal() or self._descriptor, select.POLLOUT)
        return bool(poll.poll(None if within is None else within * 1000))

    def _write_piece(self, within: float | None) -> bool:
        """Write one queued piece; return whether this thread got its turn in time."""
        if not self._writing.acquire(timeout=-1 if within is None else within):
            return False
        try:
            # Another thread may have written meanwhile.
            if self._is_ready(0.0):
                try:
                    if (journal := self._open_journal()) is not None:
                        self._send_entries(journal)
                    else:
                        self._write_bytes()
                except BlockingIOError:
                    pass
        finally:
            self._writing.release()
        return True

    def _write_bytes(self) -> None:
        piece = self._next_piece()
        try:
            self._remove(os.write(self._descriptor, piece))
        except BlockingIOError:
            raise
        except OSError:
            self._remove(len(piece))

    def _send_entries(self, journal: Journal) -> None:
        """Send queued lines as entries; if the journal is lost, leave the rest."""
        for _ in range(min(_ENTRIES, len(self._queue))):
            line = self._queue[0]
            if not line.content.isspace() and not journal.send(line.content, line.fields):
                return
            self._remove(len(line.content))

    def _next_piece(self) -> bytes:
        # If the journal is back, only the rest of the line that is half written.
        is_rest = self._journal is not None and self._written and self._journal.is_there()
        with self._changed:
            pieces, size = [], -self._written
            for line in self._queue:
                pieces.append(line.content)
                size += len(line.content)
                if size >= _PIECE or is_rest:
                    break
            return b"".join(pieces)[self._written : self._written + _PIECE]

    def _remove(self, size: int) -> None:
        """Remove written bytes from the queue."""
        with self._changed:
            self._written += size
            while self._queue and self._written >= len(self._queue[0].content):
                line = self._queue.popleft()
                self._written -= len(line.content)
                self._bytes -= line.size
            self._report_dropped()
