"""By which names and addresses this host is known; without asking any name server."""

from __future__ import annotations

import fcntl
import ipaddress
import re
import socket
import struct
from typing import Final

from linkd.config.addresses import parse_address

_ANY: Final = frozenset({"", "0.0.0.0", "::"})  # noqa: S104 -- what [listen] may say
_OUTSIDE: Final = (
    (socket.AF_INET, ("192.0.2.1", 9)),
    (socket.AF_INET6, ("2001:db8::1", 9)),
)
"""Addresses for documentation (RFC 5737, RFC 3849): to find which of ours leads outside."""

_SIOCGIFADDR: Final = 0x8915
"""ioctl: an interface's IPv4 address; netdevice(7)."""

_GIVEN = re.compile(r"(?P<host>\[[0-9a-f:.]+\]|[a-z0-9.-]+)(:(?P<port>[0-9]{1,5}))?")


def host_of(address: str) -> str:
    """Return the host in `HOST:PORT` or `[IPV6]:PORT`, without brackets."""
    return address.rpartition(":")[0].strip("[]")


def public_address(listen: str, given: str | None) -> str:
    """Return `HOST:PORT` at which others reach the listener.

    Args:
        listen: `listen.address`.
        given: `HOST` or `HOST:PORT` as a person gave it; a URL of linkd too. None: find it.

    Raises:
        ValueError: `given` is neither, or this host has no address to the outside.
    """
    host, port = parse_address(listen)
    if given is not None:
        bare = given.lower().removeprefix("wss://").removesuffix("/link").rstrip("/")
        match = _GIVEN.fullmatch(bare)
        if match is None:
            raise ValueError(f"{given!r}: expected HOST or HOST:PORT")
        return f"{match['host']}:{match['port'] or port}"
    if host not in _ANY:
        return _joined(host, port)
    name = socket.gethostname().lower()
    if "." in name and not name.endswith((".localdomain", ".local")):
        return _joined(name, port)
    addresses = _outgoing()
    if not addresses:
        raise ValueError("this host has no address to the outside: name one with --address")
    return _joined(addresses[0], port)


def own_hosts(node: str, listen: str) -> list[str]:
    """Return names and addresses that this node's own certificate is for."""
    host, _ = parse_address(listen)
    found = [node, socket.gethostname().lower(), "localhost", "127.0.0.1", "::1"]
    found += _outgoing() if host in _ANY else [host]
    return [each for each in dict.fromkeys(found) if re.fullmatch(r"[a-z0-9.:-]{1,253}", each)]


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _outgoing() -> list[str]:
    """Return the addresses that packets to the outside would carry; sends none.

    Without a route to the outside: the addresses of this host's lines, so that two hosts on a line
    of their own can be paired.
    """
    found = []
    for family, target in _OUTSIDE:
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect(target)
                found.append(str(ipaddress.ip_address(probe.getsockname()[0].partition("%")[0])))
        except OSError:
            continue
    return found or _of_interfaces()


def _of_interfaces() -> list[str]:
    """Return the IPv4 addresses of all interfaces but the loopback."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                asked = struct.pack("256s", name.encode()[:15])
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, asked)
            except OSError:
                continue
            address = ipaddress.IPv4Address(answer[20:24])
            if not address.is_loopback:
                found.append(str(address))
    return found
