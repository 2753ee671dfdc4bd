"""The text of a configuration file: a Config or ConfigError."""

from __future__ import annotations

import io
from pathlib import PurePosixPath
from typing import Any

from linkd.config import load
from linkd.errors import ConfigError
from tests.fuzz.reading import Input

_TABLES = (
    b"[node]", b"[api]", b"[[api.key]]", b"[listen]", b"[heartbeat]", b"[reconnect]", b"[log]",
    b"[[channel]]", b"[[peer]]", b"[limits]", b"[peer]", b"[[node]]", b"[a.b]", b"[[peer.dial]]",
)  # fmt: skip
_KEYS = (
    b"name", b"state_dir", b"socket", b"http", b"require_key", b"certificate", b"private_key",
    b"key", b"insecure", b"origins", b"hosts", b"secret_file", b"publish", b"subscribe", b"address",
    b"client_ca", b"ping_interval", b"ping_timeout", b"connect_timeout", b"max_delay", b"engine",
    b"max_bytes", b"max_age", b"when_full", b"segment_bytes", b"id_window", b"max_ids", b"delivery",
    b"ttl", b"dial", b"send", b"receive", b"required", b"ca", b"compress", b"pending", b"nme",
    b"subscriptions", b"hello_timeout", b"stable_after", b'"a.b"', b"name.x", b"api", b"peer",
)  # fmt: skip
_VALUES = (
    b'"edge-1"', b'"hub"', b'""', b'"a.>"', b'["a.>", "b"]', b"[]", b"[[]]", b"[1]", b"true",
    b"false", b"5.0", b"7.5", b"60", b"0", b"-1", b"1e400", b"nan", b"inf", b"16777216",
    b"9223372036854775808", b"5", b'"wss://hub:9443/link"', b'["wss://hub:9443/link"]',
    b'["ws://127.0.0.1:1/link"]', b'["http://hub"]', b'"127.0.0.1:8080"', b'"[::1]:99999"',
    b'":9443"', b'"/x"', b'"x"', b'"\\u0000"', b'"$X"', b'"volatile"', b'"reject"', b'"segments"',
    b'"memory"', b"1979-05-27", b"07:32:00", b"{}", b"{a = 1}", b'[{name = "a"}]', b"0x10",
    b'["https://a.example"]', b'"\xff"', b'"0.0.0.0:1"', b'"drop-oldest"', b'"durable"', b"''",
)  # fmt: skip


class Text(PurePosixPath):
    """A file that was never written."""

    content = b""

    def open(self, mode: str) -> io.BytesIO:
        """Open it."""
        return io.BytesIO(self.content)

    def absolute(self) -> PurePosixPath:
        """Return the path."""
        return self


def one(content: bytes) -> None:
    """Load it as the only file; half of the inputs choose lines that such a file may have."""
    path: Any = Text("/fuzz/linkd.toml")
    path.content = content if content[:1] < b"\x80" else _lines(Input(content[1:]))
    try:
        load([path])
    except ConfigError:
        return


def _lines(given: Input) -> bytes:
    """Return the lines of a file that is near to a proper one."""
    lines = [] if given.byte() & 1 else [b"[node]", b'name = "edge-1"']
    for _ in range(32):
        if not given:
            break
        what = given.byte() % 8
        if what < 2:
            lines.append(given.choice(_TABLES))
        elif what == 7:
            lines.append(given.choice(_KEYS) + b" = " + given.piece())
        else:
            lines.append(given.choice(_KEYS) + b" = " + given.choice(_VALUES))
    return b"\n".join(lines)
