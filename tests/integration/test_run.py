"""`linkd run` as a process: READY, reload, kick, kill, a second daemon, the end."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from linkd.drill.testbed import free_port
from tests.support.daemon import Daemon, listen, peer


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def hub(port: int) -> Iterator[Daemon]:
    with Daemon("hub", listen(port, "127.0.0.1") + peer("edge")) as daemon:
        yield daemon


def second(daemon: Daemon, config: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run another daemon with the same files, or with another text in them."""
    file = daemon.config_file
    if config is not None:
        file = daemon.directory / "second.toml"
        file.write_text(config)
    return subprocess.run(
        [sys.executable, "-m", "linkd", "run", "-c", str(file)],
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_ready_when_the_sockets_listen(hub: Daemon, port: int) -> None:
    socket.create_connection(("127.0.0.1", port), 2).close()
    assert hub.status()["node"] == "hub"
    said = [line for _, line in hub.notices]
    assert said[0] == "READY=1"
    hub.wait_notice("STATUS=links: 0 up, 1 down (edge)", 5)


def test_a_clean_end_is_quick_and_leaves_no_socket(hub: Daemon) -> None:
    began = time.monotonic()
    assert hub.stop(5.0) == 0
    assert time.monotonic() - began < 5.0
    assert not hub.socket.exists()
    assert "STOPPING=1" in [line for _, line in hub.notices]


def test_killed_ten_times_it_comes_back(hub: Daemon) -> None:
    for _ in range(10):
        hub.kill()
        hub.start()
    assert hub.status()["node"] == "hub"


def test_reload_adds_a_peer_and_leaves_the_link_up(hub: Daemon, port: int) -> None:
    text = peer("hub", f"ws://127.0.0.1:{port}/link")
    with Daemon("edge", text) as edge:
        edge.wait_up("hub")
        before = edge.link("hub")["generation"]
        hub.configure(listen(port, "127.0.0.1") + peer("edge") + peer("other"))
        hub.signal(signal.SIGHUP)
        hub.wait_line(5, event="node.reloaded", detail='peer "other": added')
        assert {link["peer"] for link in hub.status()["links"]} == {"edge", "other"}
        hub.configure(listen(port, "127.0.0.1") + peer("edge") + "nonsense = 1\n")
        hub.signal(signal.SIGHUP)
        line = hub.wait_line(5, event="node.reload-refused")
        assert "nonsense: unknown key" in line.fields["detail"]
        assert edge.link("hub")["state"] == "up"
        assert edge.link("hub")["generation"] == before


def test_usr1_kicks(hub: Daemon) -> None:
    hub.signal(signal.SIGUSR1)
    hub.wait_line(5, event="node.kicked", reason="SIGUSR1")


def test_goodbye_reaches_the_peer(hub: Daemon, port: int) -> None:
    with Daemon("edge", peer("hub", f"ws://127.0.0.1:{port}/link")) as edge:
        edge.wait_up("hub")
        hub.stop(5.0)
        line = edge.wait_line(3, event="link.waiting", old="up")
        assert line.fields["reason"] == "stopped"


def test_two_daemons_with_one_state(hub: Daemon) -> None:
    ended = second(hub)
    assert ended.returncode == 1
    assert f"another linkd uses it, pid {hub.pid}" in ended.stderr
    assert hub.status()["node"] == "hub"


def test_two_daemons_on_one_socket_or_port(hub: Daemon) -> None:
    text = hub.config_file.read_text().replace("/state", "/state2")
    ended = second(hub, text)
    assert ended.returncode == 1
    assert "a running daemon listens there" in ended.stderr
    ended = second(hub, text.replace("linkd.sock", "second.sock"))
    assert ended.returncode == 1
    assert "Address already in use" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert hub.status()["node"] == "hub"
