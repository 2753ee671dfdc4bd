"""The base of the API's WebSocket sessions: callbacks of the socket, and changes of links."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from linkd.api.auth import Caller
from linkd.status import Event, LinkStatus

if TYPE_CHECKING:
    from linkd.api.server import ApiServer
    from linkd.api.websocket import ApiWebSocket


class ClientSession:
    """The session of one WebSocket, which calls it; by itself it ignores everything.

    Args:
        api: The API.
        caller: The caller at the other end.
        socket: The WebSocket.

    Attributes:
        caller: The caller, with its rights as of now.
        busy: A received message is still being processed.
        is_full: A publish was refused for lack of room, and most of those before it still wait for
            the disk.
    """

    def __init__(self, api: ApiServer, caller: Caller, socket: ApiWebSocket) -> None:
        self.api = api
        self.caller = caller
        self.socket = socket
        self.busy = self.is_full = False
        self._unwatch: Callable[[], None] | None = None
        self._changed_links: dict[str, str] = {}  # and the newest event of each
        self._status_due = False  # the status of links is to be sent soon

    # called by the socket

    def opened(self) -> None:
        """The WebSocket is open."""

    def message(self, payload: bytes, binary: bool) -> None:
        """Process a message, or a slice of it: `busy` is set if more remains."""

    def go_on(self) -> None:
        """Process the received message for a slice; `busy` is set if more remains."""

    def on_read_end(self) -> None:
        """All messages that arrived together were passed to `message`."""

    def receiving(self) -> None:
        """A message is arriving; called every second."""

    def on_writable(self) -> None:
        """There is room to send again."""

    def allow(self, caller: Caller) -> None:
        """Apply the caller's new rights: end what they no longer cover."""

    def closed(self) -> None:
        """Release everything: the WebSocket has ended."""
        if self._unwatch is not None:
            self._unwatch()
            self._unwatch = None

    # links

    def watch_links(self) -> None:
        """Call `send_links` with each link that changes from now on."""
        if self._unwatch is not None:
            return
        node = self.api.node
        ends = [node.events.follow(self._on_event)]
        if node.instances is not None:
            ends.append(node.instances.follow(self._on_link))

        def unwatch() -> None:
            for end in ends:
                end()

        self._unwatch = unwatch

    def send_links_soon(self) -> None:
        """Call `send_links` in the caller's turn."""
        if not self._status_due:
            self._status_due = True
            self.api.share.queue(self._send_changed_links, self.caller.name)

    def send_links(self, changed: Iterable[tuple[LinkStatus, str]]) -> None:
        """Send the status of links that have changed, each with its newest event."""

    def _on_event(self, event: Event) -> None:
        if event.peer is not None:
            self._on_link(event.peer, event.event)

    def _on_link(self, peer: str, event: str) -> None:
        self._changed_links[peer] = event
        self.send_links_soon()

    def _send_changed_links(self) -> None:
        """Pass on the changed links, unless the client does not read: then once it does."""
        self._status_due = False
        if self._unwatch is None or self.socket.paused:
            return
        changed, self._changed_links = self._changed_links, {}
        links = ((self.api.node.link_status(peer), event) for peer, event in changed.items())
        self.send_links([(link, event) for link, event in links if link is not None])
