"""PROXY headers: whole, in pieces, with extensions, of no use, and malformed."""

from __future__ import annotations

import contextlib
import socket
import struct

import pytest

from linkd.errors import RemoteProtocolError
from linkd.net.proxy_header import (
    MAX_HEADER_BYTES,
    SIGNATURE,
    ProxyHeader,
    begins_header,
    crc32c,
    read_header,
)

LINE = b"PROXY TCP4 203.0.113.7 198.51.100.1 40000 9443\r\n"
V4 = socket.inet_aton("203.0.113.7") + socket.inet_aton("198.51.100.1")
V6 = socket.inet_pton(socket.AF_INET6, "2001:db8::7") * 2
MAPPED = socket.inet_pton(socket.AF_INET6, "::ffff:203.0.113.7") * 2
PORTS = struct.pack("!HH", 40_000, 9443)


def binary(addresses: bytes, kind: int = 0x11, command: int = 0x21, more: bytes = b"") -> bytes:
    """Return a header of version 2."""
    body = addresses + more
    return SIGNATURE + struct.pack("!BBH", command, kind, len(body)) + body


def extension(kind: int, value: bytes) -> bytes:
    """Return one extension of a header of version 2."""
    return struct.pack("!BH", kind, len(value)) + value


def with_checksum(flipped: int = 0) -> bytes:
    """Return a header with a checksum, some of whose bits are flipped."""
    name = extension(2, b"hub.example.net")
    zeroed = binary(V4 + PORTS, more=extension(3, bytes(4)) + name)
    return binary(V4 + PORTS, more=extension(3, struct.pack("!I", crc32c(zeroed) ^ flipped)) + name)


@pytest.mark.parametrize(
    ("header", "source"),
    [
        (LINE, ("203.0.113.7", 40_000)),
        (b"PROXY TCP6 2001:DB8:0::7 ::1 1 65535\r\n", ("2001:db8::7", 1)),
        (b"PROXY TCP6 ::ffff:203.0.113.7 ::1 1 2\r\n", ("203.0.113.7", 1)),
        (b"PROXY UNKNOWN\r\n", None),
        (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", None),
        (binary(V4 + PORTS), ("203.0.113.7", 40_000)),
        (binary(V6 + PORTS, 0x21), ("2001:db8::7", 40_000)),
        (binary(MAPPED + PORTS, 0x21), ("203.0.113.7", 40_000)),
        (binary(V4 + PORTS, more=extension(1, b"h2") + extension(4, b"")), ("203.0.113.7", 40_000)),
        (binary(V4 + PORTS, more=extension(4, bytes(505))), ("203.0.113.7", 40_000)),
        (with_checksum(), ("203.0.113.7", 40_000)),
        (binary(b"", 0, 0x20), None),
        (binary(b"anything", 0x7F, 0x20), None),
        (binary(b"anything", 0), None),
        (binary(b"/run/proxy.sock".ljust(216, b"\0"), 0x31), None),
    ],
)
def test_a_header_is_read_in_one_piece_and_byte_by_byte(
    header: bytes, source: tuple[str, int] | None
) -> None:
    assert read_header(header + b"\x16\x03\x01") == ProxyHeader(source, len(header))
    for end in range(1, len(header)):
        assert read_header(header[:end]) is None
    assert begins_header(header)


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        (b"POST /token HTTP/1.1\r\n", "does not begin with a PROXY header"),
        (b"\x16\x03\x01\x02", "does not begin with a PROXY header"),
        (b"PROXY" + bytes(1), "does not begin with a PROXY header"),
        (SIGNATURE[:-1] + b"X", "does not begin with a PROXY header"),
        (b"PROXY TCP4 203.0.113.7 198.51.100.1 40000\r\n", "is malformed"),
        (b"PROXY TCP4 203.0.113.7 198.51.100.1 40000 9443 x\r\n", "is malformed"),
        (b"PROXY TCP4 203.0.113.7 198.51.100.1 65536 9443\r\n", "is malformed"),
        (b"PROXY TCP4 203.0.113.7 198.51.100.1 +4 9443\r\n", "is malformed"),
        (b"PROXY TCP4 203.0.113.7 198.51.100.1 4_0 9443\r\n", "is malformed"),
        (b"PROXY TCP4 2001:db8::7 ::1 1 2\r\n", "is malformed"),
        (b"PROXY TCP6 203.0.113.7 198.51.100.1 1 2\r\n", "is malformed"),
        (b"PROXY UDP4 203.0.113.7 198.51.100.1 1 2\r\n", "is malformed"),
        (b"PROXY TCP4 a\nb 198.51.100.1 1 2\r\n", "is malformed"),
        (b"PROXY TCP4 \xff\xfe 198.51.100.1 1 2\r\n", "is malformed"),
        (b"PROXY TCP4 203.0.113 198.51.100.1 1 2\r\n", "'203.0.113' as the source"),
        (b"PROXY TCP4 203.0.113.7 ..... 1 2\r\n", "'.....' as the destination"),
        (b"PROXY TCP4 203.0.113.7 2001:db8::1 1 2\r\n", "is malformed"),
        (b"PROXY TCP4 203.0.113.7 198.51.100.1 1 99999\r\n", "is malformed"),
        (b"PROXY TCP4 " + b"1" * 100 + b"\r\n", "more than 107 bytes"),
        (binary(V4 + PORTS, command=0x22), "version and command 0x22"),
        (binary(V4 + PORTS, command=0x11), "version and command 0x11"),
        (binary(V4 + PORTS, 0x12), "not of TCP: family 0x12"),
        (binary(V4 + PORTS, 0x41), "not of TCP: family 0x41"),
        (binary(V4), "shorter than its addresses"),
        (binary(V6, 0x21), "shorter than its addresses"),
        (binary(V4 + PORTS, 0x31), "shorter than its addresses"),
        (binary(V4 + PORTS, more=b"\x01\x00"), "is cut off"),
        (binary(V4 + PORTS, more=b"\x01\x00\x02h"), "is cut off"),
        (with_checksum(flipped=1), "checksum of its PROXY header is wrong"),
        (binary(V4 + PORTS, more=extension(3, b"abc")), "checksum of its PROXY header is wrong"),
        (binary(V4 + PORTS, more=extension(4, bytes(506))), "has 537 bytes, at most 536"),
        (SIGNATURE + b"\x21\x11\xff\xff", "has 65551 bytes, at most 536"),
    ],
)
def test_a_malformed_header_is_refused_with_a_reason(header: bytes, complaint: str) -> None:
    with pytest.raises(RemoteProtocolError, match=complaint):
        read_header(header)
    for end in range(1, len(header)):  # no piece of it is taken for a header
        with contextlib.suppress(RemoteProtocolError):
            assert read_header(header[:end]) is None


def test_the_checksum_is_that_of_the_source() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert MAX_HEADER_BYTES == 536


@pytest.mark.parametrize("data", [b"POST /token", b"GET /link", b"\x16\x03\x01", b"\r\n\r\n", b"P"])
def test_nothing_that_is_served_begins_like_a_header(data: bytes) -> None:
    assert not begins_header(data)
