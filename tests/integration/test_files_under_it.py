"""Files that change or vanish under a daemon that runs, and a clock that is wrong."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from linkd.drill.testbed import SteppedClock, free_port
from linkd.net.certificates import load_certificates
from tests.support.daemon import Daemon, listen, peer
from tests.support.needs import need
from tests.support.pairing_hosts import HUB, command, invite


@pytest.fixture
def hub() -> Iterator[Daemon]:
    made = Daemon("hub", HUB.replace("9443", str(free_port())))
    yield made
    made.close()


def warnings(daemon: Daemon, present: bool, within: float = 10.0) -> list[str]:
    """Wait until there is a standing warning, or none; return them."""
    end = time.monotonic() + within
    while True:
        found: list[str] = daemon.call("GET", "/v1/status").get("warnings", [])
        if bool(found) == present:
            return found
        assert time.monotonic() < end, found
        time.sleep(0.1)


def check(daemon: Daemon) -> tuple[int, str]:
    done = command(daemon, "status", "--check")
    return done.returncode, done.stdout


def test_a_key_that_can_no_longer_be_used_is_a_standing_warning(hub: Daemon) -> None:
    hub.start()
    key = hub.directory / "state/pairing/hub.key"
    kept = key.read_bytes()
    assert check(hub)[0] == 0
    key.write_text("not a key")
    (warning,) = warnings(hub, present=True)
    assert warning.startswith(f"listen.certificate: {key}: expected an unencrypted private key")
    code, line = check(hub)
    assert code == 1
    assert "listen.certificate" in line
    key.write_bytes(kept)
    assert warnings(hub, present=False) == []
    assert len(list(hub.matching(event="tls.reload-failed"))) == 1
    assert check(hub)[0] == 0


def test_the_socket_file_is_made_again_within_a_second(hub: Daemon) -> None:
    hub.start()
    hub.socket.unlink()
    removed = time.monotonic()
    hub.wait_line(5.0, after=removed, event="api.socket-lost")
    assert hub.call("GET", "/v1/status")["node"] == "hub"
    assert hub.stop() == 0
    assert not hub.socket.exists()


def test_a_hub_born_in_1970_founds_its_authority_once_the_clock_is_right(
    hub: Daemon, tmp_path: Path
) -> None:
    need("libfaketime")
    clock = SteppedClock(tmp_path)
    clock.step(-1_790_000_000.0)
    hub.environment.update(clock.environment)
    hub.start(ready_within=None)
    assert hub.wait(20.0) == 1
    assert "shows 1970-" in hub.tail()
    assert "before this version of linkd was made" in hub.tail()
    clock.step(0.0)
    hub.start()
    (founded,) = load_certificates(hub.directory / "state/pairing/ca.crt")
    assert founded.not_valid_before_utc.year > 2025
    assert invite(hub, "edge", "--address", "127.0.0.1")
    clock.step(-1_790_000_000.0)
    refused = command(hub, "invite", "edge", "--address", "127.0.0.1")
    assert refused.returncode == 4
    assert "ca.crt: this authority is valid from" in refused.stderr
    assert "clock shows 1970-" in refused.stderr


def test_a_secret_that_vanishes_is_a_standing_warning_before_a_restart_needs_it() -> None:
    edge = Daemon("hub", listen(free_port()) + peer("edge"))
    edge.program = (
        "-c",
        "from linkd import app as assembly; assembly.FILES_SECONDS = 0.2\n"
        "from linkd.cli import main; raise SystemExit(main())",
    )
    with edge:
        secret = edge.directory / "secret"
        kept = secret.rename(edge.directory / "moved")
        (warning,) = warnings(edge, present=True)
        assert warning.startswith("peer (edge).secret_file: ")
        kept.rename(secret)
        assert warnings(edge, present=False) == []
