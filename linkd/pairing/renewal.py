"""Certificates that pairing gave out are renewed in good time, by themselves."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure

from linkd import events
from linkd.config import Config, PeerSettings
from linkd.errors import LinkdError
from linkd.net.certificates import load_certificates
from linkd.pairing.authority import DIRECTORY
from linkd.pairing.joining import due, renew
from linkd.pairing.signers import AUTHORITY_WARN_DAYS

CHECK_INTERVAL: Final = 3600.0
RETRY_INTERVAL: Final = 60.0
"""A certificate that has expired is tried so often, because its link is down meanwhile."""

Threads = Callable[..., "Deferred[Renewed | None]"]
EXPIRY_WARN_DAYS: Final = 14.0
"""For certificates and authorities that an operator renews."""

_WARN_SECONDS: Final = 86_400.0
"""An authority that ends is named so often."""

EndsSoon = Callable[[PeerSettings, float], None]


class Renewed(NamedTuple):
    """A certificate that was renewed: Unix seconds at which it and the one before end."""

    expires: float
    before: float


def renew_if_due(
    peer: PeerSettings, state_dir: Path, wall: float, ends_soon: EndsSoon
) -> Renewed | None:
    """Renew a paired certificate that ends soon; it waits for the disk and for the hub.

    Args:
        peer: The hub.
        state_dir: The node's.
        wall: Unix seconds.
        ends_soon: Called where the authority that the peer is trusted by ends soon, with the
            seconds that are left.

    Raises:
        NotRenewed: It ends soon and could not be renewed; has the seconds that are left.
        LinkdError: Its file, or that of the hub's authority, can't be used or has expired.
    """
    left = authority_left(peer, state_dir, wall)
    if left is not None:
        ends_soon(peer, left)
    ends = due(peer, state_dir, wall)
    if ends is None:
        return None
    try:
        return Renewed(renew(peer), ends)
    except (LinkdError, OSError) as error:
        raise NotRenewed(f"it could not be renewed: {error}", ends - wall) from None


class NotRenewed(LinkdError):
    """A certificate ends soon and could not be renewed.

    Args:
        message: Why.
        left: Seconds until it ends.
    """

    def __init__(self, message: str, left: float) -> None:
        super().__init__(message)
        self.left = left


def authority_left(peer: PeerSettings, state_dir: Path, wall: float) -> float | None:
    """Return the seconds until the authority that a peer is trusted by ends, if that is soon.

    Soon is two years for what pairing has written, because the hub sends its successor long before;
    and two weeks for others, which may live for a few months only.

    Raises:
        LinkdError: The file can't be used.
    """
    if peer.ca is None:
        return None
    left = max(each.not_valid_after_utc.timestamp() for each in load_certificates(peer.ca)) - wall
    ours = Path(peer.ca).parent == state_dir / DIRECTORY
    return left if left < (AUTHORITY_WARN_DAYS if ours else EXPIRY_WARN_DAYS) * 86_400 else None


class Renewal:
    """Looks once an hour whether a certificate ends soon, and renews it in a thread.

    Args:
        config: Returns the configuration in force.
        wall: Returns Unix seconds.
        in_thread: Runs a function in a thread: `twisted.internet.threads.deferToThread`.
        own: Renews this node's own certificate where that ends: `Pairing.renew_own`, in a thread.
        usable: Called with a peer whose expired certificate was renewed: it can be dialed again.
    """

    def __init__(
        self,
        config: Callable[[], Config],
        wall: Callable[[], float],
        in_thread: Threads,
        own: Callable[[], Deferred[None]] = lambda: succeed(None),
        usable: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._config = config
        self._wall = wall
        self._in_thread = in_thread
        self._own = own
        self._usable = usable
        self._busy: set[str | None] = set()
        self._expired: set[str] = set()
        self._warned: dict[str, float] = {}
        self._loops = (
            (LoopingCall(self.check), CHECK_INTERVAL),
            (LoopingCall(self._retry), RETRY_INTERVAL),
        )

    def start(self, reactor: IReactorTime) -> None:
        """Look now, and once an hour from now on; once a minute at what has expired."""
        for loop, interval in self._loops:
            loop.clock = reactor
            loop.start(interval, now=interval == CHECK_INTERVAL)

    def stop(self) -> None:
        """Look no more."""
        for loop, _ in self._loops:
            if loop.running:
                loop.stop()

    def check(self) -> None:
        """Renew what ends soon; what fails is logged, and tried again an hour later."""
        config = self._config()
        if None not in self._busy:
            self._busy.add(None)
            self._own().addErrback(self._failed, None).addBoth(self._over, None)
        for peer in config.peers:
            if peer.certificate is not None or peer.ca is not None:
                self._look_at(peer, self._failed)

    def _retry(self) -> None:
        """Renew what has expired; `check` has logged why that failed, and does so each hour."""
        for peer in self._config().peers:
            if peer.name in self._expired:
                self._look_at(peer, lambda *_: None)

    def _look_at(self, peer: PeerSettings, failed: Callable[[Failure, PeerSettings], None]) -> None:
        if peer.name in self._busy:
            return
        self._busy.add(peer.name)
        state_dir = Path(self._config().node.state_dir)
        looked = self._in_thread(renew_if_due, peer, state_dir, self._wall(), self._ends_soon)
        looked.addCallback(self._done, peer)
        looked.addErrback(failed, peer).addBoth(self._over, peer.name)

    def _ends_soon(self, peer: PeerSettings, left: float) -> None:
        """Warn once a day that the authority that a peer is trusted by ends; in the thread."""
        wall = self._wall()
        if wall - self._warned.get(peer.name, -math.inf) < _WARN_SECONDS:
            return
        self._warned[peer.name] = wall
        events.emit(
            "tls.expiring",
            peer=peer.name,
            certificate=peer.ca,
            expires_seconds=round(left),
            days=round(left / 86_400, 1),
            detail="the authority that the peer is trusted by ends: a paired hub sends its"
            " successor with the next renewal; without that, pair again with a new code",
        )

    def _done(self, fresh: Renewed | None, peer: PeerSettings) -> None:
        self._expired.discard(peer.name)
        if fresh is not None:
            left = fresh.expires - self._wall()
            events.emit(
                "tls.loaded",
                peer=peer.name,
                certificate=peer.certificate,
                expires_seconds=round(left),
                days=round(left / 86_400, 1),
            )
            if fresh.before <= self._wall() and peer in self._config().peers:
                self._usable(peer.name)

    def _failed(self, failure: Failure, peer: PeerSettings | None) -> None:
        error = failure.value
        if peer is None:
            events.emit("tls.expiring", detail=f"this node's own certificate: {error}")
            return
        left = error.left if isinstance(error, NotRenewed) else None
        if left is not None and left <= 0:
            self._expired.add(peer.name)
        events.emit(
            "tls.expiring",
            peer=peer.name,
            certificate=peer.certificate,
            expires_seconds=None if left is None else round(left),
            days=None if left is None else round(left / 86_400, 1),
            detail=str(error),
        )

    def _over(self, _: object, name: str | None) -> None:
        self._busy.discard(name)
