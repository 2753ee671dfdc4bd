"""Heads of HTTP requests and responses that precede the upgrade."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Final, NamedTuple

from linkd.protocol.peer import SUBPROTOCOL

END: Final = b"\r\n\r\n"

NODE_HEADER: Final = "Linkd-Node"
PEER_HEADER: Final = "Linkd-Peer"
NONCE_HEADER: Final = "Linkd-Nonce"
PROOF_HEADER: Final = "Linkd-Proof"
REASON_HEADER: Final = "Linkd-Reason"
TOKEN_PATH: Final = "/token"  # noqa: S105 - a path
LINK_PATH: Final = "/link"
"""A proxy may serve both below a path of its own: only their last segments count."""

_KEY: Final = re.compile(r"[A-Za-z0-9+/]{22}==")
_HOST: Final = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")

_CONTROLS: Final = bytes({*range(0x20), 0x7F} - {0x09})
"""Bytes that no head contains but in its line ends. Source: RFC 9110 section 5.5."""

TLS_RECORDS: Final = (b"\x15\x03", b"\x16\x03")
"""The beginnings of a TLS alert and of a TLS handshake. Source: RFC 8446 section 5.1."""


class HttpHead(NamedTuple):
    """The first line's words, and the headers by names in lower case; the first one counts."""

    first: list[str]
    headers: dict[str, str]

    def number(self, name: str, most: int) -> int | None:
        """Return a header's number from 0 to `most`, 0 where it is absent, None where it is bad."""
        text = self.headers.get(name, "0")
        if not (text.isascii() and text.isdigit() and len(text) <= 12):
            return None
        return int(text) if int(text) <= most else None

    @property
    def is_last(self) -> bool:
        """Whether the sender of a request wants the connection closed behind the answer."""
        words = self.headers.get("connection", "").lower().split(",")
        return self.first[2:] != ["HTTP/1.1"] or "close" in (word.strip() for word in words)


def has_controls(raw: bytes) -> bool:
    """Return whether a head contains control characters other than tabs and the CRLF of its lines.

    Parsers differ in which of them end a line: then a value of one is a header of the other.
    """
    return len(raw) - len(raw.translate(None, _CONTROLS)) != 2 * raw.count(b"\r\n")


def parse_head(raw: bytes) -> HttpHead | None:
    """Return the head of a request or an answer, without its empty line; None if malformed."""
    if has_controls(raw):
        return None
    lines = raw.decode("latin-1").split("\r\n")
    first = lines[0].split(" ", 2)
    if len(first) < 2:
        return None
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            return None
        name = name.lower()
        if name == "content-length" and name in headers:
            return None  # others may take another one, and the body's end for a request
        headers.setdefault(name, value.strip())
    return HttpHead(first, headers)


class Upgrade(NamedTuple):
    """An upgrade request: its path, its headers by names in lower case, and its subprotocols."""

    path: str
    headers: dict[str, str]
    protocols: list[str]


def usual_upgrade(raw: bytes) -> Upgrade | None:
    """Return the upgrade request with this head if it is exactly as linkd's dialer sends it.

    None: Autobahn must judge it.
    """
    head = parse_head(raw)
    if head is None or head.first != ["GET", head.first[1], "HTTP/1.1"]:
        return None
    path = head.first[1]
    headers = head.headers
    usual = (
        is_below(path, LINK_PATH)
        and headers.get("upgrade", "").lower() == "websocket"
        and headers.get("connection", "").lower() == "upgrade"
        and headers.get("sec-websocket-version") == "13"
        and _KEY.fullmatch(headers.get("sec-websocket-key", "")) is not None
        and _HOST.fullmatch(headers.get("host", "")) is not None
        and headers.get("sec-websocket-protocol", "") == SUBPROTOCOL
        and "origin" not in headers
        and "sec-websocket-extensions" not in headers
        and len(headers) == raw.count(b"\r\n")  # no header twice
    )
    return Upgrade(path, headers, [SUBPROTOCOL]) if usual else None


def is_below(path: str, expected: str) -> bool:
    """Return whether a path is the expected one, alone or below the path of a proxy."""
    return path.endswith(expected) and "?" not in path


def token_path(link_path: str) -> str:
    """Return where a dialer asks for a nonce: beside the path of its link."""
    return link_path.rpartition("/")[0] + TOKEN_PATH


def post(path: str, host: str, node: str, body: bytes = b"") -> bytes:
    """Return a POST request of the node named `node`."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\n{NODE_HEADER}: {node}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode("latin-1") + body


def answer(
    status: int,
    body: bytes,
    retry_after: float | None = None,
    kind: str = "text/plain; charset=utf-8",
    close: bool = True,
    reason: str | None = None,
) -> bytes:
    """Return an HTTP answer.

    Args:
        status: Its number; the phrase is the standard one, never a caller's words.
        body: Its body.
        retry_after: Seconds to stay away.
        kind: The body's content type.
        close: The connection ends behind it.
        reason: Why a dialer is refused, in one word.
    """
    lines = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        f"Content-Type: {kind}",
        f"Content-Length: {len(body)}",
    ]
    if retry_after is not None:
        lines.append(f"Retry-After: {max(1, round(retry_after))}")
    if reason is not None:
        lines.append(f"{REASON_HEADER}: {reason}")
    if close:
        lines.append("Connection: close")
    return "\r\n".join(lines).encode("latin-1") + END + body


def printable(text: str, most: int = 200) -> str:
    """Return a stranger's words, short and without what would break a line."""
    return "".join(each if each.isprintable() else "?" for each in text[:most])
