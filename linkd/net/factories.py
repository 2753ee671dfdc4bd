"""What connections need of the factories that make them: a listener, or a dialer."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from linkd.config import Config
from linkd.core.wire import Generation, Hello
from linkd.errors import Reason
from linkd.events import Level
from linkd.net.admission import Admission
from linkd.net.identity import Nonces
from linkd.net.ports import LinkPort, Nodes
from linkd.net.timers import Clock, ExactTimer
from linkd.net.tls import ServerTls

Made_contra = TypeVar("Made_contra", contravariant=True)
"""The connections that a factory makes."""

Post = Callable[[bytes, str], Deferred[tuple[int, bytes]]]
"""Answers a POST ahead of any upgrade: body and address in, status and JSON out."""


class FactoryPort(Protocol):
    """A factory, as both kinds of connections see it.

    Attributes:
        clock: What its connections live by.
        first_limit: Seconds of silence that end a connection before its hello.
    """

    clock: Clock
    first_limit: float


class ListenerPort(FactoryPort, Protocol[Made_contra]):
    """A listener, as the connections see it that it has accepted.

    Attributes:
        config: What is in force.
        nodes: The node whose peers dial.
        tls: The listener's side of TLS, None without.
        posts: Other paths to which may be posted.
        nonces: Those given out.
        random: Spreads the first pings.
        admission: Who may come in.
    """

    config: Config
    nodes: Nodes
    tls: ServerTls | None
    posts: dict[str, Post]
    nonces: Nonces
    random: Random
    admission: Admission
    _batched_timer: ExactTimer

    def refused(
        self,
        connection: Made_contra,
        reason: Reason,
        detail: str,
        claimed: str | None,
        close_code: int | None,
    ) -> None:
        """Count a connection that was closed before it was greeted, and say so."""

    def tell(self, level: Level, event: str, **fields: str | int | float | None) -> None:
        """Say something in the log."""


class DialerPort(FactoryPort, Protocol[Made_contra]):
    """A dialer, as the connections see it that it has dialed.

    Attributes:
        node: This node's name.
        port: The link.
    """

    node: str
    port: LinkPort

    def next_generation(self) -> Generation:
        """Return the generation of a new connection."""

    def greeted(self, connection: Made_contra, hello: Hello) -> None:
        """The peer has said hello on a connection, and has proved who it is."""

    def ended_early(self, connection: Made_contra, reason: Failure) -> None:
        """A connection has ended before its hello."""
