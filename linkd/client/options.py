"""What can be asked of a connection, a publish, a subscription; for asyncio and Twisted alike."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Literal, TypedDict

import msgspec

from linkd.client.arguments import (
    check_function,
    check_number,
    check_producer,
    check_seconds,
)
from linkd.client.bodies import Decode, Encode, decode_value, encode_value
from linkd.client.flight import DEFAULT_BYTES
from linkd.client.record import Record
from linkd.core.stream import Published, Start
from linkd.errors import Gap

REJECTED: Final = (400, 401, 403, 404, 421)
"""Statuses that trying again soon will not change."""

Key = str | Callable[[], str | Awaitable[str]]
"""A key of `[[api.key]]`, or who brings a fresh key or token for each connection."""


class ConnectOptions(TypedDict, total=False):
    """How to connect.

    Args:
        key: For `http`: a key, or who brings a fresh key or token for each connection.
        tls: For `https`: what to trust (asyncio: an SSLContext; Twisted: what
            `optionsForClientTLS` returns); absent: the system's certificates.
        max_attempts: Give up after so many failures in a row; absent: never.
        connect_timeout: Seconds for one attempt, until the daemon has answered: 5.
        silence_timeout: Seconds without a byte until the connection counts as dead: 12.
        min_delay: The first delay lies below so many seconds: 0.2.
        max_delay: No delay is longer: 15, or 1 to the unix socket, where an attempt costs little.
        when_down: What a publish does without a connection: `wait`, or `fail` at once.
        max_in_flight_bytes: Bytes of publishes under way; more wait: 8 MiB.
        producer: A lasting name under which one client at a time publishes: a second one ends the
            first with Replaced; absent: a random one.
        encode: From a value to body and content type.
        decode: From body and content type to a value.
        on_open: Called each time the connection is up.
        on_message: Called with each record as it arrives, at most a window ahead of who iterates
            over its subscription; where nobody iterates, use `on`.
        on_close: Called with the reason each time the connection is gone.
        on_error: Called with what went wrong: a refused attempt, a gap, an error in a function.
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


class Settings(msgspec.Struct, frozen=True, kw_only=True):
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
        """Raise TypeError or ValueError for what could only hang."""
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
        type: The application's word for what they are.
        ttl: Seconds of life.
        headers: At most 16 short strings to go with each, by names of letters, digits and `-`,
            which come back in lower case.
        wait: A peer: return once it has them on disk.
        timeout: Seconds that `wait` waits at most: 30.
    """

    type: str
    ttl: float
    headers: Mapping[str, str]
    wait: str
    timeout: float


class PublishOptions(PublishManyOptions, total=False):
    """How to publish one value.

    Args:
        id: The same id on the same channel again stores nothing.
    """

    id: str


class SubscribeOptions(TypedDict, total=False):
    """How to subscribe.

    Args:
        consumer: A name with a lasting cursor; its records are acknowledged.
        start: An offset, `earliest` or `latest`; with a consumer only where that is new: `latest`.
        window: Bytes that may lie unused at the client: 1 MiB.
        on_gap: Called with each gap; absent: `on_error` is.
    """

    consumer: str
    start: Start
    window: int
    on_gap: Callable[[Gap], object]


class Stored(msgspec.Struct, frozen=True):
    """Where many published values lie: the first one's offset, the last one's, how many are new.

    Other publishers' records may lie between them. Both offsets are 0 on a volatile channel.
    """

    first: int
    last: int
    count: int


def plus(total: Stored, count: int, published: Published) -> Stored:
    """Return the sum of what was stored and one more batch of `count` records.

    All of them are new: without ids, only what we sent twice ourselves is a repeat.
    """
    last = published.offset + count - 1 if published.offset else 0
    return Stored(total.first or published.offset, last or total.last, total.count + count)
