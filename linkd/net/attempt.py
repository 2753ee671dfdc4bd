"""One attempt to reach a peer at one URL: look-up, TCP to each address, one budget of time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from twisted.internet import error
from twisted.internet.base import BaseConnector
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IAddress, IProtocol
from twisted.internet.protocol import ClientFactory
from twisted.python.failure import Failure

from linkd.errors import AttemptFailed, ConfigError, Reason
from linkd.net.resolve import Resolver
from linkd.net.sockets import show
from linkd.net.timers import Call, cancel

STAGGER: Final = 0.25
"""Seconds after which the next address is tried beside one that has not answered (RFC 8305)."""

MAX_ADDRESSES: Final = 8


class Target(NamedTuple):
    """Where a URL points."""

    url: str
    secure: bool
    host: str
    port: int
    resource: str


def parse_url(url: str) -> Target:
    """Return where a `ws://` or `wss://` URL points.

    Raises:
        ConfigError: It is none.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as problem:
        raise ConfigError(f"dial: {url!r}: {problem}") from None
    if parts.scheme not in ("ws", "wss") or not parts.hostname:
        raise ConfigError(f"dial: expected wss://HOST:PORT/link, got {url!r}")
    secure = parts.scheme == "wss"
    resource = (parts.path or "/link") + (f"?{parts.query}" if parts.query else "")
    return Target(url, secure, parts.hostname, port or (443 if secure else 80), resource)


class Budget(NamedTuple):
    """Seconds for the whole attempt, and for TCP to any one address."""

    whole: float
    tcp: float


class Attempt(BaseConnector):
    """A connector whose one budget lasts until the hello; it dials by itself, names and all.

    Args:
        factory: The dialer: `begin`, `clientConnectionFailed` and `-Lost` of it are called.
        target: Where to.
        budget: For how long.
        wrap: Puts TLS around the factory where the URL says so.
        reactor: Clock and sockets.
    """

    def __init__(
        self,
        factory: Any,
        target: Target,
        budget: Budget,
        wrap: Callable[[Any], Any],
        reactor: Any,
    ) -> None:
        super().__init__(factory, budget.whole, reactor)
        self.target = target
        self._dialer = factory
        self._net = reactor
        self.budget = budget
        self.began = reactor.seconds()
        self.failure: AttemptFailed | None = None
        self.resolver: Resolver = factory.resolver
        self.winner: Any = None
        self._wrap = wrap
        self._lookup: Deferred[Any] | None = None
        self._addresses: list[str] = []
        self._dialing: list[Any] = []
        self._stagger: Call | None = None
        self._ended = False
        self._problems: list[str] = []
        self._refused = False

    def getDestination(self) -> Any:
        """Return where it goes, for people."""
        return self.target.url

    # BaseConnector asks its transport for this: we are our own.
    def _makeTransport(self) -> Any:
        self.reactor.callLater(0, self._begin)
        return self

    def failIfNotConnected(self, problem: BaseException) -> None:
        """The budget is spent, or nobody wants the attempt any more."""
        if self._ended:
            return
        if self.winner is not None:
            late = self._too_late("the handshake")
            self._fail(AttemptFailed("broken", late.reason, late.detail))
            return
        where = "the name look-up" if self._lookup is not None else "TCP"
        late = self._too_late(where)
        reason: Reason = "unreachable" if where == "TCP" else "dns"
        self._fail(AttemptFailed("unreachable", reason, late.detail))

    def loseConnection(self) -> None:
        """End it."""
        self.abandon()

    def abandon(self) -> None:
        """End it without a word."""
        self._finish()
        if self.winner is not None:
            self.winner.abortConnection()

    def _too_late(self, what: str) -> AttemptFailed:
        seconds = self.reactor.seconds() - self.began
        problems = f" ({'; '.join(self._problems[:3])})" if self._problems else ""
        return AttemptFailed(
            "unreachable",
            "unreachable",
            f"{what} of {self.target.url} was not done within {seconds:.1f} s{problems}",
        )

    def cancelTimeout(self) -> None:
        """The budget goes on until the hello: `greeted` ends it."""

    def greeted(self) -> None:
        """The hello has come: the budget is kept."""
        self._finish()

    # -- look-up ------------------------------------------------------------------------------

    def _begin(self) -> None:
        if self._ended:
            return
        self._lookup = self.resolver.resolve(self.target.host)
        self._lookup.addCallbacks(self._resolved, self._unresolved)

    def _unresolved(self, reason: Failure) -> None:
        self._lookup = None
        if not isinstance(reason.value, CancelledError):
            self._fail(AttemptFailed("unreachable", "dns", str(reason.value)))

    def _resolved(self, addresses: list[str]) -> None:
        self._lookup = None
        if self._ended:
            return
        self._addresses = list(addresses[:MAX_ADDRESSES])
        self._next_address()

    # -- TCP ----------------------------------------------------------------------------------

    def _next_address(self) -> None:
        """Dial the next address, beside those that have not answered yet."""
        cancel(self._stagger)
        self._stagger = None
        if self._ended or self.winner is not None:
            return
        if not self._addresses:
            if not self._dialing:
                self._all_failed()
            return
        address = self._addresses.pop(0)
        self._dialer.dialing(self, show(address, self.target.port))
        if self._ended:
            return
        race = _Race(self, show(address, self.target.port))
        left = self.budget.whole - (self.reactor.seconds() - self.began)
        timeout = max(0.01, min(self.budget.tcp, left))
        self._dialing.append(race)
        race.connector = self._net.connectTCP(address, self.target.port, race, timeout)
        if self._addresses:
            self._stagger = self.reactor.callLater(STAGGER, self._next_address)

    def address_failed(self, race: Any, reason: Failure) -> None:
        """One address did not answer."""
        if race in self._dialing:
            self._dialing.remove(race)
        if self._ended or self.winner is not None:
            return
        if isinstance(reason.value, error.ConnectionRefusedError):
            self._refused = True
        self._problems.append(f"{race.address}: {_short(reason)}")
        self._next_address()

    def _all_failed(self) -> None:
        detail = f"{self.target.url}: {'; '.join(self._problems)}"
        if self._refused:
            self._fail(AttemptFailed("broken", "refused", detail))
        else:
            self._fail(AttemptFailed("unreachable", "unreachable", detail))

    def address_won(self, race: Any, address: IAddress | None) -> IProtocol | None:
        """One address has answered; the others are left."""
        if self._ended or self.winner is not None:
            return None
        self._dialing.remove(race)
        cancel(self._stagger)
        self.winner = race.connector.transport
        self._drop_dialing()
        try:
            wrapped = self._wrap(_Inner(self))
        except AttemptFailed as failure:
            self._fail(failure)
            return None
        built: IProtocol | None = wrapped.buildProtocol(address)
        return built

    def begin(self, address: IAddress | None) -> IProtocol | None:
        """Build the WebSocket protocol, once TCP stands."""
        built: IProtocol | None = self._dialer.begin(self, address)
        return built

    def _drop_dialing(self) -> None:
        losers, self._dialing = self._dialing, []
        for race in losers:
            if race.connector is not None and race.connector.state == "connecting":
                race.connector.stopConnecting()

    # -- ending -------------------------------------------------------------------------------

    def winner_lost(self, reason: Failure) -> None:
        """The connection has ended; before the hello that ends the attempt."""
        was_ended, self._ended = self._ended, True
        self._finish()
        if not was_ended:
            self.state = "disconnected"
            self._dialer.clientConnectionLost(self, reason)

    def _fail(self, failure: AttemptFailed) -> None:
        """The attempt has failed."""
        if self._ended:
            return
        self.failure = failure
        self._finish()
        if self.winner is not None:
            self.winner.abortConnection()
        self.state = "disconnected"
        self._dialer.clientConnectionFailed(self, Failure(failure))

    def _finish(self) -> None:
        """Leave nothing behind but the winner."""
        self._ended = True
        if self.timeoutID is not None:
            cancel(self.timeoutID)
        cancel(self._stagger)
        lookup, self._lookup = self._lookup, None
        if lookup is not None:
            lookup.cancel()
        self._drop_dialing()


class _Race(ClientFactory):
    """Dials one address for an attempt."""

    noisy = False

    def __init__(self, attempt: Attempt, address: str) -> None:
        self._attempt = attempt
        self.address = address
        self.connector: Any = None
        self._won = False

    def startedConnecting(self, connector: Any) -> None:
        """Remember what to stop."""
        self.connector = connector

    def buildProtocol(self, addr: IAddress | None) -> IProtocol | None:
        """TCP stands."""
        protocol = self._attempt.address_won(self, addr)
        self._won = protocol is not None
        return protocol

    def clientConnectionFailed(self, connector: Any, reason: Failure) -> None:
        """TCP failed."""
        self._attempt.address_failed(self, reason)

    def clientConnectionLost(self, connector: Any, reason: Failure) -> None:
        """It ended."""
        if self._won:
            self._attempt.winner_lost(reason)


class _Inner(ClientFactory):
    """What TLS wraps: builds the WebSocket protocol of an attempt."""

    noisy = False

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt

    def buildProtocol(self, addr: IAddress | None) -> IProtocol | None:
        """Build it."""
        return self._attempt.begin(addr)


def _short(reason: Failure) -> str:
    """Return why one address failed, in a few words."""
    value = reason.value
    if isinstance(value, error.TimeoutError | error.TCPTimedOutError):
        return "no answer"
    if isinstance(reason.value, error.ConnectionRefusedError):
        return "refused"
    if isinstance(value, error.NoRouteError):
        return "no route"
    return str(getattr(value, "osError", None) or value)
