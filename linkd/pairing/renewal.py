"""Certificates that pairing gave out are renewed in good time, by themselves."""

from __future__ import annotations

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
from linkd.pairing.joining import due, renew

CHECK_INTERVAL: Final = 3600.0

Threads = Callable[..., "Deferred[Renewed | None]"]
EXPIRY_WARN_DAYS: Final = 14.0


class Renewed(NamedTuple):
    """A certificate that was renewed: Unix seconds at which it and the one before end."""

    expires: float
    before: float


def renew_if_due(peer: PeerSettings, state_dir: Path, wall: float) -> Renewed | None:
    """Renew a paired certificate that ends soon; it waits for the disk and for the hub.

    Raises:
        NotRenewed: It ends soon and could not be renewed; has the seconds that are left.
        LinkdError: Its file, or that of the hub's authority, can't be used or has expired.
    """
    _check_authority(peer, wall)
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


def _check_authority(peer: PeerSettings, wall: float) -> None:
    """Warn before the authority that we trust the peer by ends."""
    if peer.ca is None:
        return
    ends = max(each.not_valid_after_utc.timestamp() for each in load_certificates(peer.ca))
    left = ends - wall
    if left < EXPIRY_WARN_DAYS * 86_400:
        events.emit(
            "tls.expiring",
            peer=peer.name,
            certificate=peer.ca,
            expires_seconds=round(left),
            days=round(left / 86_400, 1),
            detail="the authority that the peer is trusted by ends: pair again with a new code",
        )


class Renewal:
    """Looks once an hour whether a certificate ends soon, and renews it in a thread.

    Args:
        config: Returns the configuration in force.
        wall: Returns Unix seconds.
        in_thread: Runs a function in a thread: `twisted.internet.threads.deferToThread`.
        own: Renews this node's own certificate where that ends: `Pairing.renew_own`, in a thread.
    """

    def __init__(
        self,
        config: Callable[[], Config],
        wall: Callable[[], float],
        in_thread: Threads,
        own: Callable[[], Deferred[None]] = lambda: succeed(None),
    ) -> None:
        self._config = config
        self._wall = wall
        self._in_thread = in_thread
        self._own = own
        self._busy: set[str | None] = set()
        self._looping = LoopingCall(self.check)

    def start(self, reactor: IReactorTime) -> None:
        """Look now, and once an hour from now on."""
        self._looping.clock = reactor
        self._looping.start(CHECK_INTERVAL, now=True)

    def stop(self) -> None:
        """Look no more."""
        if self._looping.running:
            self._looping.stop()

    def check(self) -> None:
        """Renew what ends soon; what fails is logged, and tried again an hour later."""
        config = self._config()
        if None not in self._busy:
            self._busy.add(None)
            self._own().addErrback(self._failed, None).addBoth(self._over, None)
        for peer in config.peers:
            paired = peer.certificate is not None or peer.ca is not None
            if paired and peer.name not in self._busy:
                self._busy.add(peer.name)
                state_dir = Path(config.node.state_dir)
                looked = self._in_thread(renew_if_due, peer, state_dir, self._wall())
                looked.addCallback(self._done, peer)
                looked.addErrback(self._failed, peer).addBoth(self._over, peer.name)

    def _done(self, fresh: Renewed | None, peer: PeerSettings) -> None:
        if fresh is not None:
            left = fresh.expires - self._wall()
            events.emit(
                "tls.loaded",
                peer=peer.name,
                certificate=peer.certificate,
                expires_seconds=round(left),
                days=round(left / 86_400, 1),
            )

    def _failed(self, failure: Failure, peer: PeerSettings | None) -> None:
        error = failure.value
        if peer is None:
            events.emit("tls.expiring", detail=f"this node's own certificate: {error}")
            return
        left = error.left if isinstance(error, NotRenewed) else None
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
