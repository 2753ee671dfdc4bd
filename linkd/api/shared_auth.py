"""Tokens and cookie sessions that all instances of a node accept."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec
from twisted.internet import defer
from twisted.internet.defer import Deferred

from linkd.api.errors import ApiError
from linkd.log import CursorStore

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

TOKEN: Final = "token"  # noqa: S105
"""Kind of the shared values that are tokens, by their hashes."""

SESSION: Final = "session"
"""Kind of the shared values that are about cookie sessions."""

ENDED: Final = "ended/"
"""Begins the keys of sessions that were ended; the rest is their id."""

WAIT_SECONDS: Final = 5.0

MAX_TOKENS: Final = 10_000
"""Of one instance."""

MAX_ENDED: Final = 1000
"""Ended sessions that are remembered of each key."""

_KEY: Final = "key"
_TAG_BYTES: Final = 8


class SharedToken(msgspec.Struct, array_like=True, frozen=True):
    """A token as it is shared: its key, how narrow it is, its end by the log's clock."""

    key: str
    patterns: tuple[str, ...]
    expires: float


_encode = msgspec.msgpack.Encoder().encode
_token = msgspec.msgpack.Decoder(SharedToken)


class SharedAuth:
    """What the instances of a node share of tokens and sessions: hashes of tokens, no API key.

    Args:
        store: Has what they share.
        clock: Schedules.
        wall: Unix seconds.
        stamp: The log's clock, which the instances have in common.
        seconds: How long a token is good.
    """

    def __init__(
        self,
        store: CursorStore,
        clock: IReactorTime,
        wall: Callable[[], float],
        stamp: Callable[[], float],
        seconds: float,
    ) -> None:
        self._store = store
        self._clock = clock
        self._wall = wall
        self._stamp = stamp
        self._seconds = seconds
        self._own: deque[tuple[float, str]] = deque()

    # tokens

    async def issue(self, signing: bytes, name: str, patterns: tuple[str, ...]) -> str:
        """Return a fresh token, once every instance accepts it.

        Raises:
            ApiError: The database does not answer.
        """
        now = self._stamp()
        self._drop_over(now)
        bare = secrets.token_bytes(24)
        token = (bare + _tag(signing, bare)).hex()
        row, key = SharedToken(name, patterns, now + self._seconds), _digest(token)
        self._own.append((row.expires, key))
        await self._wait(lambda done: self._store.share(TOKEN, key, _encode(row), done))
        return token

    def is_ours(self, signing: bytes, presented: str) -> bool:
        """Return whether an instance made this token; whether it is still good is not known."""
        try:
            raw = bytes.fromhex(presented)
        except ValueError:
            return False
        return len(raw) == 24 + _TAG_BYTES and hmac.compare_digest(
            _tag(signing, raw[:24]), raw[24:]
        )

    async def take(self, presented: str) -> SharedToken | None:
        """Use a token up; return it unless it was used before, at any instance, or has expired.

        Raises:
            ApiError: The database does not answer.
        """
        value = await self._wait(lambda done: self._store.take(TOKEN, _digest(presented), done))
        if value is None:
            return None
        token = _token.decode(value)
        return token if token.expires > self._stamp() else None

    def _drop_over(self, now: float) -> None:
        """Remove own tokens that have expired, and the oldest where they are too many."""
        known = self._store.shared(TOKEN)
        while self._own and (self._own[0][0] <= now or len(self._own) >= MAX_TOKENS):
            _, key = self._own.popleft()
            if key in known:
                self._store.share(TOKEN, key, None)

    # sessions

    def signing_key(self, own: bytes) -> bytes:
        """Return the key that signs cookies at all instances: `own` where there is none yet."""
        key = self._store.shared(SESSION).get(_KEY)
        if key is None:
            key = own
            self._store.share(SESSION, _KEY, key)
        return key

    def _ended(self) -> Iterator[tuple[str, bytes, float]]:
        """Yield the sessions that were ended: their key's name, their id, and their end."""
        for key, value in self._store.shared(SESSION).items():
            if key.startswith(ENDED):
                name, expires = msgspec.msgpack.decode(value, type=tuple[str, float])
                yield name, bytes.fromhex(key.removeprefix(ENDED)), expires

    def has_ended(self, id: bytes) -> bool:
        """Return whether a session was ended, at any instance."""
        return ENDED + id.hex() in self._store.shared(SESSION)

    def end(self, name: str, id: bytes, expires: float) -> None:
        """End a session at all instances; forget those that would have ended by themselves."""
        mine = []
        for owner, other, until in tuple(self._ended()):
            if until <= self._wall():
                self._store.share(SESSION, ENDED + other.hex(), None)
            elif owner == name:
                mine.append(other)
        for other in mine[: max(0, len(mine) + 1 - MAX_ENDED)]:
            self._store.share(SESSION, ENDED + other.hex(), None)
        self._store.share(SESSION, ENDED + id.hex(), _encode((name, expires)))

    async def _wait(self, begin: Callable[[Callable[[Any], None]], None]) -> Any:
        """Return what a call of the store answers.

        Raises:
            ApiError: It failed, or took too long.
        """
        answered: Deferred[Any] = Deferred()
        answered.addTimeout(WAIT_SECONDS, self._clock)
        begin(partial(_answer, answered))
        try:
            found = await answered
        except defer.TimeoutError:
            found = TimeoutError()
        if isinstance(found, Exception):
            raise ApiError(
                "unavailable", "the database of the log does not answer", {"Retry-After": "1"}
            )
        return found


def _answer(answered: Deferred[Any], found: Any) -> None:
    if not answered.called:
        answered.callback(found)


def _tag(signing: bytes, bare: bytes) -> bytes:
    """Return what shows that a token was made with this key: no other is looked up."""
    return hmac.new(signing, b"token" + bare, hashlib.sha256).digest()[:_TAG_BYTES]


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
