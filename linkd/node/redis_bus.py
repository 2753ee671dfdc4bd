"""Redis as the carrier of the bus: redis-py, with one thread that publishes and one that receives.

Redis stores nothing of it. What can't be sent at once is dropped; each thread connects again by
itself, and reads the password's file each time.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import closing
from typing import Any, Final

import redis
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.exceptions import AuthenticationError, ResponseError
from redis.retry import Retry
from redis.sentinel import Sentinel

from linkd.config.addresses import BusUrl, parse_bus
from linkd.config.settings import ClusterSettings
from linkd.errors import ConfigError, LinkdError, Unavailable
from linkd.net.auth import read_secret_file

CONNECT_SECONDS: Final = 3.0
ANSWER_SECONDS: Final = 5.0
RETRY_SECONDS: Final = 1.0

SILENT_SECONDS: Final = 5.0
"""Each instance gets its own hello every second: without any for so long the path is dead."""

LOOK_SECONDS: Final = 0.5

MAX_QUEUE: Final = 10_000
MAX_QUEUE_BYTES: Final = 8 << 20
"""Bounds of what waits to be published."""

AT_ONCE: Final = 256
"""Messages that are published with one round trip."""

_CHECKED = "linkd:check"


class _PasswordFile(CredentialProvider):
    """Reads the password at each connection.

    Args:
        user: Whose it is; None: the default user's.
        path: The file.
    """

    def __init__(self, user: str | None, path: str) -> None:
        self._user = user
        self._path = path

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """Return user and password, or the password."""
        _, content = read_secret_file(self._path)
        password = content.decode("utf-8", "replace").strip()
        return (password,) if self._user is None else (self._user, password)


def connect(url: BusUrl, settings: ClusterSettings) -> Any:
    """Return a client of Redis; it connects with its first command."""
    how: dict[str, Any] = {
        "socket_connect_timeout": CONNECT_SECONDS,
        "socket_timeout": ANSWER_SECONDS,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
    }
    if url.secure:
        how |= {"ssl": True, "ssl_cert_reqs": "required", "ssl_check_hostname": True}
        how["ssl_ca_certs"] = settings.bus_ca
    login: dict[str, Any] = {}
    if settings.bus_password_file is not None:
        login["credential_provider"] = _PasswordFile(url.user, settings.bus_password_file)
    if url.service is not None:
        sentinels: Any = Sentinel  # it is not annotated
        return sentinels(list(url.places), sentinel_kwargs=how, **how, **login).master_for(
            url.service
        )
    [(host, port)] = url.places
    return redis.Redis(host=host, port=port, **how, **login)


class RedisConnector:
    """Carries the bus over one channel of Redis.

    Args:
        settings: Where Redis is.
        log: The log's id, for the channel's name.
        seal: Signs what is sent; called in a thread.
        arrived: Called with each message, in a thread.
        failed: Called with what is wrong, in a thread.
    """

    def __init__(
        self,
        settings: ClusterSettings,
        log: str,
        seal: Callable[[bytes], bytes],
        arrived: Callable[[bytes], None],
        failed: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._url = parse_bus(settings.bus or "")
        self._channel = f"linkd:{log}"
        self._seal = seal
        self._arrived = arrived
        self._failed = failed
        self._queue: deque[bytes] = deque()
        self._queue_bytes = 0
        self._changed = threading.Condition()
        self._ended = threading.Event()

    def start(self) -> None:
        """Begin to connect, and never cease."""
        for name, run in (("in", self._receive), ("out", self._publish)):
            threading.Thread(target=run, name=f"linkd-bus-{name}", daemon=True).start()

    def send(self, body: bytes) -> bool:
        """Send `body`; return False where too much waits already."""
        with self._changed:
            if len(self._queue) >= MAX_QUEUE or self._queue_bytes > MAX_QUEUE_BYTES:
                return False
            self._queue.append(body)
            self._queue_bytes += len(body)
            self._changed.notify()
        return True

    def stop(self) -> None:
        """Send what waits, and end."""
        self._ended.set()
        with self._changed:
            self._changed.notify()

    # the threads

    def _receive(self) -> None:
        while not self._ended.is_set():
            try:
                self._follow()
            except (redis.RedisError, OSError, LinkdError) as error:
                self._failed(f"{self._url}: {error}")
            self._ended.wait(RETRY_SECONDS)

    def _follow(self) -> None:
        """Receive until there is nothing more to receive."""
        with closing(connect(self._url, self._settings)) as client, closing(client.pubsub()) as sub:
            sub.subscribe(self._channel)
            heard = time.monotonic()
            while not self._ended.is_set():
                found = sub.get_message(timeout=LOOK_SECONDS)
                now = time.monotonic()
                if found is not None:
                    heard = now
                    if found["type"] == "message":
                        self._arrived(found["data"])
                elif now - heard >= SILENT_SECONDS:
                    raise TimeoutError(f"nothing came back from it for {SILENT_SECONDS:g} s")

    def _publish(self) -> None:
        client: Any = None
        while True:
            bodies = self._next()
            if not bodies:
                break
            try:
                client = client or connect(self._url, self._settings)
                with client.pipeline(transaction=False) as pipeline:
                    for body in bodies:
                        pipeline.publish(self._channel, self._seal(body))
                    pipeline.execute()
            except (redis.RedisError, OSError, LinkdError) as error:
                self._failed(f"{self._url}: {error}")
                if client is not None:
                    client.close()
                client = None
                self._ended.wait(RETRY_SECONDS)
                with self._changed:  # it would come too late
                    self._queue.clear()
                    self._queue_bytes = 0
        if client is not None:
            client.close()

    def _next(self) -> list[bytes]:
        """Return what waits, once there is something; nothing at the end."""
        with self._changed:
            while not self._queue and not self._ended.is_set():
                self._changed.wait()
            bodies = [self._queue.popleft() for _ in range(min(AT_ONCE, len(self._queue)))]
            self._queue_bytes -= sum(map(len, bodies))
            return bodies


def inspect(settings: ClusterSettings) -> str:
    """Return what is found at the bus, in one line.

    Raises:
        ConfigError: Redis refuses the password, or the user's rights do not suffice.
        Unavailable: It can't be reached.
    """
    url = parse_bus(settings.bus or "")
    with closing(connect(url, settings)) as client:
        try:
            with closing(client.pubsub()) as sub:
                sub.subscribe(_CHECKED)
                sub.get_message(timeout=ANSWER_SECONDS)  # that it is subscribed
                client.publish(_CHECKED, b"")
            version = _version(client)
        except (AuthenticationError, ResponseError) as error:
            more = "" if settings.bus_password_file else ": set cluster.bus_password_file"
            raise ConfigError(f"cluster.bus: {url}: {error}{more}") from None
        except (redis.RedisError, OSError) as error:
            raise Unavailable(f"cluster.bus: {url}: {error}") from None
    tls = "with" if url.secure else "without"
    password = "with" if settings.bus_password_file else "without"
    return f"cluster.bus: {version} at {url}, {tls} TLS, {password} a password"


def _version(client: Any) -> str:
    """Return the server's name and version, if we may know it."""
    try:
        return f"Redis {client.info('server')['redis_version']}"
    except ResponseError:
        return "Redis"
