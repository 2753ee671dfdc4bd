"""A listener and a dialer greet each other over loopback."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as global_reactor

from linkd.config import PeerSettings
from linkd.net.dialer import DialerContext, LinkDialer
from linkd.net.linux import TCP_USER_TIMEOUT
from linkd.net.listener import Listener
from linkd.protocol.peer import Ack, Goodbye, encode
from tests.support.net_lab import Link, Nodes, secret_file, settings, threaded_resolver

reactor: Any = global_reactor


class Two:
    """A hub that listens and an edge that dials."""

    def __init__(self, directory: Path) -> None:
        self.secret = secret_file(directory)
        self.at_hub = Link("hub", "edge", 5.0)
        self.at_edge = Link("edge", "hub")
        peer = PeerSettings(name="edge", secret_file=self.secret)
        self.nodes = Nodes("hub", {"edge": (peer, self.at_hub)})
        self.listener = Listener(self.nodes, settings(), reactor)
        self.listener.start()
        self.dialers: list[LinkDialer] = []

    def dialer(self, *urls: str, secret: str | None = None) -> LinkDialer:
        """Return a dialer of the hub, or of other URLs."""
        address = f"ws://127.0.0.1:{self.listener.port_number}/link"
        peer = PeerSettings(name="hub", dial=urls or (address,), secret_file=secret or self.secret)
        origin = DialerContext("edge", "boot-1", reactor, threaded_resolver(reactor))
        dialer = LinkDialer(self.at_edge, peer, origin, 2.0)
        self.dialers.append(dialer)
        return dialer

    def end(self) -> Any:
        """End all of it."""
        for dialer in self.dialers:
            dialer.stop()
        for link in (self.at_hub, self.at_edge):
            for connection in link.connections:
                connection.abort("stopped", "the test is over")
        return self.listener.stop()


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Two]:
    """Return both, ended behind the test."""
    both = Two(tmp_path)
    yield both
    pytest_twisted.blockon(both.end())


def _lingers(found: Any) -> bool:
    """Return whether a connection is reset where its process ends."""
    set_to = found.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)
    return bool(set_to[0])


@pytest_twisted.ensureDeferred
async def test_they_greet_talk_and_part(two: Two) -> None:
    dialer = two.dialer()
    dialer.dial(0.0)
    await two.at_edge.until("greeted", reactor)
    near, far = two.at_edge.connections[0], two.at_hub.connections[0]
    assert near.generation == far.generation
    assert near.address == f"127.0.0.1:{two.listener.port_number}"
    assert two.at_edge.told == ["attempting", "attempting", "opening", "greeted"]
    assert dialer.deadline is None
    assert dialer.attempts == 0

    near.send(encode(Ack(7)))
    await two.at_hub.until("received", reactor)
    far.send(encode(Ack(8)))
    await two.at_edge.until("received", reactor)
    assert two.at_hub.messages == [Ack(7)]
    assert two.at_edge.messages == [Ack(8)]
    assert near.rtt_seconds is not None
    assert near.rtt_seconds < 1.0

    probes, resets = near.transport.getHandle(), far.transport.getHandle()
    assert probes.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 3
    assert probes.getsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT) > 10_000
    assert _lingers(resets)
    assert not _lingers(probes)
    far.goodbye(Goodbye("stopped", "the hub is restarted", 3.0))
    assert not _lingers(resets)
    await two.at_edge.until("lost", reactor)
    reason, detail, goodbye = two.at_edge.losses[0]
    assert reason == "stopped"
    assert "the hub is restarted" in detail
    assert goodbye is not None
    assert goodbye.retry_after == 3.0
    if not two.at_hub.losses:
        await two.at_hub.until("lost", reactor)
    assert two.at_hub.losses[0][0] == "stopped"
