"""One connection attempt: name look-up, all addresses, TLS, one time budget.

The addresses are tried like happy eyeballs (RFC 8305), but until the upgrade: an address that
accepts TCP and is mute, or answers with an error, costs its turn and not the attempt. Twisted's
`HostnameEndpoint` ends its race with the first TCP connection and cancels the others, so it can't
pass over a mute address or one that answers 502. What it would save, the race over TCP, is a part
of the race here.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple

from twisted.internet import error
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.base import BaseConnector, DelayedCall, ReactorBase
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IAddress, IProtocol
from twisted.internet.protocol import ClientFactory
from twisted.python.failure import Failure

from linkd.config.addresses import ProxyUrl, Url
from linkd.errors import AttemptFailed, ConfigError, FailureKind
from linkd.net.linux import format_address, limit_segment
from linkd.net.proxy import Credentials, TunnelFactory, choose_proxy, late, make_handshake
from linkd.net.timers import cancel
from linkd.net.tls import ClientTls

PATIENCE: Final = 0.25
"""Seconds without an answer after which the last known addresses are used."""

Lookup = Callable[[str], Deferred[list[str]]]
"""Looks a name up; fails with an OSError."""


def interleave(addresses: list[str]) -> list[str]:
    """Return unique addresses, families alternating from that of the first (RFC 8305)."""
    unique = list(dict.fromkeys(addresses))
    if not unique:
        return []
    first_is_six = ":" in unique[0]
    lead = [each for each in unique if (":" in each) == first_is_six]
    rest = [each for each in unique if (":" in each) != first_is_six]
    mixed: list[str] = []
    for index in range(max(len(lead), len(rest))):
        mixed += lead[index : index + 1] + rest[index : index + 1]
    return mixed


def look_up(host: str) -> list[str]:
    """Return the addresses of a name, as the system orders them; blocks.

    Raises:
        OSError: There are none.
    """
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


class Resolver:
    """Looks up addresses; attempts that need the same name share one look-up.

    Args:
        clock: For patience.
        lookup: Does the work, in threads of its own.
    """

    def __init__(self, clock: ReactorBase, lookup: Lookup) -> None:
        self._clock = clock
        self._lookup = lookup
        self._good: dict[str, list[str]] = {}
        self._waiting: dict[str, dict[Deferred[list[str]], DelayedCall | None]] = {}

    def resolve(self, host: str) -> Deferred[list[str]]:
        """Return the addresses of a host; an IP address resolves to itself.

        The Deferred fails with an OSError where it has none and never had; it may be cancelled.
        """
        if isIPAddress(host) or isIPv6Address(host.partition("%")[0]):
            return succeed([host])
        waiter: Deferred[list[str]] = Deferred(lambda gone: self._forget(host, gone))
        timer: DelayedCall | None = None
        if host in self._good:
            timer = self._clock.callLater(PATIENCE, self._serve_old, host, waiter)
        first = host not in self._waiting
        self._waiting.setdefault(host, {})[waiter] = timer
        if first:
            self._lookup(host).addBoth(self._found, host)
        return waiter

    def _leave(self, host: str, waiter: Deferred[list[str]]) -> bool:
        """Remove a waiter; return whether it was still waiting."""
        waiting = self._waiting.get(host, {})
        if waiter not in waiting:
            return False
        cancel(waiting.pop(waiter))
        return True

    def _forget(self, host: str, waiter: Deferred[list[str]]) -> None:
        """Remove a cancelled waiter."""
        self._leave(host, waiter)

    def _serve_old(self, host: str, waiter: Deferred[list[str]]) -> None:
        """Use the last known addresses: the look-up takes too long."""
        if self._leave(host, waiter):
            waiter.callback(self._good[host])

    def _found(self, outcome: list[str] | Failure, host: str) -> None:
        waiting = self._waiting.pop(host, {})
        if isinstance(outcome, list) and outcome:
            self._good[host] = interleave(outcome)
        addresses = self._good.get(host)
        for waiter, timer in waiting.items():
            cancel(timer)
            if addresses is not None:
                waiter.callback(addresses)
            else:
                error = outcome.value if isinstance(outcome, Failure) else None
                text = getattr(error, "strerror", None) or str(error or "no addresses")
                waiter.errback(OSError(f"the name {host} could not be looked up: {text}"))


STAGGER: Final = 0.25
"""Seconds after which the next address is tried beside one that has not answered (RFC 8305)."""

MAX_ADDRESSES: Final = 8

_DECISIVE: Final[tuple[FailureKind, ...]] = ("busy", "refused", "broken", "rejected")
"""Of several addresses that answered, the failure of the first of these kinds counts: an attempt
is rejected only where all of them reject it."""


class Budget(NamedTuple):
    """Seconds for the whole attempt, and for TCP to any one address."""

    whole: float
    tcp: float


class Attempt(BaseConnector):
    """A connector with one time budget until the hello; it resolves names and dials itself.

    Args:
        factory: The dialer: `in_turn`, `secure`, `begin` and `clientConnectionFailed` are called.
        target: Where to.
        budget: For how long.
        reactor: Clock and sockets.

    Attributes:
        proxy: The proxy whose addresses are dialed in place of the target's, if there is one.
        failure: Why it failed, once it has.
        failed_address: The address that failed last, for the next attempt to begin behind it.
    """

    def __init__(self, factory: Any, target: Url, budget: Budget, reactor: Any) -> None:
        super().__init__(factory, budget.whole, reactor)
        self.target = target
        self._dialer = factory
        self._net = reactor
        self.budget = budget
        self.began = reactor.seconds()
        self.proxy: ProxyUrl | None = None
        self.failure: AttemptFailed | None = None
        self.failed_address: str | None = None
        self.resolver: Resolver = factory.resolver
        self._lookup: Deferred[Any] | None = None
        self._addresses: list[str] = []
        self._count = 1
        self._candidates: list[Candidate] = []
        self._passed_over: set[str] = set()
        self._stagger: DelayedCall | None = None
        self._ended = False
        self._problems: list[str] = []
        self._answers: list[AttemptFailed] = []
        self._refused = False

    @property
    def closed_kind(self) -> FailureKind:
        """What a connection that ends within the handshake means for the next attempt."""
        kind: FailureKind = self._dialer.closed_kind(self.target)
        return kind

    @property
    def _next_hop(self) -> Url | ProxyUrl:
        """Where TCP goes."""
        return self.proxy or self.target

    def _where(self) -> str:
        """Return target and proxy, for display."""
        return f"{self.target}{f' through {self.proxy}' if self.proxy else ''}"

    def getDestination(self) -> Any:
        """Return the destination, for display."""
        return str(self.target)

    # BaseConnector asks its transport for this; the attempt is its own transport.
    def _makeTransport(self) -> Any:
        self.reactor.callLater(0, self._begin)
        return self

    def failIfNotConnected(self, problem: BaseException) -> None:
        """End the attempt: its budget is spent, or it was cancelled."""
        if self._ended:
            return
        seconds = f"{self.reactor.seconds() - self.began:.1f} s"
        if self._lookup is not None:
            detail = f"the name look-up of {self._next_hop} was not done within {seconds}"
            self._fail(AttemptFailed("unreachable", "dns", detail))
            return
        for candidate in self._candidates:
            if candidate.is_tunneling:
                self._note(candidate, late(self.reactor.seconds() - self.began).detail)
            elif candidate.answered:
                detail = f"the handshake was not done within {seconds}"
                self._answers.append(AttemptFailed("broken", "unreachable", detail))
                self._note(candidate, detail)
            else:
                self._note_tcp(candidate, "no answer")
        self._fail(self._verdict())

    def loseConnection(self) -> None:
        """End it."""
        self.abandon()

    def abandon(self) -> None:
        """End the attempt without a report."""
        self._finish()
        self._drop(self._candidates)

    def cancelTimeout(self) -> None:
        """Do nothing: the budget runs until `greeted`."""

    # -- look-up ------------------------------------------------------------------------------

    def _begin(self) -> None:
        if self._ended:
            return
        try:
            self.proxy = choose_proxy(self._dialer.settings.proxy, self.target)
        except ConfigError as error:
            self._fail(AttemptFailed("rejected", "rejected", f"{self.target}: {error}"))
            return
        self._lookup = self.resolver.resolve(self._next_hop.host)
        self._lookup.addCallbacks(self._resolved, self._unresolved)

    def _unresolved(self, reason: Failure) -> None:
        self._lookup = None
        if not isinstance(reason.value, CancelledError):
            detail = f"{self._where()}: {reason.value}" if self.proxy else str(reason.value)
            self._fail(AttemptFailed("unreachable", "dns", detail))

    def _resolved(self, addresses: list[str]) -> None:
        self._lookup = None
        if self._ended:
            return
        self._addresses = self._dialer.in_turn(self.target, addresses)[:MAX_ADDRESSES]
        self._count = len(self._addresses)
        self._next_address()

    # -- the race -----------------------------------------------------------------------------

    def _next_address(self) -> None:
        """Dial the next address, beside those that have not answered yet."""
        cancel(self._stagger)
        if self._ended:
            return
        if not self._addresses:
            if not self._candidates:
                self._fail(self._verdict())
            return
        address = self._addresses.pop(0)
        self._dialer.dialing(self, format_address(address, self._next_hop.port))
        if self._ended:
            return
        candidate = Candidate(self, address)
        self._candidates.append(candidate)
        port = self._next_hop.port
        connector = self._net.connectTCP(address, port, candidate, self._tcp_timeout())
        limit_segment(connector.transport, self._dialer.segment_bytes)
        self._next_after(STAGGER)

    def _tcp_timeout(self) -> float:
        """Return the seconds that TCP, or a proxy's answer, may take from now on."""
        left: float = self.budget.whole - (self._net.seconds() - self.began)
        return max(0.01, min(self.budget.tcp, left))

    def _next_after(self, seconds: float) -> None:
        """Schedule the next address, if there is one."""
        cancel(self._stagger)
        if self._addresses and not self._ended:
            self._stagger = self.reactor.callLater(seconds, self._next_address)

    def answered(self, candidate: Candidate, address: IAddress | None) -> IProtocol | None:
        """Give an address whose TCP connection is established time alone for the handshake.

        Addresses that have not answered are stopped and tried again after the others, so that there
        is usually one handshake at a time. None is stopped twice, so that nearby addresses that do
        not respond cannot hold up a distant one.
        """
        if candidate not in self._candidates:
            return None
        try:
            wrapped = self._dialer.secure(candidate)
        except AttemptFailed as failure:
            self._fail(failure)
            return None
        candidate.answered = True
        waiting = [
            each
            for each in self._candidates
            if not each.answered and each.address not in self._passed_over
        ]
        self._drop(waiting)
        self._addresses += [each.address for each in waiting]
        self._passed_over.update(each.address for each in waiting)
        self._next_after(max(STAGGER, self.budget.whole / (self._count + 1)))
        if self.proxy is not None:
            wrapped = self._tunnel(self.proxy, candidate, wrapped)
        built: IProtocol | None = wrapped.buildProtocol(address)
        return built

    def _tunnel(self, proxy: ProxyUrl, candidate: Candidate, wrapped: Any) -> TunnelFactory:
        """Return the factory for the protocol that asks the proxy for a tunnel.

        It has as long as TCP: it is the TCP connection to the peer that the proxy waits for.
        """
        credentials, candidate.credentials = candidate.credentials, None
        has_worked = self._dialer.has_worked(self.target)
        handshake = make_handshake(proxy, self.target, credentials, has_worked)
        candidate.is_tunneling = True
        return TunnelFactory(candidate, handshake, wrapped, self._tcp_timeout())

    def begin(self, candidate: Candidate, address: IAddress | None) -> IProtocol | None:
        """Build the WebSocket protocol, once TCP is established."""
        built: IProtocol | None = self._dialer.begin(candidate, address)
        return built

    def opened(self, candidate: Candidate) -> bool:
        """Drop all other addresses after an upgrade; return whether this one may send its hello.

        Only one connection of an attempt sends a hello: of two, the peer would take the older one
        for replaced.
        """
        if self._ended or candidate not in self._candidates:
            return False
        self._drop([each for each in self._candidates if each is not candidate])
        cancel(self._stagger)
        return True

    def greeted(self) -> None:
        """End the attempt with success: the hello has arrived."""
        self._finish()

    def address_failed(self, candidate: Candidate, failure: AttemptFailed | Failure) -> None:
        """Continue with the next address after one has failed, before or after TCP."""
        if self._ended or candidate not in self._candidates:
            return
        self._candidates.remove(candidate)
        if isinstance(failure, AttemptFailed):
            self._answers.append(failure)
            self._note(candidate, failure.detail)
            if failure.retry_after is not None:
                self._fail(self._verdict())
                return
        else:
            self._refused |= isinstance(failure.value, error.ConnectionRefusedError)
            self._note_tcp(candidate, _short(failure))
        self._next_address()

    def _note_tcp(self, candidate: Candidate, problem: str) -> None:
        """Record that TCP to one address failed."""
        self._note(candidate, f"the proxy: {problem}" if self.proxy else problem)

    def _note(self, candidate: Candidate, problem: str) -> None:
        """Record the failure of one address; a URL with a literal address names it already."""
        host, self.failed_address = self._next_hop.host, candidate.address
        if isIPAddress(host) or isIPv6Address(host.partition("%")[0]):
            self._problems.append(problem)
        else:
            self._problems.append(
                f"{format_address(candidate.address, self._next_hop.port)}: {problem}"
            )

    def _verdict(self) -> AttemptFailed:
        """Return why the attempt failed, preferably at an address that answered."""
        detail = f"{self._where()}: {'; '.join(self._problems)}"
        for kind in _DECISIVE:
            alike = [each for each in self._answers if each.kind == kind]
            if alike:
                first = max(alike, key=lambda each: each.retry_after or 0.0)
                return AttemptFailed(kind, first.reason, detail, first.retry_after)
        what: Literal["refused", "unreachable"] = "refused" if self._refused else "unreachable"
        return AttemptFailed(what, what, detail)

    def _drop(self, candidates: list[Candidate]) -> None:
        """Drop some addresses."""
        self._candidates = [each for each in self._candidates if each not in candidates]
        for candidate in candidates:
            candidate.drop()

    # -- ending -------------------------------------------------------------------------------

    def _fail(self, failure: AttemptFailed) -> None:
        """Fail the attempt."""
        if self._ended:
            return
        self.failure = failure
        self.abandon()
        self.state = "disconnected"
        self._dialer.clientConnectionFailed(self, Failure(failure))

    def _finish(self) -> None:
        """Cancel everything but the connection that answered."""
        self._ended = True
        if self.timeoutID is not None:
            cancel(self.timeoutID)
        cancel(self._stagger)
        lookup, self._lookup = self._lookup, None
        if lookup is not None:
            lookup.cancel()


class Candidate(ClientFactory):
    """One address of an attempt, from TCP to the hello.

    Attributes:
        attempt: Whose address it is.
        address: The address alone, without a port.
        answered: TCP is established.
        is_tunneling: The proxy at this address has not opened its tunnel yet.
        credentials: For the proxy, until the tunnel takes them.
        secret: The shared secret, until the connection takes it.
        tls: The dialer's side of TLS, if the URL asks for it.
    """

    noisy = False

    def __init__(self, attempt: Attempt, address: str) -> None:
        self.attempt = attempt
        self.address = address
        self.answered = self.is_tunneling = False
        self.credentials: Credentials | None = None
        self.secret: bytes | None = None
        self.tls: ClientTls | None = None
        self.failure: AttemptFailed | None = None
        self._connector: Any = None

    @property
    def target(self) -> Url:
        """The URL of the attempt."""
        return self.attempt.target

    def startedConnecting(self, connector: Any) -> None:
        """Remember the TCP connector, to stop it."""
        self._connector = connector

    def buildProtocol(self, addr: IAddress | None) -> IProtocol | None:
        """Return the protocol, in TLS where the URL asks for it."""
        return self.attempt.answered(self, addr)

    def clientConnectionFailed(self, connector: Any, reason: Failure) -> None:
        """Report that TCP failed."""
        self.attempt.address_failed(self, reason)

    def clientConnectionLost(self, connector: Any, reason: Failure) -> None:
        """Report that the connection has ended; its protocol knows it already."""
        failure = self.failure or AttemptFailed(
            self.attempt.closed_kind, "closed", "the connection was closed"
        )
        self.attempt.address_failed(self, failure)

    def drop(self) -> None:
        """End the connection immediately, without a report."""
        if self._connector is None:
            return
        if self._connector.state == "connecting":
            self._connector.stopConnecting()
        elif self._connector.state == "connected":
            self._connector.transport.abortConnection()


class Inner(ClientFactory):
    """The factory inside TLS: builds the WebSocket protocol of a candidate."""

    noisy = False

    def __init__(self, candidate: Candidate) -> None:
        self._candidate = candidate

    def buildProtocol(self, addr: IAddress | None) -> IProtocol | None:
        """Build the protocol."""
        return self._candidate.attempt.begin(self._candidate, addr)


def _short(reason: Failure) -> str:
    """Return a short reason why one address failed."""
    value = reason.value
    if isinstance(value, error.TimeoutError | error.TCPTimedOutError):
        return "no answer"
    if isinstance(value, error.ConnectionRefusedError):
        return "refused"
    if isinstance(value, error.NoRouteError):
        return "no route"
    number = getattr(value, "osError", None)
    return os.strerror(number) if isinstance(number, int) else str(number or value)
