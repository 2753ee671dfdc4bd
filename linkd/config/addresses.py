"""Addresses and URLs of the configuration."""

from __future__ import annotations

import ipaddress
import os
import re
from typing import Literal
from urllib.parse import urlsplit

import msgspec

DEFAULT_PATH = "/link"
ENVIRONMENT = "environment"
"""The value of `proxy` that asks the environment variables."""

_USER = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_-]{1,63})*\.?")


class Url(msgspec.Struct, frozen=True):
    """Where a peer is dialed.

    Args:
        secure: `wss://`.
        host: A name or an address, without brackets.
        port: TCP port.
        path: Begins with `/`.
    """

    secure: bool
    host: str
    port: int
    path: str

    def __str__(self) -> str:
        """Return the whole URL, port and path included: what is really asked for."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'wss' if self.secure else 'ws'}://{host}:{self.port}{self.path}"


def parse_url(text: str) -> Url:
    """Return the parts of `ws[s]://HOST[:PORT][/PATH]`; the path is `/link` where none is given.

    Raises:
        ValueError: What was expected and got.
    """
    expected = 'expected "wss://HOST:PORT/link" or "ws://HOST:PORT/link"'
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{expected}: {error}") from None
    if parts.scheme not in ("ws", "wss"):
        raise ValueError(f'{expected}: the scheme is "{parts.scheme}"')
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError(f"{expected}: no user, query or fragment belongs there")
    if any(sign.isspace() or not sign.isprintable() for sign in text):
        raise ValueError(f"{expected}: it has a blank or a control character")
    host = parts.hostname or ""
    if not is_host(host):
        raise ValueError(f'{expected}: "{host}" is no host')
    if port == 0:
        raise ValueError(f"{expected}: no port 0")
    secure = parts.scheme == "wss"
    path = parts.path if parts.path not in ("", "/") else DEFAULT_PATH
    return Url(secure, host, port or (443 if secure else 80), path)


class ProxyUrl(msgspec.Struct, frozen=True):
    """A proxy through which a peer is dialed.

    Args:
        scheme: `http` for HTTP CONNECT, `socks5` for SOCKS version 5.
        host: A name or an address, without brackets.
        port: TCP port.
    """

    scheme: Literal["http", "socks5"]
    host: str
    port: int

    def __str__(self) -> str:
        """Return the whole URL."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


def parse_proxy(text: str) -> ProxyUrl:
    """Return the parts of `http://HOST:PORT` or `socks5://HOST:PORT`; `socks5h` is `socks5`.

    The port is required: programs disagree on the default.

    Raises:
        ValueError: What was expected; never a part of `text`, which may contain a password.
    """
    expected = 'expected "http://HOST:PORT" or "socks5://HOST:PORT"'
    if "@" in text:
        raise ValueError(
            f"{expected}: no user and no password belong there: write USER:PASSWORD into a file"
            " and name it in `proxy_secret_file`"
        )
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise ValueError(f"{expected}: this is no URL") from None
    if parts.scheme == "https":
        raise ValueError(f"{expected}: linkd does not speak TLS to a proxy")
    if parts.scheme not in ("http", "socks5", "socks5h"):
        raise ValueError(f"{expected}: another scheme was given")
    if not is_host(host) or not port:
        raise ValueError(f"{expected}: host or port is missing or malformed")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError(f"{expected}: nothing belongs behind the port")
    return ProxyUrl("http" if parts.scheme == "http" else "socks5", host, port)


class BusUrl(msgspec.Struct, frozen=True):
    """Where the bus between the instances of a cluster is: Redis, or Sentinels that know it.

    Args:
        secure: With TLS.
        places: Host and port of the server, or of each Sentinel.
        service: The name under which the Sentinels know the server; None: there are none.
        user: Whose password it is; None: the default user's.
    """

    secure: bool
    places: tuple[tuple[str, int], ...]
    service: str | None = None
    user: str | None = None

    def __str__(self) -> str:
        """Return the whole URL, ports included."""
        scheme = "rediss" if self.secure else "redis"
        hosts = ",".join(
            f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.places
        )
        user = "" if self.user is None else f"{self.user}@"
        if self.service is None:
            return f"{scheme}://{user}{hosts}"
        return f"{scheme}+sentinel://{user}{hosts}/{self.service}"


def parse_bus(text: str) -> BusUrl:
    """Return the parts of `redis[s]://[USER@]HOST[:PORT]` or `redis[s]+sentinel://HOST,…/NAME`.

    Raises:
        ValueError: What was expected; never a part of `text`, which may contain a password.
    """
    expected = 'expected "rediss://HOST:PORT" or "rediss+sentinel://HOST:PORT,HOST:PORT/NAME"'
    scheme, _, rest = text.partition("://")
    if scheme not in ("redis", "rediss", "redis+sentinel", "rediss+sentinel"):
        raise ValueError(f"{expected}: another scheme was given")
    login, at, rest = rest.rpartition("@")
    if ":" in login:
        raise ValueError(
            f"{expected}: no password belongs there: write it into a file and name that in"
            " `bus_password_file`"
        )
    if at and not _USER.fullmatch(login):
        raise ValueError(f"{expected}: the user before `@` is missing or malformed")
    hosts, _, path = rest.partition("/")
    has_sentinels = scheme.endswith("+sentinel")
    if has_sentinels and not _USER.fullmatch(path):
        raise ValueError(f"{expected}: the name under which Sentinel knows the server is missing")
    if path and not has_sentinels:
        raise ValueError(f"{expected}: nothing belongs behind the port")
    if "," in hosts and not has_sentinels:
        raise ValueError(f"{expected}: several hosts are for Sentinel")
    places = tuple([_place(one, 26379 if has_sentinels else 6379) for one in hosts.split(",")])
    if None in places:
        raise ValueError(f"{expected}: host or port is missing or malformed")
    return BusUrl(
        scheme.startswith("rediss"),
        tuple([place for place in places if place is not None]),
        path or None,
        login or None,
    )


def _place(text: str, default: int) -> tuple[str, int] | None:
    """Return host and port of `HOST[:PORT]`; None where it is malformed."""
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return None
    if not is_host(host) or port == 0 or parts.netloc != text:
        return None
    return host, port or default


def check_login_path(path: str) -> None:
    """Check that `proxy_secret_file` is not `USER:PASSWORD` itself.

    Raises:
        ValueError: It has a colon, and there is no such file. The message does not contain it.
    """
    if ":" in path and not os.access(path, os.F_OK):
        raise ValueError(
            "expected the path of a file with `USER:PASSWORD` in its first line; there is no such"
            " file, and what was given is not shown, as it may be a password"
        )


def parse_address(text: str) -> tuple[str, int]:
    """Return host and port of `HOST:PORT`, `[IPV6]:PORT` or `:PORT` (host empty: all addresses).

    Port 0 lets the system choose.

    Raises:
        ValueError: What was expected and got.
    """
    expected = 'expected "ADDRESS:PORT", "[IPV6]:PORT" or ":PORT"'
    host, colon, digits = text.rpartition(":")
    if not colon or not digits.isascii() or not digits.isdigit() or int(digits) > 65535:
        raise ValueError(f"{expected}, the port from 0 to 65535")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if ":" not in host:
            raise ValueError(f"{expected}: brackets are for IPv6 addresses")
    elif ":" in host:
        raise ValueError(f"{expected}: an IPv6 address needs brackets")
    if host == "localhost":
        host = "127.0.0.1"
    try:
        return (str(ipaddress.ip_address(host)) if host else ""), int(digits)
    except ValueError:
        raise ValueError(f'{expected}: "{host}" is no address of this host') from None


def parse_network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """Return the network of `ADDRESS` or `ADDRESS/BITS`; one of IPv4 in IPv6 form as IPv4.

    Raises:
        ValueError: What was expected and got.
    """
    try:
        network = ipaddress.ip_network(text)
    except ValueError as error:
        raise ValueError(f'expected "ADDRESS" or "ADDRESS/BITS": {error}') from None
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    if mapped is None or network.prefixlen < 96:
        return network
    return ipaddress.IPv4Network((mapped, network.prefixlen - 96))


def is_loopback(host: str) -> bool:
    """Return whether `host` can only be this machine: 127.0.0.0/8, ::1 or localhost."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def is_host(text: str) -> bool:
    """Return whether `text` is a name or an address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        digits_only = all(part.isdigit() for part in text.rstrip(".").split("."))
        return len(text) <= 253 and _HOST.fullmatch(text) is not None and not digits_only
    return True
