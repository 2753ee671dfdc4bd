"""Two hubs of one node, in real daemons on one PostgreSQL: pairing, revoking, tokens, sessions."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from http.client import HTTPConnection
from subprocess import CompletedProcess
from threading import Thread

import pytest

from linkd.drill.testbed import free_port
from tests.integration.test_postgresql import init, log_of
from tests.support.daemon import Daemon
from tests.support.duo import until
from tests.support.pairing_hosts import command, invite
from tests.support.postgresql import Server, needs_postgresql

pytestmark = needs_postgresql

KEY = "an-api-key-of-32-characters-or-so"


class Hub(Daemon):
    """One of the hubs."""

    def __init__(self, letter: str, dsn: str) -> None:
        self.port, self.api = free_port(), free_port()
        super().__init__(
            "hub",
            f'http = "127.0.0.1:{self.api}"\n'
            '[[api.key]]\nname = "shop"\nsecret_file = "{directory}/key"\npublish = [">"]\n'
            'subscribe = [">"]\n'
            f'[cluster]\ninstance = "hub-{letter}"\n[listen]\naddress = "0.0.0.0:{self.port}"\n'
            + log_of(dsn, engine_timeout=2.0),
        )
        key = self.directory / "key"
        key.touch(0o600)
        key.write_text(KEY)

    def web(self, method: str, path: str, **headers: str) -> tuple[int, dict[str, str]]:
        """Ask over HTTP; return status and headers."""
        connection = HTTPConnection("127.0.0.1", self.api, timeout=10.0)
        try:
            headers = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders())
        finally:
            connection.close()

    def upgrade(self, token: str) -> int:
        """Ask for a WebSocket with a token; return the status."""
        return self.web(
            "GET",
            f"/v1/stream?token={token}",
            Connection="Upgrade",
            Upgrade="websocket",
            Sec_WebSocket_Version="13",
            Sec_WebSocket_Key="dGhlIHNhbXBsZSBub25jZQ==",
            Sec_WebSocket_Protocol="linkd.client.1",
        )[0]

    def token(self) -> str:
        """Return a fresh token."""
        token: str = self.call("POST", "/v1/token", b"{}")["token"]
        return token


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server()
    yield one
    one.remove()


@pytest.fixture
def hubs(server: Server) -> Iterator[tuple[Hub, Hub]]:
    with ExitStack() as stack:
        name = server.database("hub")
        a, b = (stack.enter_context(closing(Hub(letter, server.dsn(name)))) for letter in "ab")
        init(server, a, name)
        a.start()
        shutil.copytree(a.directory / "state" / "pairing", b.directory / "state" / "pairing")
        b.start()
        yield a, b


def test_a_node_is_invited_at_one_joins_at_another_and_is_revoked_at_the_first(
    hubs: tuple[Hub, Hub],
) -> None:
    a, b = hubs
    with closing(Daemon("edge", "")) as edge:
        edge.start()
        code = invite(a, "edge", "--address", f"127.0.0.1:{b.port}")
        joined = command(edge, "join", code)
        assert joined.returncode == 0, joined.stderr
        assert "used before" in command(edge, "join", code).stderr
        edge.wait_up("hub")
        for hub in hubs:
            assert (hub.directory / "linkd.d" / "edge.toml").exists()
            (peer,) = hub.call("GET", "/v1/pairing/peers")["peers"]
            assert (peer["name"], peer["state"], peer["configured"]) == ("edge", "paired", True)
        began = time.monotonic()
        assert command(a, "revoke", "edge").returncode == 0
        until(lambda: edge.link("hub")["state"] != "up", 5.0)
        print(f"its link at the other hub ended {time.monotonic() - began:.2f} s after `revoke`")
        for hub in hubs:
            hub.call("GET", "/v1/pairing/peers")
        b.kill()
        b.start()
        (peer,) = b.call("GET", "/v1/pairing/peers")["peers"]
        assert peer["state"] == "revoked"
        time.sleep(2.0)
        assert edge.link("hub")["state"] != "up"


def test_a_hub_without_the_authority_says_what_to_copy(hubs: tuple[Hub, Hub]) -> None:
    a, b = hubs
    a.call("POST", "/v1/pairing/invite", b'{"name":"edge","address":"127.0.0.1"}')
    b.stop()
    shutil.rmtree(b.directory / "state" / "pairing")
    b.start()
    refused = command(b, "invite", "edge")
    assert refused.returncode == 4
    assert "than the instance hub-a, which pairs its peers: copy the files of" in refused.stderr


def test_tokens_and_sessions_of_one_hub_are_good_at_the_other(hubs: tuple[Hub, Hub]) -> None:
    a, b = hubs
    assert a.upgrade(a.token()) == b.upgrade(a.token()) == 101
    token = a.token()
    status, headers = b.web("POST", "/v1/session", Authorization=f"Bearer {token}")
    assert status == 204
    for hub in hubs:
        assert hub.web("POST", "/v1/session", Authorization=f"Bearer {token}")[0] == 401
        assert hub.upgrade(token) == 401
        assert hub.upgrade("00" * 32) == 401
    cookie = headers["Set-Cookie"].partition(";")[0]
    for hub in hubs:
        assert hub.web("GET", "/v1/status", Cookie=cookie)[0] == 200
    assert a.web("DELETE", "/v1/session", Cookie=cookie)[0] == 204
    until(lambda: b.web("GET", "/v1/status", Cookie=cookie)[0] == 401, 5.0)
    b.kill()
    b.start()
    assert b.web("GET", "/v1/status", Cookie=cookie)[0] == 401


def test_without_the_database_a_revocation_is_in_force_here_and_later_at_all(
    hubs: tuple[Hub, Hub], server: Server
) -> None:
    a, b = hubs
    with closing(Daemon("edge", "")) as edge:
        edge.start()
        code = invite(a, "edge", "--address", f"127.0.0.1:{a.port}")
        assert command(edge, "join", code).returncode == 0
        edge.wait_up("hub")
        token = a.token()
        server.kill()
        began = time.monotonic()
        revoking = Thread(target=lambda: refused.append(command(a, "revoke", "edge")))
        refused: list[CompletedProcess[str]] = []
        revoking.start()
        until(lambda: edge.link("hub")["state"] != "up", 4.0)
        print(f"its link ended {time.monotonic() - began:.2f} s after `revoke`, without a database")
        assert b.web("POST", "/v1/session", Authorization=f"Bearer {token}")[0] == 503
        revoking.join()
        assert refused[0].returncode != 0
        assert "the others may not know that yet" in refused[0].stderr
        assert a.call("GET", "/healthz")["late_seconds"] < 1.0
        server.start()

        def states() -> set[str]:
            found = [hub.call("GET", "/v1/pairing/peers")["peers"] for hub in hubs]
            return {peer["state"] for peers in found for peer in peers}

        until(lambda: states() == {"revoked"}, 30.0)
        assert command(b, "revoke", "edge").returncode == 0
