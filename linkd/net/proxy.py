"""Tunnels through proxies: HTTP CONNECT and SOCKS5, the choice of a proxy, its credentials.

The protocols themselves are here rather than from python-socks: its core without I/O is private
and takes an answer only whole and alone in its packet.
"""

from __future__ import annotations

import re
import socket
import time
from base64 import b64encode
from contextlib import suppress
from http import HTTPStatus
from ipaddress import ip_address, ip_network
from typing import Any, Final, NamedTuple
from urllib.request import getproxies_environment

from twisted.internet.base import DelayedCall
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import ClientFactory, Protocol, connectionDone
from twisted.python.failure import Failure

from linkd.config.addresses import ENVIRONMENT, ProxyUrl, Url, check_login_path, parse_proxy
from linkd.errors import AttemptFailed, ConfigError, FailureKind, Reason
from linkd.net import http_head
from linkd.net.auth import read_secret_file
from linkd.net.linux import ended, format_address
from linkd.net.timers import cancel

MAX_ANSWER_BYTES: Final = 16_384

_FIRST_BYTES: Final = b"HTTP/"
_CHALLENGES: Final = re.compile(r"(?im)^proxy-authenticate:(.*)")
_QUOTED: Final = re.compile(r'"(?:[^"\\]|\\.)*"?')
_SCHEME: Final = re.compile(r"(?:^|,)[ \t]*+([^ \t,=]++)(?![ \t]*=)")
"""The first word of a challenge, among its parameters. Source: RFC 9110 section 11.6.1."""

_KNOWN_SCHEMES: Final = ("basic", "negotiate", "ntlm", "kerberos", "digest", "bearer")
_OTHER_SCHEME: Final = "another scheme"

_STATUS_FAILURES: Final[dict[str, tuple[FailureKind, Reason]]] = {
    "500": ("refused", "refused"),
    "502": ("refused", "refused"),
    "503": ("refused", "refused"),
    "504": ("unreachable", "unreachable"),
}
"""What CONNECT is answered while the peer is down: dialing costs the peer nothing then, and its
return must be noticed as soon as without a proxy (Squid 503 and 504, tinyproxy 500, nginx 502)."""

_SOCKS_FAILURES: Final[dict[int, tuple[str, FailureKind]]] = {
    1: ("general SOCKS server failure", "refused"),
    2: ("connection not allowed by ruleset", "rejected"),
    3: ("network unreachable", "unreachable"),
    4: ("host unreachable", "unreachable"),
    5: ("connection refused", "refused"),
    6: ("TTL expired", "unreachable"),
    7: ("command not supported", "rejected"),
    8: ("address type not supported", "rejected"),
}
"""The name of a SOCKS5 reply, and its meaning for the next attempt. Source: RFC 1928 section 6."""


class Credentials:
    """User and password for a proxy; shown nowhere."""

    __slots__ = ("password", "user")

    def __init__(self, user: str, password: str) -> None:
        self.user = user
        self.password = password

    def basic(self) -> str:
        """Return both as HTTP's scheme Basic encodes them. Source: RFC 7617."""
        return b64encode(f"{self.user}:{self.password}".encode()).decode()


def load_credentials(path: str) -> Credentials:
    """Return the user and the password in the first line of a file.

    Raises:
        ConfigError: It can't be read, is open to others, or has no such line. The message never
            contains any of it.
        Unavailable: It can't be read now; the reason may pass.
    """
    try:
        check_login_path(path)
    except ValueError as error:
        raise ConfigError(f"the proxy's credentials: {error}") from None
    place, content = read_secret_file(path)
    line = content.split(b"\n", 1)[0].removesuffix(b"\r")
    try:
        user, colon, password = line.decode().partition(":")
    except UnicodeDecodeError:
        raise ConfigError(f"{place}: expected UTF-8 in its first line") from None
    if not (user and colon) or not f"{user}{password}".isprintable():
        raise ConfigError(f"{place}: expected `USER:PASSWORD` in its first line")
    if max(len(user.encode()), len(password.encode())) > 255:
        raise ConfigError(f"{place}: expected a user and a password of at most 255 bytes each")
    return Credentials(user, password)


# -- the choice of a proxy ------------------------------------------------------------------------


def choose_proxy(setting: str | None, target: Url) -> ProxyUrl | None:
    """Return the proxy for a URL, or None to dial it directly.

    Args:
        setting: `[[peer]] proxy`.
        target: `wss://` asks HTTPS_PROXY, `ws://` HTTP_PROXY, then ALL_PROXY, each in lower case
            first; none of them where NO_PROXY names the host.

    Raises:
        ConfigError: The setting or the variable is malformed; the message never contains it. Or
            the target's address is good on this host only.
    """
    if setting is None:
        return None
    name, text = "proxy", setting
    if setting == ENVIRONMENT:
        variables = getproxies_environment()
        name = "https" if target.secure else "http"
        name = name if variables.get(name) else "all"
        text = variables.get(name, "")
        if not text or is_exempt(target.host, target.port, variables.get("no", "")):
            return None
        name = f"environment variable {name.upper()}_PROXY"
        text = text if "://" in text else f"http://{text}"
    if "%" in target.host:
        raise ConfigError(
            f"{name}: a proxy can't use {target.host}, which is good on this host only: dial a name"
            " or another address, or dial it without a proxy"
        )
    try:
        return parse_proxy(text)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from None


def is_exempt(host: str, port: int, no_proxy: str) -> bool:
    """Return whether NO_PROXY exempts a host from the proxy.

    It lists, separated by commas or blanks, as for curl and Go: names, which include their
    subdomains, addresses, networks (`10.0.0.0/8`), or `*` for all; a port may follow.
    """
    host = host.lower().rstrip(".")
    return any(_covers(entry, host, port) for entry in no_proxy.lower().replace(",", " ").split())


def _covers(entry: str, host: str, port: int) -> bool:
    """Return whether one entry of NO_PROXY covers a host."""
    if entry == "*":
        return True
    with suppress(ValueError):
        network = ip_network(entry.strip("[]"), strict=False)
        with suppress(ValueError):
            return ip_address(host) in network
        return False
    name, colon, digits = entry.rpartition(":")
    if not colon:
        name = entry
    elif digits != str(port):
        return False
    elif name == "*":
        return True
    name = name.strip("[]").removeprefix("*").strip(".")
    return host == name or host.endswith(f".{name}")


# -- the protocols --------------------------------------------------------------------------------


class _Handshake:
    """The client's side of a proxy's protocol: bytes in, bytes out, until the tunnel is open.

    Args:
        target: Where the tunnel leads; the proxy looks the name up.
        credentials: For the proxy, or None.
        has_worked: A node has answered at this URL in this run.

    Attributes:
        rest: The target's first bytes, which followed the proxy's answer; None: not open yet.
    """

    def __init__(self, target: Url, credentials: Credentials | None, has_worked: bool) -> None:
        self.rest: bytes | None = None
        self._target = target
        self._credentials = credentials
        self._has_worked = has_worked
        self._data = b""

    def _rejected(self, detail: str) -> AttemptFailed:
        """Return the failure of an attempt that needs an operator, unless the URL has worked.

        As with any answer that is not linkd's own: what has worked may work again soon.
        """
        if self._has_worked:
            return AttemptFailed("broken", "closed", detail)
        return AttemptFailed("rejected", "rejected", detail)

    def _unauthorized(self, answer: str, missing: str) -> AttemptFailed:
        """Return the failure of credentials: always rejected, as repeating it may lock an account.

        Args:
            answer: What the proxy answered.
            missing: What to do where there are no credentials.
        """
        if self._credentials is not None:
            missing = "it does not accept the user and password in `proxy_secret_file`"
        return AttemptFailed("rejected", "rejected", f"{answer}: {missing}")


_SET_SECRET: Final = "set `proxy_secret_file`"  # noqa: S105 - a sentence


class HttpHandshake(_Handshake):
    """HTTP CONNECT. Source: RFC 9110 section 9.3.6."""

    _taken = 0
    """Bytes of the heads so far: interim answers count, too."""

    def begin(self) -> bytes:
        """Return the request."""
        where = format_address(self._target.host, self._target.port)
        head = f"CONNECT {where} HTTP/1.1\r\nHost: {where}"
        if self._credentials is not None:
            head += f"\r\nProxy-Authorization: Basic {self._credentials.basic()}"
        return head.encode("latin-1") + http_head.END

    def receive(self, data: bytes) -> bytes:
        """Process the response; it needs no further bytes to be sent.

        Interim answers may precede it. Source: RFC 9110 section 15.2.
        """
        self._data += data
        while (raw := self._take_head()) is not None:
            head = http_head.parse_head(raw)
            if head is None or not re.fullmatch("[1-9][0-9][0-9]", head.first[1]):
                raise AttemptFailed("broken", "protocol", "the proxy's answer is malformed")
            status = head.first[1]
            if status.startswith("2"):
                self.rest = self._data
                break
            if not status.startswith("1") or status == "101":
                raise self._refusal(head, raw)
        return b""

    def _take_head(self) -> bytes | None:
        """Take the next head, without its empty line; None where it is incomplete."""
        if self._data[: len(_FIRST_BYTES)] != _FIRST_BYTES[: len(self._data)]:
            raise self._rejected("the proxy answered with something that is not HTTP")
        raw, end, rest = self._data.partition(http_head.END)
        size = len(raw) + len(end)
        if self._taken + size > MAX_ANSWER_BYTES:
            detail = f"the head of the proxy's answer has more than {MAX_ANSWER_BYTES} bytes"
            raise AttemptFailed("broken", "protocol", detail)
        if not end:
            return None
        self._taken += size
        self._data = rest
        return raw

    def _refusal(self, head: http_head.HttpHead, raw: bytes) -> AttemptFailed:
        """Return the failure that a status means; never the proxy's words, which may quote ours."""
        status = head.first[1]
        with suppress(ValueError):
            status = f"{status} {HTTPStatus(int(status)).phrase}"
        detail = f"the proxy answered {status} to CONNECT"
        number = head.first[1]
        if number in ("401", "407"):
            schemes = _asked_schemes(raw)
            if not schemes or "basic" in schemes:
                return self._unauthorized(detail, _SET_SECRET)
            asked = f"it asks for {' or '.join(schemes)}, and linkd knows only basic"
            return AttemptFailed("rejected", "rejected", f"{detail}: {asked}")
        retry = head.number("retry-after", 86_400)
        if number in ("429", "503") and retry:
            return AttemptFailed("busy", "busy", detail, float(retry))
        if number in _STATUS_FAILURES:
            kind, reason = _STATUS_FAILURES[number]
            return AttemptFailed(kind, reason, f"{detail}: it does not reach the peer")
        if number.startswith("5") or number in ("408", "429"):
            return AttemptFailed("broken", "closed", detail)
        return self._rejected(detail)


def _asked_schemes(raw: bytes) -> list[str]:
    """Return the authentication schemes in the head of an answer, each once; only known names."""
    text = raw.decode("latin-1").replace("\r\n", "\n")
    found = [
        scheme.lower()
        for challenges in _CHALLENGES.findall(text)
        for scheme in _SCHEME.findall(_QUOTED.sub("", challenges))
    ]
    known = [scheme for scheme in _KNOWN_SCHEMES if scheme in found]
    return known if set(found) <= set(known) else [*known, _OTHER_SCHEME]


class SocksHandshake(_Handshake):
    """SOCKS version 5. Sources: RFC 1928, RFC 1929."""

    def __init__(self, target: Url, credentials: Credentials | None, has_worked: bool) -> None:
        super().__init__(target, credentials, has_worked)
        self._step = self._chosen

    def begin(self) -> bytes:
        """Return the greeting: without authentication, or with user and password."""
        return b"\x05\x01\x00" if self._credentials is None else b"\x05\x02\x00\x02"

    def receive(self, data: bytes) -> bytes:
        """Process the answers, of which several may come at once."""
        self._data += data
        sent = b""
        while self.rest is None and (answer := self._step()) is not None:
            sent += answer
        return sent

    def _take(self, size: int) -> bytes | None:
        """Take bytes that have arrived; None where they are fewer."""
        if len(self._data) < size:
            return None
        taken, self._data = self._data[:size], self._data[size:]
        return taken

    def _chosen(self) -> bytes | None:
        """Process the method that the proxy chose."""
        answer = self._take(2)
        self._check_version(answer or self._data)
        if answer is None:
            return None
        credentials = self._credentials
        if answer[1] == 0:
            return self._connect()
        if answer[1] == 2 and credentials is not None:
            self._step = self._authenticated
            user, password = credentials.user.encode(), credentials.password.encode()
            return b"".join((b"\x01", bytes((len(user),)), user, bytes((len(password),)), password))
        if answer[1] == 0xFF:
            raise self._unauthorized("the proxy accepts no authentication method", _SET_SECRET)
        raise AttemptFailed("broken", "protocol", "the proxy chose a method that was not offered")

    def _authenticated(self) -> bytes | None:
        """Process the answer to user and password."""
        answer = self._take(2)
        if answer is None:
            return None
        if answer[1] != 0:
            raise self._unauthorized("the proxy answered: authentication failed", _SET_SECRET)
        return self._connect()

    def _connect(self) -> bytes:
        """Return the request for the tunnel."""
        self._step = self._connected
        host = self._target.host
        try:
            address = ip_address(host)
            where = (b"\x01" if address.version == 4 else b"\x04") + address.packed
        except ValueError:
            where = b"\x03" + bytes((len(host),)) + host.encode("ascii")
        return b"\x05\x01\x00" + where + self._target.port.to_bytes(2, "big")

    def _connected(self) -> bytes | None:
        """Process the answer to the request, whose length depends on the kind of address in it."""
        self._check_version(self._data)
        if len(self._data) >= 2 and self._data[1] != 0:
            raise self._refusal(self._data[1])
        if len(self._data) < 5:
            return None
        size = {1: 10, 3: 7 + self._data[4], 4: 22}.get(self._data[3])
        if size is None:
            raise AttemptFailed("broken", "protocol", "the proxy's answer is malformed")
        if self._take(size) is not None:
            self.rest = self._data
        return None

    def _refusal(self, number: int) -> AttemptFailed:
        words, kind = _SOCKS_FAILURES.get(number, (f"unknown reply {number}", "broken"))
        detail = f"the proxy answered: {words}"
        if kind == "rejected":
            return self._rejected(detail)
        return AttemptFailed(kind, "closed" if kind == "broken" else kind, detail)

    def _check_version(self, answer: bytes) -> None:
        """Raise AttemptFailed where an answer, if there is one, is not of version 5."""
        if answer and answer[0] != 5:
            raise self._rejected("the proxy answered with something that is not SOCKS5")


ProxyHandshake = HttpHandshake | SocksHandshake


def make_handshake(
    proxy: ProxyUrl, target: Url, credentials: Credentials | None, has_worked: bool
) -> ProxyHandshake:
    """Return the handshake with a proxy."""
    kind = HttpHandshake if proxy.scheme == "http" else SocksHandshake
    return kind(target, credentials, has_worked)


# -- with I/O -------------------------------------------------------------------------------------


class TunnelFactory(ClientFactory):
    """Builds the protocol of a connection to a proxy.

    Args:
        candidate: The proxy's address in an attempt; its `failure` is set where there is no tunnel.
        handshake: With the proxy.
        inner: The factory of the protocol that speaks with the peer.
        timeout: Seconds for the handshake.
    """

    noisy = False

    def __init__(
        self, candidate: Any, handshake: ProxyHandshake, inner: Any, timeout: float
    ) -> None:
        self.candidate = candidate
        self.handshake = handshake
        self.inner = inner
        self.timeout = timeout

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        """Build the protocol."""
        return Tunnel(self, addr)


class Tunnel(Protocol):
    """A connection to a proxy until its tunnel is open; then the peer's protocol takes its place.

    It leaves the transport: nothing of it costs a message anything, and the options of the socket
    are set as on any other.
    """

    def __init__(self, made_by: TunnelFactory, address: IAddress | None) -> None:
        self._made_by = made_by
        self._address = address
        self._timer: DelayedCall | None = None

    def connectionMade(self) -> None:
        """Ask for the tunnel."""
        transport: Any = self.transport
        made_by = self._made_by
        clock = made_by.candidate.attempt.reactor
        self._timer = clock.callLater(made_by.timeout, self._fail, late(made_by.timeout))
        transport.write(made_by.handshake.begin())

    def dataReceived(self, data: bytes) -> None:
        """Process the proxy's answers."""
        transport: Any = self.transport
        handshake = self._made_by.handshake
        try:
            answer = handshake.receive(data)
        except AttemptFailed as failure:
            self._fail(failure)
            return
        if answer:
            transport.write(answer)
        if handshake.rest is None:
            return
        cancel(self._timer)
        self._made_by.candidate.is_tunneling = False
        protocol = self._made_by.inner.buildProtocol(self._address)
        if protocol is None:
            transport.abortConnection()
            return
        transport.protocol = protocol
        protocol.makeConnection(transport)
        if handshake.rest:
            protocol.dataReceived(handshake.rest)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Set the failure of a connection that ended before its tunnel was open."""
        cancel(self._timer)
        candidate = self._made_by.candidate
        if candidate.failure is None:
            how = f"{ended(reason)} before the proxy opened a tunnel"
            candidate.failure = AttemptFailed(candidate.attempt.closed_kind, "closed", how)

    def _fail(self, failure: AttemptFailed) -> None:
        """End the connection; the attempt goes on with the proxy's next address."""
        transport: Any = self.transport
        self._made_by.candidate.failure = failure
        transport.abortConnection()


def late(seconds: float) -> AttemptFailed:
    """Return the failure of a proxy that opens no tunnel in time: the peer has seen nothing of it.

    Without a proxy that is a time-out of TCP, and counts as such.
    """
    detail = f"the proxy opened no tunnel within {seconds:.1f} s"
    return AttemptFailed("unreachable", "unreachable", detail)


class ProxySettings(NamedTuple):
    """A proxy and its credentials, as `proxy` and `proxy_secret_file` name them."""

    proxy: str | None = None
    secret_file: str | None = None


def open_tunnel(settings: ProxySettings, target: Url, timeout: float) -> socket.socket | None:
    """Return a socket whose other end is the target, through a proxy; blocks.

    Returns:
        None where the target is to be dialed directly.

    Raises:
        ConfigError: The proxy or its credentials can't be used.
        Unavailable: They can't be read now.
        AttemptFailed: There is no tunnel; the detail names the proxy.
    """
    proxy = choose_proxy(settings.proxy, target)
    if proxy is None:
        return None
    path = settings.secret_file
    credentials = None if path is None else load_credentials(path)
    end = time.monotonic() + timeout
    try:
        addresses = socket.getaddrinfo(proxy.host, proxy.port, type=socket.SOCK_STREAM)
        while True:
            share = _left(end) / len(addresses)
            handshake = make_handshake(proxy, target, credentials, False)
            try:
                connection = _tunnel_at(addresses.pop(0), handshake, time.monotonic() + share)
                break
            except (OSError, AttemptFailed) as error:
                if not addresses or getattr(error, "kind", None) == "rejected":
                    raise
    except (OSError, AttemptFailed) as error:
        kind = error.kind if isinstance(error, AttemptFailed) else "unreachable"
        words = getattr(error, "strerror", None) or str(error)
        raise AttemptFailed(kind, "unreachable", f"through {proxy}: {words}") from None
    connection.settimeout(timeout)
    return connection


def _tunnel_at(address: tuple[Any, ...], handshake: ProxyHandshake, end: float) -> socket.socket:
    """Return a socket with an open tunnel through one address of a proxy; blocks.

    Args:
        address: As `getaddrinfo` returns it.
        handshake: With the proxy.
        end: When the tunnel must be open, on the monotonic clock.

    Raises:
        OSError: The address is silent, or can't be reached.
        AttemptFailed: The proxy opens no tunnel.
    """
    family, kind, number, _, where = address
    connection = socket.socket(family, kind, number)
    try:
        connection.settimeout(_left(end))
        connection.connect(where)
        answer = handshake.begin()
        while True:
            connection.settimeout(_left(end))
            connection.sendall(answer)
            if handshake.rest is not None:
                break
            connection.settimeout(_left(end))
            data = connection.recv(4096)
            if not data:
                detail = "the proxy closed the connection before it opened a tunnel"
                raise AttemptFailed("broken", "closed", detail)
            answer = handshake.receive(data)
        if handshake.rest:
            raise AttemptFailed("broken", "protocol", "bytes arrived before TLS began")
    except BaseException:
        connection.close()
        raise
    return connection


def _left(end: float) -> float:
    """Return the seconds until a moment.

    Raises:
        TimeoutError: It has passed.
    """
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left
