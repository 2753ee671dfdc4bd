"""From which addresses peers were greeted: bounded, kept over restarts, forgotten after 30 days."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from linkd.net.admission import FILE, KEPT_SECONDS, GreetedAddresses


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Return what is logged."""
    found: list[tuple[str, Any]] = []
    monkeypatch.setattr(
        "linkd.net.admission.emit", lambda event, **fields: found.append((event, fields["detail"]))
    )
    return found


def written(path: Path, *greetings: tuple[str, str, float], now: float = 100.0) -> GreetedAddresses:
    """Return a table with these greetings; its file is written at `now`."""
    table = GreetedAddresses(path, 0.0)
    for peer, address, at in greetings:
        table.greeted(peer, address, at)
    content = table.to_write(now)
    assert content is not None
    table.write(content)
    return table


def test_peers_are_counted_by_address_and_by_net() -> None:
    table = GreetedAddresses()
    assert not table
    for peer in ("a", "b", "a"):
        table.greeted(peer, "2001:db8::1", 1.0)
    table.greeted("c", "2001:db8::2", 1.0)
    table.greeted("c", "::ffff:192.0.2.1", 2.0)
    assert table.peers_at("2001:db8::/64") == 3
    assert table.peers_at("192.0.2.1") == 1
    assert table.peers_at("192.0.2.2") == 0
    assert table


def test_the_two_newest_addresses_of_a_peer_are_kept() -> None:
    table = GreetedAddresses()
    for at, address in enumerate(("192.0.2.1", "192.0.2.2", "192.0.2.1", "192.0.2.3")):
        table.greeted("a", address, float(at))
    assert [table.peers_at(f"192.0.2.{number}") for number in (1, 2, 3)] == [1, 0, 1]
    table.retain({"b"})
    assert not table


def test_a_restart_keeps_them_and_the_time_off_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / FILE
    written(path, ("a", "192.0.2.1", 50.0), ("b", "2001:db8::1", 60.0))
    table = GreetedAddresses(path, 5_000_000.0)
    assert table.peers_at("192.0.2.1") == 1
    assert table.peers_at("2001:db8::/64") == 1
    assert path.stat().st_mode & 0o077 == 0
    table.greeted("c", "192.0.2.1", 5_000_000.0 + KEPT_SECONDS - 60.0)
    content = table.to_write(5_000_000.0 + KEPT_SECONDS - 30.0)
    assert content is not None
    assert table.peers_at("2001:db8::/64") == 0 < table.peers_at("192.0.2.1")


def test_it_is_written_soon_where_an_address_is_new_and_hourly_else(tmp_path: Path) -> None:
    table = GreetedAddresses(tmp_path / FILE, 0.0)
    assert table.to_write(10_000.0) is None
    table.greeted("a", "192.0.2.1", 10_000.0)
    assert table.to_write(10_000.1) is not None
    table.greeted("a", "192.0.2.1", 10_001.0)
    assert table.to_write(10_002.0) is None
    assert table.to_write(13_700.0) is not None
    for number in range(5000):
        table.greeted(f"p{number}", f"198.51.{number // 250}.{number % 250}", 13_701.0)
    assert table.to_write(13_702.0) is None
    assert table.to_write(13_706.0) is not None


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"{}"])
def test_a_damaged_file_is_logged_and_nothing_is_known(
    tmp_path: Path, content: bytes, lines: list[tuple[str, Any]]
) -> None:
    path = tmp_path / FILE
    path.write_bytes(content)
    assert not GreetedAddresses(path, 0.0)
    assert [event for event, _ in lines] == ["listener.addresses-lost"]


def test_a_file_of_another_version_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / FILE
    table = written(path, ("a", "192.0.2.1", 50.0))
    table.write(b'{"version":2,"peers":{}}')
    assert not GreetedAddresses(path, 0.0)


@pytest.mark.parametrize(("number", "logged"), [(errno.ENOSPC, 0), (errno.EACCES, 1)])
def test_a_disk_that_refuses_is_tried_again_a_minute_later(
    tmp_path: Path, lines: list[tuple[str, Any]], number: int, logged: int
) -> None:
    table = written(tmp_path / FILE, ("a", "192.0.2.1", 50.0), now=100.0)
    table.not_written(OSError(number, "no"))
    assert len(lines) == logged
    assert table.to_write(159.0) is None
    assert table.to_write(161.0) is not None
    assert table.to_write(300.0) is None


def test_without_a_file_nothing_is_written() -> None:
    GreetedAddresses(None, 0.0).write(b"{}")
