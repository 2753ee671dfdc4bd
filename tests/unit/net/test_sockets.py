"""What is asked of the kernel."""

from __future__ import annotations

import errno
import socket

import pytest

from linkd.net.sockets import every_address


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
