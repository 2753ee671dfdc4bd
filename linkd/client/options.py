"""Options of connections, publishes and subscriptions; the daemon's address; status watchers."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Generic, Literal, TypedDict, TypeVar
from urllib.parse import urlsplit

import msgspec

from linkd.client.publisher import DEFAULT_BYTES
from linkd.client.record import Decode, Encode, Record, decode_value, encode_value
from linkd.errors import BadRecord, Gap
from linkd.protocol.client import Published, Start
from linkd.protocol.records import MAX_TTL_SECONDS

DEFAULT_SOCKET: Final = "/run/linkd/linkd.sock"
STREAM_PATH: Final = "/v1/stream"
_HOST_PORT: Final = re.compile(r"(localhost|[^/:]+\.[^/:]+|\[[0-9a-fA-F:.]+\]):[0-9]{1,5}")
"""What is plainly no path: a name or address with a port behind it."""


class Address(msgspec.Struct, frozen=True):
    """One daemon's address.

    Args:
        socket: Path of its unix socket; empty if it is reached over TCP.
        host: Host name or address; empty over the unix socket.
        port: TCP port; 0 over the unix socket.
        tls: Whether to use TLS.
        url: The stream's WebSocket URL.
    """

    socket: str
    host: str
    port: int
    tls: bool
    url: str

    def __str__(self) -> str:
        return self.socket or self.url


def address(where: str | os.PathLike[str] | None = None) -> Address:
    """Return the address that a user means.

    Args:
        where: A path, or `http:`, `https:`, `ws:` or `wss:` with host and port; None:
            `LINKD_SOCKET`, else the default socket.

    Raises:
        ValueError: It is empty, a URL of another kind, or HOST:PORT without `http://`.
    """
    default = os.environ.get("LINKD_SOCKET") or DEFAULT_SOCKET
    text = default if where is None else os.fspath(where)
    if not isinstance(text, str) or not text or "\0" in text:
        raise ValueError(f"expected a socket's path or http://HOST:PORT, got {text!r}")
    if "://" not in text:
        if _HOST_PORT.fullmatch(text):
            raise ValueError(f"expected a socket's path or http://HOST:PORT: http://{text}?")
        return Address(text, "", 0, False, f"ws://localhost{STREAM_PATH}")
    parts = urlsplit(text)
    if parts.scheme == "unix":
        return Address(parts.path, "", 0, False, f"ws://localhost{STREAM_PATH}")
    if parts.scheme not in ("http", "https", "ws", "wss") or not parts.hostname:
        raise ValueError(f"expected a socket's path or http://HOST:PORT, got {text!r}")
    tls = parts.scheme in ("https", "wss")
    port = parts.port or (443 if tls else 80)
    base = f"{'wss' if tls else 'ws'}://{parts.netloc.rpartition('@')[2]}"
    return Address("", parts.hostname, port, tls, f"{base}{parts.path.rstrip('/')}{STREAM_PATH}")


MAX_SECONDS: Final = 1e10
MAX_OFFSET: Final = 2**62
MAX_PRODUCER_LENGTH: Final = 128


def check_ttl(ttl: Any) -> float | None:
    """Return a time to live in seconds, or None for no limit.

    Raises:
        TypeError: It is not a number.
        BadRecord: The daemon accepts no such time to live.
    """
    if ttl is None:
        return None
    seconds = _number("ttl", ttl)
    if not 0.0 < seconds <= MAX_TTL_SECONDS:
        raise BadRecord(f"expected a ttl above 0, at most {MAX_TTL_SECONDS:g} seconds, got {ttl}")
    return seconds


def check_wait(peer: Any, timeout: Any) -> None:
    """Raise TypeError or ValueError if `peer` is no name, or `timeout` no duration."""
    if peer is not None:
        if not isinstance(peer, str):
            raise TypeError(f"expected a peer's name, got {peer!r}")
        if len(peer) > 255 or not peer.isprintable():
            raise ValueError(f"expected a peer's name, got {peer[:80]!r}")
    if not 0.0 <= _number("timeout", timeout) <= MAX_SECONDS:
        raise ValueError(f"expected a timeout of 0 to {MAX_SECONDS:g} seconds, got {timeout}")


def check_next(next: Any) -> None:
    """Raise TypeError or ValueError if it is no offset."""
    if isinstance(next, bool) or not isinstance(next, int):
        raise TypeError(f"expected an offset, got {next!r}")
    if not 0 <= next <= MAX_OFFSET:
        raise ValueError(f"expected an offset of 0 to 2^62, got {next}")


def check_start(start: Any) -> None:
    """Raise TypeError or ValueError if a subscription can't start there."""
    if isinstance(start, str):
        if start not in ("earliest", "latest"):
            raise ValueError(f"expected a start of an offset, earliest or latest, got {start!r}")
    elif isinstance(start, bool) or not isinstance(start, int):
        raise TypeError(f"expected a start of an offset, earliest or latest, got {start!r}")
    elif not 0 <= start <= MAX_OFFSET:
        raise ValueError(f"expected a start of 0 to 2^62, got {start}")


def check_window(window: Any) -> None:
    """Raise TypeError or ValueError if it is no usable number of bytes."""
    if isinstance(window, bool) or not isinstance(window, int):
        raise TypeError(f"expected a window in bytes, got {window!r}")
    if not 1 <= window <= MAX_OFFSET:
        raise ValueError(f"expected a window of at least 1 byte, got {window}")


def check_number(name: str, given: Any) -> None:
    """Raise TypeError or ValueError if it is no number of at least 1."""
    if isinstance(given, bool) or not isinstance(given, int):
        raise TypeError(f"expected {name} as a whole number, got {given!r}")
    if given < 1:
        raise ValueError(f"{name}: expected at least 1, got {given}")


def check_seconds(name: str, given: Any) -> None:
    """Raise TypeError or ValueError if it is no duration above 0."""
    if not 0.0 < _number(name, given) <= MAX_SECONDS:
        raise ValueError(f"expected {name} above 0, at most {MAX_SECONDS:g} seconds, got {given}")


def check_function(name: str, given: Any) -> None:
    """Raise TypeError if it is not callable."""
    if not callable(given):
        raise TypeError(f"expected {name} to be a function, got {given!r}")


def check_producer(given: Any) -> None:
    """Raise TypeError or ValueError if it is no valid name of a producer."""
    if not isinstance(given, str):
        raise TypeError(f"expected a producer's name, got {given!r}")
    if len(given) > MAX_PRODUCER_LENGTH or not given.isprintable():
        raise ValueError(f"expected a producer's name, got {given[:80]!r}")


def _number(name: str, given: Any) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise TypeError(f"expected a {name} in seconds, got {given!r}")
    try:
        seconds = float(given)
    except OverflowError:
        seconds = math.inf
    return seconds


T = TypeVar("T")

State = Literal["stopped", "connecting", "up", "waiting", "rejected"]


class Status(msgspec.Struct, frozen=True):
    """The connection to the daemon, and the links that the daemon reports.

    Args:
        state: `stopped`, `connecting`, `up`, `waiting` to try again, `rejected` by the daemon.
        attempts: Failures in a row.
        retry_seconds: Until the next attempt; None unless waiting or rejected.
        reason: Why it is not up, in one sentence; None while it is.
        links: The state of the link to each peer, while connected; else empty.
    """

    state: State = "stopped"
    attempts: int = 0
    retry_seconds: float | None = None
    reason: str | None = None
    links: dict[str, str] = {}


class Observable(Generic[T]):
    """A value that changes: each new observer gets the current value at once.

    Attributes:
        value: The current value.
        call: Calls an observer with a value; must not raise.
    """

    def __init__(self, value: T) -> None:
        self.value = value
        self.call: Callable[[Callable[[T], None], T], None] = lambda call, value: call(value)
        self._observers: list[Callable[[T], None]] = []

    def subscribe(self, observer: Callable[[T], None]) -> Callable[[], None]:
        """Call `observer` with the current and each later value; return a function that ends it."""
        observer(self.value)
        self._observers.append(observer)

        def unsubscribe() -> None:
            if observer in self._observers:
                self._observers.remove(observer)

        return unsubscribe

    def set(self, value: T) -> None:
        """Change the value and notify the observers, unless it is equal."""
        if value == self.value:
            return
        self.value = value
        for observer in list(self._observers):
            self.call(observer, value)


REJECTED: Final = (400, 401, 403, 404, 421)
"""Statuses that trying again soon will not change."""

Key = str | Callable[[], str | Awaitable[str]]
"""A key of `[[api.key]]`, or a function that returns a key or token for each connection."""


class ConnectOptions(TypedDict, total=False):
    """How to connect.

    Args:
        key: For `http`: a key, or a function that returns a key or token for each connection.
        tls: For `https`: what to trust (asyncio: an SSLContext; Twisted: what
            `optionsForClientTLS` returns); absent: the system's certificates.
        max_attempts: Give up after this many failures in a row; absent: never.
        connect_timeout: Seconds for one attempt, until the daemon has answered: 5.
        silence_timeout: Seconds without a byte until the connection counts as dead: 12.
        min_delay: The first delay is below this many seconds: 0.2.
        max_delay: No delay is longer: 15, or 1 to the unix socket, where an attempt costs little.
        when_down: What a publish does without a connection: `wait`, or `fail` at once.
        max_in_flight_bytes: The most bytes of publishes in flight; further ones wait: 8 MiB.
        producer: A lasting name under which one client at a time publishes: a second one ends the
            first with Replaced; absent: a random one.
        encode: From a value to body and content type.
        decode: From body and content type to a value.
        on_open: Called each time the connection is up.
        on_message: Called with each record as it arrives, at most a window ahead of the iteration
            over its subscription; without an iteration use `on`.
        on_close: Called with the reason each time the connection is lost.
        on_error: Called with each error: a refused attempt, a gap, an exception in a function.
    """

    key: Key
    tls: Any
    max_attempts: int
    connect_timeout: float
    silence_timeout: float
    min_delay: float
    max_delay: float
    when_down: Literal["wait", "fail"]
    max_in_flight_bytes: int
    producer: str
    encode: Encode
    decode: Decode
    on_open: Callable[[], object]
    on_message: Callable[[Record], object]
    on_close: Callable[[str], object]
    on_error: Callable[[Exception], object]


class ConnectSettings(msgspec.Struct, frozen=True, kw_only=True):
    """ConnectOptions with their defaults."""

    key: Any = None
    tls: Any = None
    max_attempts: int | None = None
    connect_timeout: float = 5.0
    silence_timeout: float = 12.0
    min_delay: float = 0.2
    max_delay: float | None = None
    when_down: str = "wait"
    max_in_flight_bytes: int = DEFAULT_BYTES
    producer: str = ""
    encode: Encode = encode_value
    decode: Decode = decode_value
    on_open: Callable[..., object] | None = None
    on_message: Callable[..., object] | None = None
    on_close: Callable[..., object] | None = None
    on_error: Callable[..., object] | None = None

    def __post_init__(self) -> None:
        """Raise TypeError or ValueError for settings with which a client could only hang."""
        check_number("max_in_flight_bytes", self.max_in_flight_bytes)
        if self.max_attempts is not None:
            check_number("max_attempts", self.max_attempts)
        for name in ("connect_timeout", "silence_timeout", "min_delay"):
            check_seconds(name, getattr(self, name))
        if self.max_delay is not None:
            check_seconds("max_delay", self.max_delay)
        if self.when_down not in ("wait", "fail"):
            raise ValueError(f"expected when_down as wait or fail, got {self.when_down!r}")
        check_producer(self.producer)
        check_function("encode", self.encode)
        check_function("decode", self.decode)
        for name in ("on_open", "on_message", "on_close", "on_error"):
            if (hook := getattr(self, name)) is not None:
                check_function(name, hook)
        if not (self.key is None or isinstance(self.key, str) or callable(self.key)):
            raise TypeError(f"expected key as text or a function, got {type(self.key).__name__}")


class PublishManyOptions(TypedDict, total=False):
    """How to publish many values.

    Args:
        type: The application's name for their kind.
        ttl: Seconds until they expire.
        headers: At most 16 short strings for each, by names of letters, digits and `-`, which are
            delivered in lower case.
        wait: A peer: return once it has them on disk.
        timeout: The most seconds that `wait` waits: 30.
    """

    type: str
    ttl: float
    headers: Mapping[str, str]
    wait: str
    timeout: float


class PublishOptions(PublishManyOptions, total=False):
    """How to publish one value.

    Args:
        id: A second publish with the same id on the same channel is not stored.
    """

    id: str


class SubscribeOptions(TypedDict, total=False):
    """How to subscribe.

    Args:
        consumer: A name with a lasting cursor; its records are acknowledged.
        start: An offset, `earliest` or `latest`; for a consumer only if it is new: `latest`.
        window: The most unused bytes at the client: 1 MiB.
        on_gap: Called with each gap; absent: `on_error` is called.
    """

    consumer: str
    start: Start
    window: int
    on_gap: Callable[[Gap], object]


class Stored(msgspec.Struct, frozen=True):
    """The offsets of many published values: of the first, of the last, and how many are new.

    Other publishers' records may be between them. Both offsets are 0 on a volatile channel.
    """

    first: int
    last: int
    count: int


def plus(total: Stored, count: int, published: Published) -> Stored:
    """Return the sum of what was stored and one more batch of `count` records.

    All of them are new: without ids, only our own resends are repeats.
    """
    last = published.offset + count - 1 if published.offset else 0
    return Stored(total.first or published.offset, last or total.last, total.count + count)
