"""A name with several addresses: the link is up in time where any of them is good."""

from __future__ import annotations

from pathlib import Path

from tests.support.hosts import Hosts, address


def test_a_silent_first_address_is_passed_over(tmp_path: Path) -> None:
    hosts = Hosts(tmp_path, ["silent", "good"])
    hosts.dialer.dial(0.0)
    took = hosts.run(10.0, until="greeted")
    assert hosts.link.connections, hosts.link.failures
    assert took < 0.4
    assert hosts.dialed == [address(0), address(1)]
