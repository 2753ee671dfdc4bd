"""A listener and dialers on loopback, with links that only write down what they are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet import threads
from twisted.internet.defer import Deferred

from linkd.config import (
    Config,
    HeartbeatSettings,
    LimitSettings,
    ListenSettings,
    NodeSettings,
    PeerSettings,
    ReconnectSettings,
)
from linkd.errors import AttemptFailed, Reason
from linkd.net.connect import Resolver, look_up
from linkd.net.connection import Connection
from linkd.protocol import peer as wire
from linkd.protocol.peer import EpochStart, Generation, Goodbye, Hello, Message

SECRET = "a secret of more than thirty-two characters"


def greeting(node: str, generation: Generation, interval: float = 0.0, **changes: Any) -> Hello:
    """Return a hello of an empty node."""
    fields: dict[str, Any] = {
        "version": wire.VERSION,
        "node": node,
        "software": "linkd test",
        "generation": generation,
        "log": f"log-of-{node}",
        "epochs": (EpochStart("epoch", 1),),
        "next": 1,
        "cursor": None,
        "wants": (),
        "ping_interval": interval,
    }
    return Hello(**{**fields, **changes})


class Link:
    """A link that writes down what it is told; `linkd.net.connection.LinkPort`.

    Attributes:
        told: Names of what was called, in order.
        answers: It answers a dialer's hello.
    """

    def __init__(self, node: str, peer: str, interval: float = 0.0) -> None:
        self.node = node
        self.peer = peer
        self.interval = interval
        self.answers = True
        self.told: list[str] = []
        self.connections: list[Any] = []
        self.messages: list[Message] = []
        self.failures: list[AttemptFailed] = []
        self.losses: list[tuple[Reason, str, Goodbye | None]] = []
        self.refusals: list[tuple[Reason, str]] = []
        self.addresses: list[str | None] = []
        self.redial: Any = None
        self._waiting: list[tuple[str, Deferred[None]]] = []

    def hello(self, generation: Generation) -> Hello:
        """Return what a node without records says."""
        return greeting(self.node, generation, self.interval)

    def greeted(self, connection: Connection, hello: Hello) -> None:
        """Remember the connection; answer on the listening end."""
        self.connections.append(connection)
        if not connection.dialed and self.answers:
            connection.answer(self.hello(hello.generation))  # type: ignore[attr-defined]
        self._tell("greeted")

    def received(self, connection: Connection, message: Message) -> None:
        """Remember the message."""
        self.messages.append(message)
        self._tell("received")

    def writable(self, connection: Connection) -> None:
        """Say so."""
        self._tell("writable")

    def lost(
        self, connection: Connection, reason: Reason, detail: str, goodbye: Goodbye | None
    ) -> None:
        """Remember why."""
        self.losses.append((reason, detail, goodbye))
        self._tell("lost")

    def attempting(self, url: str, address: str | None) -> None:
        """Remember where to."""
        self.addresses.append(address)
        self._tell("attempting")

    def opening(self) -> None:
        """Say so."""
        self._tell("opening")

    def failed(self, failure: AttemptFailed) -> None:
        """Remember why, and redial if told to."""
        self.failures.append(failure)
        if self.redial is not None:
            self.redial(failure)
        self._tell("failed")

    def turned_away(self, reason: Reason, detail: str) -> None:
        """Remember why."""
        self.refusals.append((reason, detail))

    def _tell(self, what: str) -> None:
        self.told.append(what)
        for entry in [each for each in self._waiting if each[0] == what]:
            self._waiting.remove(entry)
            entry[1].callback(None)

    def until(self, what: str, reactor: Any, seconds: float = 5.0) -> Deferred[None]:
        """Return a Deferred that fires when `what` is told next; fails after `seconds`."""
        waiter: Deferred[None] = Deferred()
        self._waiting.append((what, waiter))
        return waiter.addTimeout(seconds, reactor)


class Nodes:
    """What a listener needs of a node."""

    def __init__(self, name: str, peers: dict[str, tuple[PeerSettings, Link]]) -> None:
        self.name = name
        self.peers = peers
        self.busy_seconds: float | None = None
        self.strangers: list[tuple[str | None, Reason, str]] = []

    def peer(self, name: str) -> PeerSettings | None:
        """Return the configured peer."""
        return self.peers[name][0] if name in self.peers else None

    def link(self, name: str) -> Link | None:
        """Return the link."""
        return self.peers[name][1] if name in self.peers else None

    def busy(self) -> float | None:
        """Say when to come back."""
        return self.busy_seconds

    def refused(self, claimed: str | None, address: str, reason: Reason, detail: str) -> None:
        """Remember it."""
        self.strangers.append((claimed, reason, detail))


def secret_file(directory: Path, text: str = SECRET) -> str:
    """Write a secret where only its owner reads it; return its path."""
    path = directory / "secret"
    path.write_text(text + "\n")
    path.chmod(0o600)
    return str(path)


def settings(
    name: str = "hub", address: str = "127.0.0.1:0", listed: tuple[str, ...] = (), **limits: Any
) -> Config:
    """Return a configuration of a node that listens on loopback, behind `listed` balancers."""
    return Config(
        node=NodeSettings(name=name),
        listen=ListenSettings(address=address, insecure=True, proxy_protocol=listed),
        heartbeat=HeartbeatSettings(),
        reconnect=ReconnectSettings(),
        limits=LimitSettings(**{"handshakes_per_second_per_address": 1000.0, **limits}),
    )


def threaded_resolver(reactor: Any) -> Resolver:
    """Return a resolver that asks the system."""
    return Resolver(reactor, lambda host: threads.deferToThread(look_up, host))
