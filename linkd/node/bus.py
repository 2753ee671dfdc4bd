"""The bus between the instances of a node: what may be lost, and is worth being quick.

Volatile messages, presence, and wake-ups without content go over it, signed with a key that the
log's database keeps. It needs no trust in the server that carries it: a message counts only if it
verifies, is of this log, comes from an instance that has shown that it hears this run, and has a
higher number than the one before. So nothing forged, foreign or recorded is ever taken.

An instance says hello every second, with the runs that it hears. One that is silent for
`SILENT_SECONDS` is gone, with all that was learned from it.
"""

from __future__ import annotations

import hmac
import secrets
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Final, Protocol

import msgspec
from twisted.internet.base import DelayedCall, ReactorBase

from linkd import events
from linkd.config.settings import ClusterSettings
from linkd.errors import ConfigError
from linkd.log.commit import Post
from linkd.log.cursor_store import CursorStore
from linkd.net.timers import cancel
from linkd.protocol.peer import Volatile

HELLO_SECONDS: Final = 1.0
SILENT_SECONDS: Final = 5.0
"""An instance that has not said hello for so long is gone."""

GREET_SECONDS: Final = 0.05
"""Delay of the hello that answers another one: one answers several."""

WAKE_SECONDS: Final = 0.005
"""Minimum seconds between two wake-ups."""

DOUBTED_SECONDS: Final = 2.0
"""An instance proves within this time that it hears us; only then it is suspect."""

MAX_SISTERS: Final = 1000
"""Runs of other instances that are remembered, those of the past too."""

MAX_INBOX: Final = 10_000
MAX_INBOX_BYTES: Final = 8 << 20
"""Bounds of what was received and waits for the reactor."""

SISTER: Final = "/"
"""The word of another instance begins with it, and no peer's name does."""

KIND, KEY = "cluster", "bus"
"""Under which the key is shared."""

KEY_BYTES: Final = 32
MAC: Final = "sha256"
MAC_BYTES: Final = 32

REASONS = ("forged", "foreign", "replayed", "unproven")
DROPPED = (*REASONS, "full", "away")
"""Reasons for which messages are dropped; the first ones are those of messages received."""


class Hello(msgspec.Struct, array_like=True, frozen=True, tag="hello"):
    """An instance is there; it hears these runs. With `leaves` it ends."""

    hears: tuple[str, ...] = ()
    leaves: bool = False


class Wake(msgspec.Struct, array_like=True, frozen=True, tag="wake"):
    """There is something new in the database."""


Content = Hello | Wake | Volatile


class Sealed(msgspec.Struct, array_like=True, frozen=True):
    """What is signed: the log, the run of the sender, the number in that, and the content."""

    log: str
    run: str
    number: int
    content: msgspec.Raw


class Connector(Protocol):
    """Carries messages between the instances; each gets its own too."""

    def start(self) -> None:
        """Begin to connect, and never cease."""

    def send(self, body: bytes) -> bool:
        """Send `body`; return False where too much waits already."""

    def stop(self) -> None:
        """Send what waits, and end."""


def open_connector(
    settings: ClusterSettings,
    log: str,
    seal: Callable[[bytes], bytes],
    arrived: Callable[[bytes], None],
    failed: Callable[[str], None],
) -> Connector:
    """Return what carries the bus; see `linkd.node.redis_bus.RedisConnector`.

    Raises:
        ConfigError: redis-py is missing.
    """
    try:
        from linkd.node.redis_bus import RedisConnector  # noqa: PLC0415 - redis-py is optional
    except ImportError as error:
        raise _no_redis(error) from None
    return RedisConnector(settings, log, seal, arrived, failed)


def inspect_bus(settings: ClusterSettings) -> str:
    """Return what is found at the bus, in one line.

    Raises:
        ConfigError: redis-py is missing, Redis refuses the password, or it gives too few rights.
        Unavailable: It can't be reached.
    """
    try:
        from linkd.node.redis_bus import inspect  # noqa: PLC0415 - redis-py is optional
    except ImportError as error:
        raise _no_redis(error) from None
    return inspect(settings)


def _no_redis(error: ImportError) -> ConfigError:
    return ConfigError(f"cluster.bus needs redis-py ({error}): install linkd-daemon[cluster]")


class Sister(msgspec.Struct, eq=False):
    """Another instance, in one run of it.

    Args:
        word: Its name where a peer's could be.
        since: When it was first heard.
        heard: When it last said hello.
        number: The highest number of its messages.
        is_up: It hears us, and has said so in this run of ours.
    """

    word: str
    since: float
    heard: float
    number: int = -1
    is_up: bool = False


def _ignore(*_: object) -> None:
    """Nobody listens yet."""


class Bus:
    """The bus, as this instance takes part in it. All methods run in the reactor's thread.

    Args:
        node: The node's name.
        log: The log's id.
        cursors: Keeps the key.
        clock: The reactor.
        post: Brings a call into the reactor's thread.

    Attributes:
        run: This run of the instance.
        dropped: Numbers of messages that were dropped, by reason.
        is_connected: Our own messages come back to us.
        on_volatile: Called with each volatile message of another instance, and its word.
        on_sister: Called with the word of another instance that is there, or is gone.
        on_wake: Called for each wake-up.
        warn: Sets the standing warning of status; None removes it.
        holds: Returns whether no other instance has a peer's connection, or had the last one.
    """

    def __init__(
        self, node: str, log: str, cursors: CursorStore, clock: ReactorBase, post: Post
    ) -> None:
        self.node = node
        self.run = secrets.token_hex(8)
        self.is_connected = False
        self.on_volatile: Callable[[Volatile, str], None] = _ignore
        self.on_sister: list[Callable[[str, bool], None]] = []
        self.on_wake: Callable[[], None] = _ignore
        self.warn: Callable[[str | None], None] = _ignore
        self.holds: Callable[[str], bool] = bool
        self._dropped: Counter[str] = Counter()
        self.dropped: Mapping[str, int] = self._dropped
        self._log = log
        self._cursors = cursors
        self._clock = clock
        self._post = post
        self._connector: Connector | None = None
        self._key: bytes | None = None
        self._number = 0
        self._sisters: dict[str, Sister] = {}
        self._is_away = self._is_stopped = False
        self._timer: DelayedCall | None = None
        self._greeting: DelayedCall | None = None
        self._waking: DelayedCall | None = None
        self._ticked = self._woke = clock.seconds()
        # Received in the connector's thread, in order: a message, or why one was refused.
        self._inbox: deque[tuple[Sealed, Content] | str] = deque()
        self._inbox_bytes = 0
        self._is_posted = False

    # -- life ---------------------------------------------------------------------------------

    def start(self, connector: Connector) -> None:
        """Share the key, and take part."""
        self._connector = connector
        self._cursors.watch(KIND, self._key_changed)
        known = self._cursors.shared(KIND).get(KEY)
        if known is None:  # of instances that start at once the last one's counts
            known = secrets.token_bytes(KEY_BYTES)
            self._cursors.share(KIND, KEY, known)
        self._key = known
        connector.start()
        self._tick()

    def stop(self) -> None:
        """Say goodbye; nothing is sent or taken any more."""
        self._is_stopped = True
        self.is_connected = False
        self._sisters.clear()
        for timer in (self._timer, self._greeting, self._waking):
            cancel(timer)
        if self._connector is not None:
            self._send(Hello((), leaves=True))
            self._connector.stop()

    def _key_changed(self, key: str, value: bytes | None) -> None:
        if key == KEY and value is not None:
            self._key = value

    def _tick(self) -> None:
        now, before = self._clock.seconds(), self._ticked
        self._ticked = now
        self._timer = self._clock.callLater(HELLO_SECONDS, self._tick)
        self._greet()
        if now - before > SILENT_SECONDS / 2:
            return  # this process was frozen: what came meanwhile waits
        for sister in list(self._sisters.values()):
            if sister.is_up and now - sister.heard >= SILENT_SECONDS:
                self._gone(sister)

    def _greet(self) -> None:
        """Say hello."""
        self._greeting = None
        oldest = self._clock.seconds() - SILENT_SECONDS
        hears = [run for run, sister in self._sisters.items() if sister.heard > oldest]
        self._send(Hello(tuple(hears)))

    # -- sending ------------------------------------------------------------------------------

    @property
    def has_sisters(self) -> bool:
        """Whether another instance is there."""
        return any(sister.is_up for sister in self._sisters.values())

    def send(self, message: Volatile) -> None:
        """Send a volatile message to the other instances; it may be lost."""
        if not self.is_connected:
            self._dropped["away"] += not message.presence
        elif self.has_sisters:
            self._send(message)

    def wake(self) -> None:
        """Let the other instances look at the database, soon."""
        if self._waking is not None or not self.has_sisters or self._is_stopped:
            return
        wait = self._woke + WAKE_SECONDS - self._clock.seconds()
        if wait <= 0:
            self._wake()
        else:
            self._waking = self._clock.callLater(wait, self._wake)

    def _wake(self) -> None:
        self._waking = None
        self._woke = self._clock.seconds()
        self._send(Wake())

    def _send(self, content: Content) -> None:
        assert self._connector is not None
        self._number += 1
        sealed = Sealed(self._log, self.run, self._number, msgspec.Raw(_encode(content)))
        if not self._connector.send(_encode(sealed)):
            self._dropped["full"] += 1

    # -- the connector's threads --------------------------------------------------------------

    def seal(self, body: bytes) -> bytes:
        """Return a message with its signature; any thread may call this."""
        return _sign(self._key, body) + body

    def arrived(self, message: bytes) -> None:
        """Take a message from the connector's thread."""
        item = self._opened(message)
        if isinstance(item, str):
            if item in self._inbox:  # a flood of them costs the reactor little
                self._dropped[item] += 1
                return
        elif len(self._inbox) >= MAX_INBOX or self._inbox_bytes > MAX_INBOX_BYTES:
            self._dropped["full"] += 1
            return
        self._inbox.append(item)
        self._inbox_bytes += len(message)
        if not self._is_posted:
            self._is_posted = True
            self._post(self._take_inbox)

    def _opened(self, message: bytes) -> tuple[Sealed, Content] | str:
        """Return what a message has in it, or why it is refused."""
        mac, body = message[:MAC_BYTES], message[MAC_BYTES:]
        try:
            sealed = _decode_sealed(body)
            if sealed.log != self._log:
                return "foreign"
            if not hmac.compare_digest(mac, _sign(self._key, body)):
                return "forged"
            return sealed, _decode(sealed.content)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return "forged"

    # -- receiving ----------------------------------------------------------------------------

    def _take_inbox(self) -> None:
        """Take what has arrived; more of it waits for another turn of the reactor."""
        self._is_posted = False
        waiting = len(self._inbox)
        self._inbox_bytes = 0
        for _ in range(waiting):
            item = self._inbox.popleft()
            if self._is_stopped:
                continue
            if isinstance(item, str):
                self._refuse(item)
            else:
                self._hear(*item)

    def _refuse(self, reason: str) -> None:
        self._dropped[reason] += 1
        events.emit("bus.refused", reason=reason, detail=_WHY[reason])

    def _hear(self, sealed: Sealed, content: Content) -> None:
        """Take a message that verifies."""
        if sealed.run == self.run:
            self._came_back()
            return
        now = self._clock.seconds()
        sister = self._sisters.get(sealed.run)
        if sister is None:
            sister = self._add(sealed.run, now)
        if sealed.number <= sister.number:
            self._refuse("replayed")
            return
        sister.number = sealed.number
        if isinstance(content, Hello):
            self._greeted(sister, content, now)
        elif not sister.is_up:
            if now - sister.since > DOUBTED_SECONDS:
                self._refuse("unproven")
        elif isinstance(content, Wake):
            self.on_wake()
        else:
            self.on_volatile(content, sister.word)

    def _add(self, run: str, now: float) -> Sister:
        """Remember a run; the oldest one that is gone makes room."""
        if len(self._sisters) >= MAX_SISTERS:
            gone = [each for each, sister in self._sisters.items() if not sister.is_up]
            oldest = self._sisters.pop(gone[0] if gone else next(iter(self._sisters)))
            if oldest.is_up:
                self._gone(oldest)
        sister = self._sisters[run] = Sister(SISTER + run, now, now)
        return sister

    def _greeted(self, sister: Sister, hello: Hello, now: float) -> None:
        """Take a hello; answer it where that is news for either end."""
        sister.heard = now
        if hello.leaves:
            if sister.is_up:
                self._gone(sister)
            return
        if self.run not in hello.hears:
            if self._greeting is None:
                self._greeting = self._clock.callLater(GREET_SECONDS, self._greet)
        elif not sister.is_up:
            sister.is_up = True
            cancel(self._greeting)
            self._greet()  # what follows counts only behind it
            self._call(sister.word, is_up=True)

    def _gone(self, sister: Sister) -> None:
        sister.is_up = False
        self._call(sister.word, is_up=False)

    def _call(self, word: str, *, is_up: bool) -> None:
        for call in tuple(self.on_sister):
            call(word, is_up)

    # -- whether it works -----------------------------------------------------------------------

    def _came_back(self) -> None:
        """Our own message has come back."""
        if self.is_connected:
            return
        self.is_connected, self._is_away = True, False
        self.warn(None)
        events.emit("bus.connected", detail="volatile messages reach the other instances")

    def failed(self, text: str) -> None:
        """The connector has no connection; it tries on."""
        self.is_connected = False
        if self._is_away or self._is_stopped:
            return
        self._is_away = True
        self.warn(
            f"the bus is away ({text}): volatile messages and presence stay at this instance;"
            " everything else goes on"
        )
        events.emit("bus.away", detail=text)


_WHY = {
    "forged": "a message on the bus is not signed with this cluster's key",
    "foreign": "a message on the bus is of another cluster",
    "replayed": "a message on the bus has come before",
    "unproven": "a message on the bus is of an instance that does not hear this one",
}

_encode = msgspec.msgpack.Encoder().encode
_decode_sealed = msgspec.msgpack.Decoder(Sealed).decode
_decode = msgspec.msgpack.Decoder(Content).decode


def _sign(key: bytes | None, body: bytes) -> bytes:
    return hmac.digest(key or secrets.token_bytes(KEY_BYTES), body, MAC)
