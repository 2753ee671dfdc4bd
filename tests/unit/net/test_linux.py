"""What is asked of the kernel. Links and files come first; a shortage of descriptors is seen once,
and over once.
"""

from __future__ import annotations

import errno
import socket
from typing import Any

import pytest

from linkd.net.linux import (
    LEAST,
    TCP_USER_TIMEOUT,
    Descriptors,
    Shares,
    every_address,
    limit_segment,
    reset_at_exit,
    tune,
)


class Transport:
    """A transport with a socket."""

    def __init__(self, handle: object) -> None:
        self.handle = handle

    def getHandle(self) -> object:
        """Return the socket."""
        return self.handle


def test_all_addresses_are_of_both_families() -> None:
    assert every_address() == "::"


@pytest.mark.parametrize(
    ("number", "host"), [(errno.EAFNOSUPPORT, "0.0.0.0"), (errno.EMFILE, "::")]
)
def test_without_ipv6_they_are_those_of_ipv4(
    monkeypatch: pytest.MonkeyPatch, number: int, host: str
) -> None:
    def refuse(*_: object) -> socket.socket:
        raise OSError(number, "no")

    monkeypatch.setattr("socket.socket", refuse)
    assert every_address() == host


def test_segments_are_limited_before_a_connection_begins() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as small:
        limit_segment(Transport(small), 1200)
        small.connect(server.getsockname())
        accepted, _ = server.accept()
        with accepted:
            for end in (small, accepted):
                assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) <= 1200
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as usual:
        limit_segment(Transport(usual), 0)
        usual.connect(server.getsockname())
        assert usual.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) > 1200
    limit_segment(object(), 1200)


@pytest.mark.parametrize(
    ("limit", "probe_after", "idle", "interval"),
    [(10.0, None, 13, 4), (10.0, 3.0, 3, 1), (120.0, 36.0, 36, 12), (2.0, 0.6, 1, 1)],
)
def test_the_kernel_probes_a_silent_host_and_gives_up_behind_the_limit(
    limit: float, probe_after: float | None, idle: int, interval: int
) -> None:
    with socket.socket() as tcp:
        tune(Transport(tcp), limit, probe_after)

        def found(option: int) -> int:
            return tcp.getsockopt(socket.IPPROTO_TCP, option)

        assert tcp.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert (found(socket.TCP_KEEPIDLE), found(socket.TCP_KEEPINTVL)) == (idle, interval)
        assert found(TCP_USER_TIMEOUT) == (limit + 3.0) * 1000
        assert idle + found(socket.TCP_KEEPCNT) * interval > limit


@pytest.mark.parametrize("resets", [True, False])
def test_a_process_that_ends_resets_its_links_unless_they_were_closed(resets: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
        reset_at_exit(Transport(far))
        if not resets:
            reset_at_exit(Transport(far), resets=False)
        far.close()
        with near:
            if resets:
                with pytest.raises(ConnectionResetError):
                    near.recv(1)
            else:
                assert near.recv(1) == b""
    reset_at_exit(object())


class Process:
    """A process with a limit, and how many of its descriptors are in use."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, limit: int, used: int) -> None:
        self.used = used
        self.limit = limit
        self.broken: int | None = None
        self.lines: list[tuple[str, dict[str, Any]]] = []
        self.warnings: dict[str, str] = {}
        monkeypatch.setattr(
            "linkd.net.linux.emit", lambda event, **fields: self.lines.append((event, fields))
        )
        self.descriptors = Descriptors(limit, self.warnings, self.lowest_free)

    def lowest_free(self) -> int:
        if self.broken is not None or self.used >= self.limit:
            raise OSError(self.broken or errno.EMFILE, "Too many open files")
        return self.used


def test_links_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, used, peers in ((64, 24, 1), (1024, 30, 400), (65_536, 40, 10_000)):
        process = Process(monkeypatch, limit, used)
        process.descriptors.started()
        shares = process.descriptors.divide(peers)
        left = limit - used - peers - sum(shares)
        assert left >= (limit - used - peers) // 4
        assert shares.api > shares.newcomers


def test_there_are_always_some(monkeypatch: pytest.MonkeyPatch) -> None:
    process = Process(monkeypatch, 20, 24)
    process.descriptors.started()
    assert process.descriptors.divide(1000) == Shares(LEAST, LEAST)


def test_a_shortage_is_logged_once_and_counted_and_stands_until_it_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    process = Process(monkeypatch, 64, 24)
    look = process.descriptors.look
    look()
    assert process.lines == []
    for process.used in (55, 56, 64, 60, 52):
        look()
    assert [event for event, _ in process.lines] == ["node.descriptors-short"]
    assert process.descriptors.shortages == 1
    assert "of 64 descriptors" in process.warnings["descriptors"]
    process.used = 40
    look()
    assert [event for event, _ in process.lines][1:] == ["node.descriptors-enough"]
    assert process.warnings == {}
    process.broken = errno.ENFILE
    look()
    assert process.descriptors.shortages == 2


def test_the_real_ones_can_be_asked() -> None:
    descriptors = Descriptors(1 << 20, {})
    descriptors.started()
    descriptors.look()
    assert descriptors.shortages == 0
