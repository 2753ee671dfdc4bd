"""Authenticate API callers: keys, tokens, cookies, and the channels each may use."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from linkd.api.errors import ApiError
from linkd.api.shared_auth import SharedAuth
from linkd.config import Config
from linkd.errors import ChannelRefused, ConfigError
from linkd.host import write_atomically
from linkd.log.interface import UNOWNED, Consumer, Owned
from linkd.net.auth import load_secret
from linkd.net.rate_limit import RateLimiter
from linkd.protocol.channels import Patterns, check_channel, check_patterns, is_channel, is_pattern
from linkd.status import Event

DEFAULT_CHANNEL = "default"
"""Where a client of `/ws` publishes that names no channel, and for which none is set."""


class Caller:
    """The caller of a request.

    Args:
        name: A key's name, `socket`, or `anyone` where no key is required: the owner of the
            consumers, producers and ids that it names.
        publish: Sets of patterns that a channel must match, each, to be published on.
        subscribe: Sets of patterns that must cover, each, what is read.
        operator: It may act on links, consumers and the log (the socket, a key for `>`).
        mark: Changes when the key's secret does.
        channel: Where it publishes on `/ws` without naming a channel; None: nothing is set.

    Attributes:
        narrowing: The patterns that it was narrowed to, one after the other.
    """

    def __init__(
        self,
        name: str,
        publish: tuple[Patterns, ...] = (),
        subscribe: tuple[Patterns, ...] = (),
        operator: bool = True,
        mark: bytes = b"",
        channel: str | None = None,
    ) -> None:
        self.name = name
        self.publish = publish
        self.subscribe = subscribe
        self.operator = operator
        self.mark = mark
        self.channel = channel
        self.narrowing: tuple[str, ...] = ()
        self._covered: dict[str, bool] = {}

    def narrowed(self, pattern: str) -> Caller:
        """Return the caller with no right beyond `pattern`."""
        only = (Patterns((pattern,)),)
        narrow = Caller(
            self.name, self.publish + only, self.subscribe + only, False, self.mark, self.channel
        )
        narrow.narrowing = (*self.narrowing, pattern)
        return narrow

    def default_channels(self, setting: str | None) -> list[str]:
        """Return where it may publish on `/ws` without naming a channel, the best first.

        The one that it was narrowed to, the key's, the node's `setting`, one that the key's rights
        name, `default`. Whether it has a right to it is not looked at.
        """
        named = [
            each for patterns in self.publish for each in patterns.patterns if is_channel(each)
        ]
        wanted = [*reversed(self.narrowing), self.channel, setting, *named, DEFAULT_CHANNEL]
        return [each for each in wanted if each is not None and is_channel(each)]

    def check_publish(self, channel: str) -> str:
        """Return `channel`; raise ApiError where it is no channel, or not one to publish on."""
        try:
            check_channel(channel)  # before it is matched: it may have millions of words
        except ChannelRefused as error:
            raise ApiError("malformed", str(error)) from None
        for patterns in self.publish:
            if not patterns.match(channel):
                raise ApiError("channel-refused", f"{self.name} may not publish on {channel}")
        return channel

    def check_subscribe(self, pattern: str) -> str:
        """Return `pattern`; raise ApiError where it is none, or reaches beyond what may be read."""
        covered = self._covered.get(pattern)
        if covered is None:
            if not is_pattern(pattern):
                raise ApiError(
                    "malformed",
                    f"{pattern[:80]!r} is no channel or pattern: expected dot-separated words,"
                    " * for one word, > last for the rest",
                )
            covered = all(covers(patterns.patterns, pattern) for patterns in self.subscribe)
            if len(self._covered) > 1000:
                self._covered.clear()
            self._covered[pattern] = covered
        if not covered:
            raise ApiError("channel-refused", f"{self.name} may not read {pattern}")
        return pattern

    def key(self, owner: str | None, name: str) -> Owned:
        """Return whose consumer a call means; raise ApiError where the caller may not name it."""
        if owner is None or owner == self.name:
            return (self.name, name)
        if not self.operator:
            raise ApiError("not-found", f"there is no consumer {name}")
        return (owner, name)

    def sees(self, consumer: Consumer) -> bool:
        """Return whether the caller may know of a consumer and act on it.

        One of its own, or any where it is an operator. A caller that was narrowed sees only what
        reads nothing beyond its rights.
        """
        if self.operator:
            return True
        return self.name == consumer.owner and (
            not self.narrowing or self.may_read(consumer.patterns)
        )

    @property
    def visible_owner(self) -> str | None:
        """Whose lasting names it may see in status, events and metrics; None: everybody's."""
        return None if self.operator else "" if self.narrowing else self.name

    def may_see_event(self, event: Event) -> bool:
        """Return whether the caller may see an event."""
        return event.owner is None or self.visible_owner in (None, event.owner)

    def may_read(self, patterns: Iterable[str]) -> bool:
        """Return whether the caller may read all that the patterns select."""
        return all(
            covers(allowed.patterns, pattern) for allowed in self.subscribe for pattern in patterns
        )

    def check_patterns(self, patterns: Sequence[str]) -> None:
        """Raise ApiError where patterns cost too much, or one reaches beyond what may be read."""
        try:
            check_patterns(patterns)
        except ChannelRefused as error:
            raise ApiError("malformed", str(error)) from None
        for pattern in patterns:
            self.check_subscribe(pattern)

    def check_operator(self) -> None:
        """Raise ApiError unless the caller may act on links, consumers and the log."""
        if not self.operator:
            raise ApiError("forbidden", f"{self.name} may not act on links, consumers or the log")


def covers(allowed: Iterable[str], pattern: str) -> bool:
    """Return whether one of the allowed patterns covers every channel of `pattern`."""
    return any(_covers(one.split("."), pattern.split(".")) for one in allowed)


def _covers(allowed: list[str], wanted: list[str]) -> bool:
    """Compare word by word."""
    for place, word in enumerate(allowed):
        if word == ">":
            return len(wanted) > place
        if place >= len(wanted) or wanted[place] == ">":
            return False
        if word not in ("*", wanted[place]):
            return False
    return len(allowed) == len(wanted)


SOCKET = Caller("socket")
"""The caller on the unix socket, admitted by file permissions."""

ANYONE = Caller("anyone")
"""The caller over loopback if no key is required."""

STRANGER = Caller("stranger", (Patterns(()),), (Patterns(()),), False)
"""The caller without a key if one is required."""


TOKEN_SECONDS = 30.0
SESSION_SECONDS = 43_200.0
MAX_TOKENS = 10_000
WRONG_PER_MINUTE = 20
MAX_ADDRESSES = 10_000
COOKIE = "linkd_session"
SESSION_KEY_FILE = "session.key"
ENDED_SESSIONS_FILE = "sessions.ended"
MAX_ENDED = 1000
"""Ended sessions that are remembered of each key."""


class _Session(msgspec.Struct, array_like=True, frozen=True):
    """The content of a cookie: whose it is, how narrow, until when, of which key's secret."""

    key: str
    patterns: tuple[str, ...]
    expires: float
    mark: str
    id: bytes = b""


class _Key(msgspec.Struct, frozen=True):
    """One key in force."""

    caller: Caller
    digest: bytes
    secret: bytes


class _Token(msgspec.Struct, frozen=True):
    """A token that waits to be spent."""

    key: str
    patterns: tuple[str, ...]
    expires: float


class Keyring:
    """The keys, tokens and cookie sessions that are accepted over `http`.

    Args:
        config: Names the key files; `reload` reads them again.
        clock: Monotonic seconds.
        wall: Unix seconds, for the cookies, which outlive a restart.
        shared: What the instances of the node share; None: there is only this one.

    Raises:
        ConfigError: A key's file cannot be read, or holds no usable secret.
    """

    def __init__(
        self,
        config: Config,
        clock: Callable[[], float],
        wall: Callable[[], float],
        shared: SharedAuth | None = None,
    ) -> None:
        self._clock = clock
        self._wall = wall
        self._shared = shared
        self._tokens: OrderedDict[bytes, _Token] = OrderedDict()
        self._waiting: dict[str, OrderedDict[bytes, None]] = {}  # the tokens of each key
        self._ended = EndedSessions(Path(config.node.state_dir), wall)
        self._own_signing = _signing_key(Path(config.node.state_dir))
        if shared is not None:
            shared.signing_key(self._own_signing)  # before another instance needs it
        self._keys: dict[str, _Key] = {}
        self.require_key = True
        self.reload(config)

    def reload(self, config: Config) -> None:
        """Read the keys again; on ConfigError the old ones stay in force."""
        keys: dict[str, _Key] = {}
        for key in config.api.keys:
            if key.name in (SOCKET.name, ANYONE.name, STRANGER.name, UNOWNED):
                raise ConfigError(
                    f"api.key: {key.name!r} has a meaning of its own; choose another name"
                )
            secret = load_secret(key.secret_file)
            digest = _digest(secret)
            rights = (Patterns(key.publish),), (Patterns(key.subscribe),)
            keys[key.name] = _Key(
                Caller(key.name, *rights, key.is_for_everything, digest, key.default_channel),
                digest,
                secret,
            )
        self._keys = keys
        self.require_key = config.api.require_key

    def by_key(self, presented: str) -> Caller | None:
        """Return the owner of a key, in a time that does not depend on the keys."""
        digest = _digest(presented.encode("utf-8", "surrogateescape"))
        found = None
        for key in self._keys.values():
            if hmac.compare_digest(key.digest, digest):
                found = key.caller
        return found

    def renewed(self, caller: Caller) -> Caller | None:
        """Return a caller with its present rights; None if its key is gone or has changed."""
        known = self._named(caller.name)
        if known is None or known.mark != caller.mark:
            return None
        return _narrow(known, caller.narrowing)

    # tokens

    def issue(self, caller: Caller, patterns: tuple[str, ...]) -> str:
        """Return a fresh token: good once, for 30 s, for `caller` narrowed to `patterns`.

        If too many are waiting, the oldest token of the key with the most is dropped.
        """
        now = self._clock()
        while self._tokens and next(iter(self._tokens.values())).expires <= now:
            self._drop(next(iter(self._tokens)))
        if len(self._tokens) >= MAX_TOKENS:
            most = max(self._waiting.values(), key=len)
            self._drop(next(iter(most)))
        token = secrets.token_urlsafe(32)
        digest = _digest(token.encode())
        self._tokens[digest] = _Token(caller.name, patterns, now + TOKEN_SECONDS)
        self._waiting.setdefault(caller.name, OrderedDict())[digest] = None
        return token

    async def issue_shared(self, caller: Caller, patterns: tuple[str, ...]) -> str:
        """Return a fresh token that every instance accepts; raise ApiError if that fails."""
        if self._shared is None:
            return self.issue(caller, patterns)
        return await self._shared.issue(self._signing, caller.name, patterns)

    def is_shared(self, presented: str) -> bool:
        """Return whether a token was made by an instance of this node: `redeem` uses it up."""
        return self._shared is not None and self._shared.is_ours(self._signing, presented)

    async def redeem(self, presented: str) -> tuple[Caller, tuple[str, ...]] | None:
        """Use up a token of any instance; return its caller and patterns if it was good.

        Raises:
            ApiError: The database does not answer.
        """
        assert self._shared is not None
        token = await self._shared.take(presented)
        caller = None if token is None else self._named(token.key)
        if token is None or caller is None:
            return None
        return _narrow(caller, token.patterns), token.patterns

    def _drop(self, digest: bytes) -> _Token | None:
        """Take a token away; return it, if it was there."""
        token = self._tokens.pop(digest, None)
        if token is not None:
            mine = self._waiting[token.key]
            del mine[digest]
            if not mine:
                del self._waiting[token.key]
        return token

    def peek(self, presented: str) -> tuple[Caller, tuple[str, ...]] | None:
        """Return a token's caller and patterns; None where it is used, expired or forged."""
        token = self._tokens.get(_digest(presented.encode("utf-8", "surrogateescape")))
        if token is None or token.expires <= self._clock():
            return None
        caller = self._named(token.key)
        return None if caller is None else (_narrow(caller, token.patterns), token.patterns)

    def spend(self, presented: str) -> tuple[Caller, tuple[str, ...]] | None:
        """Use a token up; return what `peek` would have."""
        found = self.peek(presented)
        self._drop(_digest(presented.encode("utf-8", "surrogateescape")))
        return found

    # cookie sessions

    def open_session(self, caller: Caller, patterns: tuple[str, ...]) -> str:
        """Return a cookie's signed value: good for 12 h, over restarts, until its key changes."""
        session = _Session(
            caller.name,
            patterns,
            self._wall() + SESSION_SECONDS,
            self._mark(caller.name),
            secrets.token_bytes(12),
        )
        packed = msgspec.msgpack.encode(session)
        return f"{_text(packed)}.{_text(self._sign(packed))}"

    def by_cookie(self, value: str) -> Caller | None:
        """Return the caller of a session; None if it is expired, forged, or its key is gone."""
        session = self._session(value)
        if session is None:
            return None
        caller = self._named(session.key)
        return None if caller is None else _narrow(caller, session.patterns)

    def end_session(self, value: str) -> None:
        """Invalidate a session cookie, also across restarts."""
        session = self._session(value)
        if session is None:
            return
        if self._shared is None:
            self._ended.add(session.key, session.id, session.expires)
        else:
            self._shared.end(session.key, session.id, session.expires)

    def _session(self, value: str) -> _Session | None:
        """Return the session in a cookie that we signed and that is still valid."""
        packed_text, _, signature = value.partition(".")
        try:
            packed, signed = _bytes(packed_text), _bytes(signature)
        except ValueError:
            return None
        if not hmac.compare_digest(self._sign(packed), signed):
            return None
        session = msgspec.msgpack.decode(packed, type=_Session)
        if (
            not session.id
            or session.id in self._ended
            or (self._shared is not None and self._shared.has_ended(session.id))
            or not 0 < session.expires - self._wall() <= SESSION_SECONDS
            or not hmac.compare_digest(self._mark(session.key), session.mark)
        ):
            return None
        return session

    def _named(self, name: str) -> Caller | None:
        """Return the caller of that name as of now."""
        if name == SOCKET.name:
            return SOCKET
        if name == ANYONE.name:
            return None if self.require_key else ANYONE
        key = self._keys.get(name)
        return None if key is None else key.caller

    def _mark(self, name: str) -> str:
        """Return what changes when a key's secret does."""
        key = self._keys.get(name)
        return _text(self._sign(b"mark" + (key.secret if key else name.encode())))[:16]

    @property
    def _signing(self) -> bytes:
        """The key that signs cookies."""
        if self._shared is None:
            return self._own_signing
        return self._shared.signing_key(self._own_signing)

    def _sign(self, packed: bytes) -> bytes:
        return hmac.new(self._signing, packed, hashlib.sha256).digest()


class EndedSessions:
    """Cookie sessions that were ended before their time; a file keeps them over restarts.

    Args:
        state_dir: Where the file is.
        wall: Unix seconds, as in the cookies.
    """

    def __init__(self, state_dir: Path, wall: Callable[[], float]) -> None:
        self._path = state_dir / ENDED_SESSIONS_FILE
        self._wall = wall
        self._ended: dict[str, dict[bytes, float]] = {}
        with suppress(OSError, msgspec.DecodeError):  # else each ends within 12 h by itself
            self._ended = msgspec.msgpack.decode(
                self._path.read_bytes(), type=dict[str, dict[bytes, float]]
            )

    def __contains__(self, id: bytes) -> bool:
        return any(id in mine for mine in self._ended.values())

    def add(self, key: str, id: bytes, expires: float) -> None:
        """Remember a session of a key until it would have ended by itself."""
        now = self._wall()
        for name in list(self._ended):
            mine = {one: until for one, until in self._ended[name].items() if until > now}
            if mine:
                self._ended[name] = mine
            else:
                del self._ended[name]
        mine = self._ended.setdefault(key, {})
        mine[id] = expires
        if len(mine) > MAX_ENDED:
            del mine[next(iter(mine))]
        content = msgspec.msgpack.encode(self._ended)
        with suppress(OSError):  # else it has ended for as long as this process runs
            write_atomically(self._path, content, 0o600, durable=False)


class FailedKeyLimiter:
    """Counts wrong keys by address: beyond 20 a minute they are answered 429.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        rate = WRONG_PER_MINUTE / 60.0
        self._limiter = RateLimiter(rate, WRONG_PER_MINUTE, 1e9, 1e9, MAX_ADDRESSES)

    def wrong(self, address: str) -> None:
        """Count one; raise ApiError where there were too many."""
        wait = self._limiter.take(address, self._clock())
        if wait:
            seconds = str(max(1, round(wait)))
            raise ApiError("too-many", "too many wrong keys", {"Retry-After": seconds})


def _narrow(caller: Caller, patterns: tuple[str, ...]) -> Caller:
    for pattern in patterns:
        caller = caller.narrowed(pattern)
    return caller


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()


def _text(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    """Return what `_text` encoded; raise ValueError where it is nothing of the kind."""
    if len(text) > 4096 or not text.isascii():
        raise ValueError("no cookie of ours")
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


def _signing_key(state_dir: Path) -> bytes:
    """Return the key that signs cookies: made at the first start, mode 0600."""
    path = state_dir / SESSION_KEY_FILE
    with suppress(OSError):
        found = path.read_bytes()
        if len(found) == 32:
            return found
    fresh = secrets.token_bytes(32)
    with suppress(OSError):  # else sessions end with this process; everything else works
        write_atomically(path, fresh, 0o600)
    return fresh
