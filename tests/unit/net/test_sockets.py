"""What is asked of the kernel."""

from __future__ import annotations

import errno
import socket

import pytest

from linkd.net.linux import every_address, limit_segment


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
    class Transport:
        def __init__(self, handle: object) -> None:
            self.handle = handle

        def getHandle(self) -> object:
            return self.handle

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
