"""The journal of systemd by its native protocol: entries with fields that can be searched for.

Source: https://systemd.io/JOURNAL_NATIVE_PROTOCOL/ and systemd.journal-fields(7).
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Final

SOCKET: Final = "/run/systemd/journal/socket"
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
    """A socket of the journal's; nothing here waits.

    Args:
        path: Of the journal's socket.
        clock: Monotonic seconds.
    """

    def __init__(self, path: str = SOCKET, clock: Callable[[], float] = time.monotonic) -> None:
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
