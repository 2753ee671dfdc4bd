"""The certificates of a drill: what the hub shows, and when it ends. A throw-away pair's
directory: held by the living, removed after the dead.
"""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from linkd.drill.testbed import DrillAuthority, hold, remove_leftovers
from linkd.net.certificates import load_certificates, load_key_pair


def verify(authority: DrillAuthority, leaf: x509.Certificate, address: str, after: float) -> None:
    """Verify the hub's certificate as the edge will so many seconds from now."""
    store = Store(load_certificates(authority.file))
    builder = PolicyBuilder().store(store).time(datetime.now(UTC) + timedelta(seconds=after))
    builder.build_server_verifier(x509.IPAddress(ip_address(address))).verify(leaf, [])


def test_the_hub_s_certificate_ends_when_it_was_asked_to(tmp_path: Path) -> None:
    authority = DrillAuthority(tmp_path)
    leaf = load_key_pair(*authority.issue("192.0.2.7", 8.0)).leaf
    verify(authority, leaf, "192.0.2.7", -300.0)
    verify(authority, leaf, "192.0.2.7", 4.0)
    with pytest.raises(VerificationError):
        verify(authority, leaf, "192.0.2.7", 9.0)
    with pytest.raises(VerificationError):
        verify(authority, leaf, "192.0.2.8", 4.0)


def test_a_new_one_replaces_the_old_and_its_key_stays_closed(tmp_path: Path) -> None:
    authority = DrillAuthority(tmp_path)
    first = load_key_pair(*authority.issue("192.0.2.7", 8.0))
    files = authority.issue("192.0.2.7", 3600.0)
    second = load_key_pair(*files)
    assert files == (tmp_path / "hub.crt", tmp_path / "hub.key")
    assert second.leaf.public_key() != first.leaf.public_key()
    assert files[1].stat().st_mode & 0o777 == 0o600
    verify(authority, second.leaf, "192.0.2.7", 3000.0)


def test_what_dead_drills_have_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    living, dead, other = (tmp_path / name for name in ("linkd-drill-a", "linkd-drill-b", "c"))
    for directory in (living, dead, other):
        directory.mkdir()
        (directory / "log").write_text("x")
    (tmp_path / "linkd-drill-link").symlink_to(other)
    held = hold(living)
    remove_leftovers(tmp_path, time.time())
    assert dead.exists()
    remove_leftovers(tmp_path, time.time() + 61.0)
    assert not dead.exists()
    assert (living / "log").exists()
    assert (other / "log").exists()
    os.close(held)
    remove_leftovers(tmp_path, time.time() + 61.0)
    assert not living.exists()
