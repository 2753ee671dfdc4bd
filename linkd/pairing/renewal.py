"""Certificates that pairing gave out are renewed in good time, by themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall

from linkd import events
from linkd.config import Config, PeerSettings
from linkd.errors import LinkdError
from linkd.pairing.joining import due, renew

CHECK_INTERVAL: Final = 3600.0

Threads = Callable[..., "Deferred[float]"]


class Renewal:
    """Looks once an hour whether a certificate ends soon, and renews it in a thread.

    Args:
        config: Returns the configuration in force.
        wall: Returns Unix seconds.
        in_thread: Runs a function in a thread: `twisted.internet.threads.deferToThread`.
        own: Renews this node's own certificate where that ends: `Pairing.renew_own`.
    """

    def __init__(
        self,
        config: Callable[[], Config],
        wall: Callable[[], float],
        in_thread: Threads,
        own: Callable[[], None] = lambda: None,
    ) -> None:
        self._config = config
        self._wall = wall
        self._in_thread = in_thread
        self._own = own
        self._busy: set[str] = set()
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
        """Renew what ends soon; what fails is said, and tried again an hour later."""
        config = self._config()
        try:
            self._own()
        except (LinkdError, OSError) as error:
            events.emit("tls.expiring", detail=f"this node's own certificate: {error}")
        for peer in config.peers:
            if peer.name in self._busy:
                continue
            try:
                ends = due(peer, Path(config.node.state_dir), self._wall())
            except LinkdError as error:
                events.emit("tls.expiring", peer=peer.name, detail=str(error))
                continue
            if ends is not None:
                self._renew(peer, ends)

    def _renew(self, peer: PeerSettings, ends: float) -> None:
        self._busy.add(peer.name)
        left = ends - self._wall()

        def done(fresh: float) -> None:
            events.emit(
                "tls.loaded",
                peer=peer.name,
                certificate=peer.certificate,
                expires_seconds=round(fresh - self._wall()),
                days=round((fresh - self._wall()) / 86_400, 1),
            )

        def failed(failure: object) -> None:
            events.emit(
                "tls.expiring",
                peer=peer.name,
                certificate=peer.certificate,
                expires_seconds=round(left),
                days=round(left / 86_400, 1),
                detail=f"it could not be renewed: {getattr(failure, 'value', failure)}",
            )

        def over(_: object) -> None:
            self._busy.discard(peer.name)

        self._in_thread(renew, peer).addCallbacks(done, failed).addBoth(over)
