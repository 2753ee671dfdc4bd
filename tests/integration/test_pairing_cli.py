"""`linkd invite`, `join`, `peers` and `revoke` as a person types them."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as global_reactor
from twisted.internet.threads import deferToThread
from twisted.web.http import Request
from twisted.web.resource import Resource
from twisted.web.server import Site

from linkd.cli import main
from linkd.pairing.server import local_call
from tests.support.pairing_lab import Hub, edge_config

reactor: Any = global_reactor


class Calls(Resource):
    """The two daemons' unix socket: the hub's pairing, and the edge's status."""

    isLeaf = True

    def __init__(self, hub: Hub) -> None:
        super().__init__()
        self.hub = hub
        self.state = "up"
        self.kicks = 0

    def render(self, request: Request) -> bytes:
        """Answer as the API does."""
        path = request.path.decode()
        if path == "/v1/status":
            link = {
                "peer": "hub",
                "role": "dialer",
                "state": self.state,
                "detail": "no\x1b[31m way",
            }
            return json.dumps({"links": [link]}).encode()
        if path == "/v1/peers/hub/kick":
            self.kicks += 1
            return b"{}"
        body = request.content.read()
        status, answer = local_call(self.hub.pairing, request.method.decode(), path, body)
        request.setResponseCode(status)
        return answer


class Desk:
    """A hub, an edge, and the socket of both."""

    def __init__(self, directory: Path) -> None:
        self.hub = Hub(directory / "hub")
        self.edge = edge_config(directory / "edge", "edge-1")
        self.config = directory / "edge" / "linkd.toml"
        self.socket = str(directory / "s.sock")
        self.calls = Calls(self.hub)
        self.port = reactor.listenUNIX(self.socket, Site(self.calls))

    async def run(self, *words: str) -> int:
        """Run a command in a thread; return its exit code."""
        argv = [*words, "--socket", self.socket]
        return int(await deferToThread(main, argv).addTimeout(20, reactor))

    async def close(self) -> None:
        """End both."""
        await self.port.stopListening()
        await self.hub.close()


@pytest_twisted.async_yield_fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    both = Desk(tmp_path)
    yield both
    await both.close()


@pytest.fixture
def hangups(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Write down who is told to reload: this process is the daemon behind the socket."""
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: told.append((pid, number)))
    return told


@pytest_twisted.ensureDeferred
async def test_the_four_commands(
    desk: Desk, hangups: list[tuple[int, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert await desk.run("peers") == 0
    assert "this node is not paired with any other" in capsys.readouterr().err
    assert await desk.run("invite", "edge-1", "--address", "127.0.0.1") == 0
    told = capsys.readouterr()
    assert told.out.startswith("linkd join ")
    assert told.err == "On edge-1, within 10 minutes, once:\n"
    code = told.out.split()[2]
    assert await desk.run("join", code, "-c", str(desk.config)) == 0
    said = capsys.readouterr().err
    assert "hub has given this node a certificate" in said
    assert f"hub is up at wss://127.0.0.1:{desk.hub.number}/link" in said
    assert hangups == [(os.getpid(), signal.SIGHUP)]
    assert await desk.run("peers") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["PEER", "STATE", "ENDS", "IN", "CONFIGURED"]
    assert lines[1].split() in (
        ["edge-1", "paired", "364d", "yes"],
        ["edge-1", "paired", "365d", "yes"],
    )
    assert await desk.run("peers", "--json") == 0
    assert json.loads(capsys.readouterr().out)["state"] == "paired"
    assert await desk.run("join", code, "-c", str(desk.config)) == 4
    assert "used before" in capsys.readouterr().err
    assert await desk.run("revoke", "edge-1") == 0
    assert "1 certificate of edge-1 is revoked" in capsys.readouterr().err
    assert await desk.run("revoke", "edge-2") == 4
    assert "no node 'edge-2'" in capsys.readouterr().err


@pytest_twisted.ensureDeferred
async def test_a_link_that_does_not_come_up_is_said(
    desk: Desk, hangups: list[tuple[int, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    desk.calls.state = "rejected"
    assert await desk.run("invite", "edge-1", "--address", "127.0.0.1", "--json") == 0
    code = json.loads(capsys.readouterr().out)["code"]
    words = code.split("-")
    assert await desk.run("join", *words, "-c", str(desk.config), "--timeout", "0.5") == 5
    said = capsys.readouterr().err
    assert "hub is not up after 0.5 s" in said
    assert "\x1b" not in said
    assert len(hangups) == 1
    assert desk.calls.kicks == 1


@pytest_twisted.ensureDeferred
async def test_without_a_daemon_the_file_is_written_all_the_same(
    desk: Desk, hangups: list[tuple[int, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert await desk.run("invite", "edge-1", "--address", "127.0.0.1") == 0
    code = capsys.readouterr().out.split()[2]
    argv = ["join", code, "-c", str(desk.config), "--socket", desk.socket + ".none"]
    assert await deferToThread(main, argv).addTimeout(20, reactor) == 0
    assert "not running" in capsys.readouterr().err
    assert (desk.config.parent / "linkd.d" / "hub.toml").exists()
    assert hangups == []


@pytest_twisted.ensureDeferred
async def test_a_proxys_url_with_a_password_is_refused_and_not_shown(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await desk.run("invite", "edge-1", "--address", "127.0.0.1") == 0
    code = capsys.readouterr().out.split()[2]
    words = ("join", code, "-c", str(desk.config), "--proxy", "http://user:hidden@proxy.test:1")
    assert await desk.run(*words) == 2
    said = capsys.readouterr().err
    assert "no user and no password belong there" in said
    assert "hidden" not in said


@pytest_twisted.ensureDeferred
async def test_what_is_typed_wrong(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    assert await desk.run("join", "ABCDE-FGHIJ", "-c", str(desk.config)) == 2
    assert "copy it again" in capsys.readouterr().err
    at = ("-c", str(desk.config))
    assert await desk.run("join", "ABCDE-FGHIJ", "--proxy-secret-file", "login", *at) == 2
    assert "is for a proxy: add --proxy URL" in capsys.readouterr().err
    assert await desk.run("invite", "Edge One") == 4
    assert "can't be invited" in capsys.readouterr().err
    assert await desk.run("invite") == 2
