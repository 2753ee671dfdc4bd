"""Drain a node: refuse new links, end the existing ones, and wait until they are gone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from twisted.internet.base import DelayedCall

from linkd.net.timers import cancel
from linkd.node.link_driver import LinkDriver
from linkd.status import DrainStatus

if TYPE_CHECKING:
    from linkd.node.node import Node

POLL_SECONDS: Final = 0.02

MAX_BUSY_SECONDS: Final = 10.0
"""The longest Retry-After of a draining node, so that peers return soon after an undo."""

BUSY_SHARE: Final = 0.25
"""Retry-After as a share of the time that the drain has lasted: a long drain costs few attempts."""

_WARNING = "drain"


class Drain:
    """The drain of one node: an operator begins and undoes it; it does not outlive the process.

    All links end in one moment, once the peers have acknowledged what they were owed when the drain
    began and have received our acknowledgements, or after a time limit. So an upgrade that follows
    keeps each link away for as short a time as possible.

    Args:
        node: The node.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._clock = node.clock
        self._began: float | None = None
        self._deadline = 0.0
        self._retry_after = 0.0
        self._unsettled: dict[LinkDriver, tuple[int, int]] = {}
        self._has_ended_links = False
        self._took: float | None = None  # until all connections were closed
        self._timer: DelayedCall | None = None

    @property
    def active(self) -> bool:
        """Whether the node drains, or has drained."""
        return self._began is not None

    def busy(self) -> float | None:
        """Return after how many seconds a dialer should come back; None: the node takes links."""
        if self._began is None:
            return None
        lasted = self._clock.seconds() - self._began
        return max(self._retry_after, min(BUSY_SHARE * lasted, MAX_BUSY_SECONDS))

    def begin(self, timeout: float, retry_after: float) -> None:
        """Begin to drain; if the node drains already, set the time limit again.

        Args:
            timeout: Seconds to wait for acknowledgements before the links end.
            retry_after: Seconds after which the peers should come back.
        """
        now = self._clock.seconds()
        self._deadline = now + timeout
        self._retry_after = retry_after
        if self._began is not None:
            return
        self._began = now
        self._took = None
        node = self._node
        node.warnings[_WARNING] = (
            "this node is draining and takes no links: run `linkd drain --undo`, or restart it"
        )
        drivers = node.links.drivers.values()
        self._unsettled = {
            driver: (node.log.next, driver.replicator.session.inbound.received or 0)
            for driver in drivers
            if driver.connection is not None
        }
        node.log_event(
            "warn",
            "node.drain-started",
            links=len(self._unsettled),
            detail=f"no new links; links end once acknowledged, within {timeout:g} s",
        )
        self._poll()

    def undo(self) -> None:
        """Take links again, and start dialing; nothing happens if the node does not drain."""
        if self._began is None:
            return
        cancel(self._timer)
        self._began = None
        self._unsettled = {}
        self._has_ended_links = False
        self._node.warnings.pop(_WARNING, None)
        self._node.log_event("info", "node.drain-undone", detail="links are taken again")
        for driver in tuple(self._node.links.drivers.values()):
            if driver.link.state == "stopped":  # by the drain, or added by a reload meanwhile
                driver.start()

    def stop(self) -> None:
        """Stop polling: the node stops."""
        cancel(self._timer)

    def status(self) -> DrainStatus:
        """Return how far the drain is."""
        drivers = self._node.links.drivers.values()
        connected = [driver for driver in drivers if driver.is_connected]
        began = self._began
        return DrainStatus(
            draining=began is not None,
            done=self._took is not None and began is not None,
            seconds=None if began is None else self._took or self._clock.seconds() - began,
            links=len(connected),
            unacknowledged=sum(not self._is_settled(driver) for driver in self._unsettled),
            owed_records=sum(driver.replicator.session.outbound.owed_records for driver in drivers),
        )

    def _poll(self) -> None:
        """End the links once all are settled or the time is up; then wait until they are gone."""
        self._timer = None
        assert self._began is not None  # `undo` cancels the timer
        now = self._clock.seconds()
        if not self._has_ended_links:
            for driver in [driver for driver in self._unsettled if self._is_settled(driver)]:
                del self._unsettled[driver]
            if not self._unsettled or now >= self._deadline:
                self._end_links()
        if self._has_ended_links and not self._is_connected():
            self._took = now - self._began
            self._node.log_event(
                "info",
                "node.drained",
                drain_seconds=round(self._took, 3),
                detail="all links have ended; dialers get 503 with Retry-After",
            )
            return
        self._timer = self._clock.callLater(POLL_SECONDS, self._poll)

    def _is_settled(self, driver: LinkDriver) -> bool:
        """Return whether both ends have acknowledged what was owed when the drain began."""
        if driver.connection is None or driver.link.state == "diverged":
            return True  # a diverged link acknowledges nothing
        sent, received = self._unsettled[driver]
        session = driver.replicator.session
        outbound, inbound = session.outbound, session.inbound
        is_acked = outbound.acked >= sent or not outbound.owed_records
        return is_acked and inbound.committed >= received

    def _is_connected(self) -> bool:
        return any(driver.is_connected for driver in self._node.links.drivers.values())

    def _end_links(self) -> None:
        self._has_ended_links = True
        self._unsettled = {}
        detail = f"{self._node.name} is draining, for a restart or for maintenance"
        for driver in tuple(self._node.links.drivers.values()):
            driver.stop(detail, self._retry_after)
