"""The relay: it swallows bytes and lets them pass again, and closes nothing."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from linkd.drill.testbed import Relay


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(5.0)
        yield listening


@pytest.fixture
def relay(server: socket.socket) -> Iterator[Relay]:
    with Relay(server.getsockname()) as running:
        yield running


def joined(relay: Relay, server: socket.socket) -> tuple[socket.socket, socket.socket]:
    near = socket.create_connection(("127.0.0.1", relay.port), 5.0)
    far, _ = server.accept()
    far.settimeout(5.0)
    return near, far


def silent(sock: socket.socket, seconds: float = 0.3) -> bool:
    sock.settimeout(seconds)
    try:
        return not sock.recv(100) and False
    except TimeoutError:
        return True
    finally:
        sock.settimeout(5.0)


def test_it_forwards_both_ways(relay: Relay, server: socket.socket) -> None:
    near, far = joined(relay, server)
    with near, far:
        near.sendall(b"there")
        assert far.recv(100) == b"there"
        far.sendall(b"back")
        assert near.recv(100) == b"back"


def test_a_black_hole_heals_on_the_same_connection(relay: Relay, server: socket.socket) -> None:
    near, far = joined(relay, server)
    with near, far:
        relay.block("both")
        near.sendall(b"lost?")
        far.sendall(b"and this?")
        assert silent(far)
        assert silent(near)
        relay.heal()
        assert far.recv(100) == b"lost?"
        assert near.recv(100) == b"and this?"


def test_one_way_is_one_way(relay: Relay, server: socket.socket) -> None:
    near, far = joined(relay, server)
    with near, far:
        relay.block("down")
        near.sendall(b"up")
        far.sendall(b"down")
        assert far.recv(100) == b"up"
        assert silent(near)


def test_a_close_does_not_pass_a_black_hole(relay: Relay, server: socket.socket) -> None:
    near, far = joined(relay, server)
    with near, far:
        relay.block("both")
        near.close()
        assert silent(far)
        relay.heal()
        assert far.recv(100) == b""


def test_a_connection_made_in_a_black_hole_waits_for_its_end(
    relay: Relay, server: socket.socket
) -> None:
    relay.block("both")
    with socket.create_connection(("127.0.0.1", relay.port), 5.0) as near:
        near.sendall(b"early")
        server.settimeout(0.3)
        with pytest.raises(TimeoutError):
            server.accept()
        server.settimeout(5.0)
        relay.heal()
        far, _ = server.accept()
        with far:
            assert far.recv(100) == b"early"


def test_a_reset_is_a_reset_at_both_ends_and_new_ones_are_refused(
    relay: Relay, server: socket.socket
) -> None:
    near, far = joined(relay, server)
    with near, far:
        relay.reject()
        for sock in (near, far):
            with pytest.raises(ConnectionResetError):
                sock.recv(100)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", relay.port), 5.0)
        relay.heal()
        for sock in joined(relay, server):
            sock.close()


def test_it_can_be_slow(relay: Relay, server: socket.socket) -> None:
    near, far = joined(relay, server)
    with near, far:
        relay.slow(1000.0)
        began = time.monotonic()
        near.sendall(bytes(2000))
        came = 0
        while came < 2000:
            came += len(far.recv(4000))
        assert 1.5 < time.monotonic() - began < 5.0  # two seconds, in one piece or in many


def test_its_end_ends_the_connections(server: socket.socket) -> None:
    with Relay(server.getsockname()) as relay:
        near, far = joined(relay, server)
    with near, far:
        assert far.recv(100) == b""


def test_it_closes_new_connections_at_once_and_counts_what_it_accepts_and_passes(
    relay: Relay, server: socket.socket
) -> None:
    near, far = joined(relay, server)
    with near, far:
        near.sendall(b"there")
        assert far.recv(100) == b"there"
        relay.order(closing=True)
        with socket.create_connection(("127.0.0.1", relay.port), 5.0) as refused:
            assert refused.recv(100) == b""
        answer = relay.order()
        assert answer["passed"] == 5
        assert len(answer["accepted"]) == 2
        assert answer["accepted"] == sorted(answer["accepted"])
    relay.heal()
    for sock in joined(relay, server):
        sock.close()
