"""Read the PROXY header, versions 1 and 2, in which a balancer names the real address.

Twisted's parsers (`twisted.protocols.haproxy`) pass any text on as an address or a number, raise on
a version 2 header that comes in two pieces, and verify no checksum: an address that a limit counts
and a log prints must be one.

Source: https://www.haproxy.org/download/2.6/doc/proxy-protocol.txt, section 2.
"""

from __future__ import annotations

import ipaddress
import re
import struct
from typing import Final, NamedTuple

from linkd.errors import RemoteProtocolError

MAX_HEADER_BYTES: Final = 536
"""The header must fit in the first segment of any path; source: section 2 there."""

HEADER_SECONDS: Final = 3.0
"""Seconds in which the header must have come."""

SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
_LINE_BYTES: Final = 107
_LINE: Final = re.compile(
    rb"PROXY (TCP4|TCP6) ([0-9.:a-fA-F]+) ([0-9.:a-fA-F]+) (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4})"
)
_FIXED_BYTES: Final = 16
_LOCAL, _PROXY = 0x20, 0x21
_UNKNOWN, _TCP4, _TCP6, _UNIX = 0x00, 0x11, 0x21, 0x31
_ADDRESS_BYTES: Final = {_TCP4: 12, _TCP6: 36, _UNIX: 216}
"""The bytes of both addresses by family and transport; a unix socket is one at the balancer."""

_CRC32C: Final = 0x03


class ProxyHeader(NamedTuple):
    """A whole header.

    Attributes:
        source: Host and port of the client; None: the connection's own count.
        size: The header's length in bytes.
    """

    source: tuple[str, int] | None
    size: int


def begins_header(data: bytes) -> bool:
    """Return whether bytes begin like a PROXY header, and like nothing else that is served."""
    return data.startswith((b"PROXY ", SIGNATURE[:5]))


def read_header(data: bytes) -> ProxyHeader | None:
    """Return the header at the beginning of `data`; None while it is incomplete.

    Raises:
        RemoteProtocolError: It is none, is malformed, or longer than `MAX_HEADER_BYTES`.
    """
    if data.startswith(SIGNATURE[: len(data)]):
        return _binary(data)
    if data.startswith(b"PROXY "[: len(data)]):
        return _text(data)
    raise RemoteProtocolError("it does not begin with a PROXY header")


def _text(data: bytes) -> ProxyHeader | None:
    """Read a header of version 1, one line."""
    end = data.find(b"\r\n", 0, _LINE_BYTES)
    if end < 0:
        if len(data) < _LINE_BYTES:
            return None
        raise RemoteProtocolError(f"its PROXY line has more than {_LINE_BYTES} bytes")
    line = data[:end]
    if line == b"PROXY UNKNOWN" or line.startswith(b"PROXY UNKNOWN "):
        return ProxyHeader(None, end + 2)
    found = _LINE.fullmatch(line)
    if found is None:
        raise RemoteProtocolError("its PROXY line is malformed")
    family, source, destination, port, other = (each.decode() for each in found.groups())
    address, behind = _address(source, "source"), _address(destination, "destination")
    is_of_family = address.version == behind.version == int(family[-1])
    if not is_of_family or int(port) > 65_535 or int(other) > 65_535:
        raise RemoteProtocolError("its PROXY line is malformed")
    return ProxyHeader((_plain(address), int(port)), end + 2)


def _address(text: str, what: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return one address of a line."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        raise RemoteProtocolError(f"its PROXY line has {text!r} as the {what}") from None


def _binary(data: bytes) -> ProxyHeader | None:
    """Read a header of version 2."""
    if len(data) < _FIXED_BYTES:
        return None
    command, kind, length = struct.unpack_from("!BBH", data, len(SIGNATURE))
    size = _FIXED_BYTES + length
    if command not in (_LOCAL, _PROXY):
        raise RemoteProtocolError(f"its PROXY header has version and command {command:#04x}")
    if size > MAX_HEADER_BYTES:
        raise RemoteProtocolError(f"its PROXY header has {size} bytes, at most {MAX_HEADER_BYTES}")
    if len(data) < size:
        return None
    if command == _LOCAL or kind == _UNKNOWN:
        return ProxyHeader(None, size)
    if kind not in _ADDRESS_BYTES:
        raise RemoteProtocolError(f"its PROXY header is not of TCP: family {kind:#04x}")
    begin, end = _FIXED_BYTES, _FIXED_BYTES + _ADDRESS_BYTES[kind]
    if size < end:
        raise RemoteProtocolError("its PROXY header is shorter than its addresses")
    _check_extensions(data[:size], end)
    if kind == _UNIX:
        return ProxyHeader(None, size)
    (port,) = struct.unpack_from("!H", data, end - 4)
    raw = data[begin : begin + (4 if kind == _TCP4 else 16)]
    return ProxyHeader((_plain(ipaddress.ip_address(raw)), port), size)


def _check_extensions(header: bytes, position: int) -> None:
    """Walk the extensions, all ignored but the checksum, which must be right where there is one."""
    while position < len(header):
        if len(header) - position < 3:
            raise RemoteProtocolError("an extension of its PROXY header is cut off")
        kind, length = struct.unpack_from("!BH", header, position)
        begin, position = position + 3, position + 3 + length
        if position > len(header):
            raise RemoteProtocolError("an extension of its PROXY header is cut off")
        if kind == _CRC32C:
            zeroed = header[:begin] + bytes(length) + header[position:]
            if header[begin:position] != crc32c(zeroed).to_bytes(4, "big"):
                raise RemoteProtocolError("the checksum of its PROXY header is wrong")


def crc32c(data: bytes) -> int:
    """Return the CRC-32C of bytes. Source: RFC 3720 appendix B.4."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def _plain(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """Return an address as a socket's peer has it: IPv4 in IPv6 form as IPv4."""
    mapped = getattr(address, "ipv4_mapped", None)
    return str(address if mapped is None else mapped)
