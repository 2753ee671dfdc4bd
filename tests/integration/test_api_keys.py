"""Keys, tokens and cookie sessions against a real daemon, over reloads and restarts."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import trustme
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from linkd.drill.testbed import free_port
from linkd.protocol import client
from tests.support import figures
from tests.support.daemon import SECRET, Daemon
from tests.support.needs import need
from tests.support.pairs import fetch

ROOT = Path(__file__).resolve().parents[2]


def settings(port: int, publish: str = '["orders"]', subscribe: str = '["orders"]') -> str:
    """Return an `[api]` with one key, whose secret is the lab's."""
    return (
        f'http = "127.0.0.1:{port}"\n[[api.key]]\nname = "shop"\nsecret_file = "{{secret}}"\n'
        f"publish = {publish}\nsubscribe = {subscribe}\n"
    )


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def daemon(port: int) -> Iterator[Daemon]:
    with Daemon("edge-1", settings(port)) as running:
        yield running


def bearer(key: str = SECRET) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def token(port: int, channel: str | None = None) -> str:
    """Return a fresh token."""
    body = None if channel is None else json.dumps({"channel": channel})
    status, said = fetch(port, "POST", "/v1/token", body, bearer())
    assert status == 201, said
    return str(json.loads(said)["token"])


def refusal(port: int, path: str, headers: dict[str, str] | None = None) -> tuple[int, str]:
    """Try to open a WebSocket; return status and word of the refusal."""
    offers = [Subprotocol(client.SUBPROTOCOL)] if path.startswith("/v1/stream") else None
    with pytest.raises(InvalidStatus) as caught:
        connect(f"ws://127.0.0.1:{port}{path}", subprotocols=offers, additional_headers=headers)
    response = caught.value.response
    assert response.headers["Content-Type"] == "application/json"
    return response.status_code, json.loads(response.body or b"")["error"]


def opened(port: int, path: str, **options: Any) -> ClientConnection:
    offers = [Subprotocol(client.SUBPROTOCOL)] if path.startswith("/v1/stream") else None
    return connect(f"ws://127.0.0.1:{port}{path}", subprotocols=offers, **options)


def test_none_wrong_used_forged_and_too_wide(daemon: Daemon, port: int) -> None:
    """Each is a refusal in JSON, and none of the secrets is in the log."""
    spare, used, narrow = token(port), token(port), token(port, "other")
    with opened(port, f"/ws?channel=orders&ws_token={used}"):
        pass
    forged = used[:-4] + ("AAAA" if used[-4:] != "AAAA" else "BBBB")
    seen = {}
    for path in ("/ws?channel=orders", "/v1/stream"):
        joint = "&" if "?" in path else "?"
        for what, word in (("none", ""), ("wrong", "x" * 40), ("used", used), ("forged", forged)):
            query = f"{joint}ws_token={word}" if word else ""
            seen[path, what] = refusal(port, path + query)
        seen[path, "wrong key"] = refusal(port, path, bearer("wrong-" * 8))
    assert set(seen.values()) == {(401, "unauthorized")}, seen
    assert refusal(port, f"/ws?channel=orders&ws_token={narrow}") == (403, "channel-refused")
    assert refusal(port, "/ws?channel=others", bearer()) == (403, "channel-refused")
    for method, path, key in (
        ("POST", "/v1/channels/orders", None),
        ("POST", "/v1/channels/orders", "wrong-" * 8),
        ("GET", "/v1/status", None),
        ("POST", "/v1/token", spare),
    ):
        status, said = fetch(port, method, path, b"1", bearer(key) if key else {})
        assert (status, json.loads(said)["error"]) == (401, "unauthorized")
    for method, path in (("POST", "/v1/channels/others"), ("GET", "/v1/channels/others")):
        status, said = fetch(port, method, path, b"1" if method == "POST" else None, bearer())
        assert (status, json.loads(said)["error"]) == (403, "channel-refused")
    with (
        opened(port, f"/v1/stream?token={token(port)}"),
        opened(port, "/ws?channel=orders", additional_headers=bearer()),
    ):
        pass
    written = "\n".join(json.dumps(line.fields) for line in daemon.lines)
    for secret in (SECRET, spare, used, narrow, forged, "wrong-wrong", "x" * 40):
        assert secret not in written
    figures.tell(f"keys and tokens: {len(seen) + 8} refusals, none of 7 secrets in the log")


def test_a_reload_narrows_or_ends_what_is_open(daemon: Daemon, port: int) -> None:
    """A key with fewer rights loses what it follows; a key that is gone loses its connections."""
    daemon.configure(settings(port, '["orders", "bills"]', '["orders", "bills"]'))
    daemon.signal(signal.SIGHUP)
    daemon.wait_line(10.0, event="node.reloaded")
    with (
        opened(port, "/ws?channel=orders", additional_headers=bearer()) as wire,
        opened(port, "/v1/stream", additional_headers=bearer()) as batched,
        Events(port, "bills") as events,
    ):
        wire.send(json.dumps({"type": "subscribe", "id": 1, "data": {"channel": "bills"}}))
        assert json.loads(wire.recv(timeout=5))["type"] == "ack"
        batched.send(
            client.encode((client.Open(1), client.Subscribe(1, ("bills",), "latest", "", 9999)))
        )
        assert _frames(batched, client.Subscribed)
        began = time.monotonic()
        daemon.configure(settings(port))
        daemon.signal(signal.SIGHUP)
        told = json.loads(wire.recv(timeout=5))
        assert (told["type"], told["data"]["error"]) == ("error", "channel-refused")
        assert _frames(batched, client.Ended)
        assert b"event: end" in events.read()
        narrowed = time.monotonic() - began
        daemon.call("POST", "/v1/channels/bills", b"1")
        daemon.call("POST", "/v1/channels/orders", b'"mine"')
        assert json.loads(wire.recv(timeout=5)) == "mine"
        wire.send(json.dumps({"type": "t", "data": 1, "channel": "bills", "id": 2}))
        assert json.loads(wire.recv(timeout=5))["data"]["error"] == "channel-refused"
        daemon.configure(f'http = "127.0.0.1:{port}"\n')
        began = time.monotonic()
        daemon.signal(signal.SIGHUP)
        for one in (wire, batched):
            with pytest.raises(ConnectionClosed) as caught:
                one.recv(timeout=5)
            assert caught.value.rcvd is not None
            assert caught.value.rcvd.code == 1008
        ended = time.monotonic() - began
    figures.tell(
        f"reload: narrowed after {narrowed:.2f} s, a removed key's sockets ended in {ended:.2f} s"
    )


def _frames(wire: ClientConnection, kind: type) -> Any:
    """Return the first frame of a kind."""
    end = time.monotonic() + 5.0
    while time.monotonic() < end:
        message = wire.recv(timeout=5)
        assert isinstance(message, bytes)
        for frame in client.decode_from_daemon(message):
            if isinstance(frame, kind):
                return frame
    raise AssertionError(f"no {kind.__name__}")


class Events:
    """A channel as an event stream, with a key."""

    def __init__(self, port: int, channel: str) -> None:
        self._connection = HTTPConnection("127.0.0.1", port, timeout=5)
        self._connection.request(
            "GET", f"/v1/channels/{channel}", headers={**bearer(), "Accept": "text/event-stream"}
        )
        self._answer = self._connection.getresponse()
        assert self._answer.status == 200

    def read(self) -> bytes:
        return self._answer.read()

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()


class Follower:
    """What EventSource in a browser does: a cookie, an event stream, `Last-Event-ID` on return."""

    def __init__(self, port: int, path: str, cookie: str) -> None:
        self.ids: list[int] = []
        self.last: str | None = None
        self.bodies: list[Any] = []
        self.opened = 0
        self.stopping = False
        self._port, self._path, self._cookie = port, path, cookie
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        while not self.stopping:
            headers = {"Cookie": self._cookie, "Accept": "text/event-stream"}
            if self.last is not None:
                headers["Last-Event-ID"] = self.last
            connection = HTTPConnection("127.0.0.1", self._port, timeout=12)
            try:
                connection.request("GET", self._path, headers=headers)
                answer = connection.getresponse()
                assert answer.status == 200, answer.status
                self.opened += 1
                id_ = 0
                while line := answer.readline():
                    name, _, value = line.strip().partition(b": ")
                    if name == b"id":
                        self.last = value.decode()
                        id_ = int(value.partition(b"@")[0])
                    elif name == b"data":
                        self.ids.append(id_)
                        self.bodies.append(json.loads(value)["data"])
            except OSError:
                time.sleep(0.1)
            finally:
                connection.close()

    def wait(self, true: Any, within: float = 15.0) -> None:
        end = time.monotonic() + within
        while not true(self):
            assert time.monotonic() < end, (self.opened, len(self.bodies))
            time.sleep(0.02)


def test_an_event_stream_with_a_cookie_resumes_over_kills(daemon: Daemon, port: int) -> None:
    """The cookie outlives the daemon, and nothing is missed or heard twice."""
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request("POST", "/v1/session", headers=bearer(token(port)))
    answer = connection.getresponse()
    assert answer.status == 204
    cookie = (answer.getheader("Set-Cookie") or "").partition(";")[0]
    connection.close()
    follower = Follower(port, "/v1/channels/orders", cookie)
    follower.wait(lambda it: it.opened)
    for count in range(3):
        for place in range(50):
            daemon.call("POST", "/v1/channels/orders", json.dumps(count * 50 + place).encode())
        follower.wait(lambda it, times=count + 1: it.opened == times)
        if count < 2:
            daemon.kill()
            daemon.start()
    follower.wait(lambda it: len(it.bodies) >= 150)
    follower.stopping = True
    figures.tell(
        f"event stream over 2 kills: {len(follower.bodies)} of 150 in order,"
        f" opened {follower.opened} times"
    )
    assert follower.bodies == list(range(150))
    assert follower.opened == 3


SCRIPT = """
import { Linkd } from %(module)s;
const got = [];
const node = new Linkd({ url: %(url)s, %(how)s, minDelay: 0.05, maxDelay: 0.2 }).open();
let done;
const all = new Promise((resolve) => (done = resolve));
node.subscribe("orders", ({ data }) => got.push(data) === 4 && done());
await node.publish("orders", 1);
await node.publish("orders", 2);
process.stdout.write("restart\\n");
await new Promise((resolve) => process.stdin.once("data", resolve));
await node.publish("orders", 3);
await node.publish("orders", 4);
await all;
node.close();
process.stdout.write(JSON.stringify(got) + "\\n");
process.exit(0);
"""


@pytest.mark.parametrize("how", ["key", "token"])
def test_linkd_js_in_node_over_a_restart(daemon: Daemon, port: int, how: str) -> None:
    need("node")
    key = json.dumps(f"Bearer {SECRET}")
    asked = (
        f'token: async () => (await (await fetch("{_url(port)}/v1/token", {{ method: "POST",'
        f" headers: {{ Authorization: {key} }} }})).json()).token"
    )
    program = SCRIPT % {
        "module": json.dumps((ROOT / "linkd/api/dashboard/linkd.js").as_uri()),
        "url": json.dumps(_url(port)),
        "how": f"key: {json.dumps(SECRET)}" if how == "key" else asked,
    }
    has = subprocess.run(
        ["node", "-p", "typeof WebSocket"], capture_output=True, text=True, timeout=10, check=True
    ).stdout.strip()
    flags = [] if has == "function" else ["--experimental-websocket"]
    with subprocess.Popen(
        ["node", *flags, "--no-warnings", "--input-type=module", "-e", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"restart\n"
            daemon.kill()
            daemon.start()
            said, _ = process.communicate(b"on\n", timeout=20)
        finally:
            process.kill()
    assert said == b"[1,2,3,4]\n"


def _url(port: int) -> str:
    return f"http://127.0.0.1:{port}"


def test_http_with_tls_takes_another_certificate_at_reload(port: int, tmp_path: Path) -> None:
    """Over TLS too; a reload that names other files shows the other certificate."""
    import ssl

    authority = trustme.CA()
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    for name in ("one", "two"):
        made = authority.issue_cert("localhost", "127.0.0.1")
        made.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        (tmp_path / f"{name}.key").chmod(0o600)
        made.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.crt")

    def config(name: str) -> str:
        files = f'certificate = "{tmp_path}/{name}.crt"\nprivate_key = "{tmp_path}/{name}.key"\n'
        return settings(port).replace("[[api.key]]", files + "[[api.key]]")

    def shown() -> bytes:
        with connect(
            f"wss://localhost:{port}/ws?channel=orders", ssl=trusting, additional_headers=bearer()
        ) as wire:
            wire.send("1")
            assert wire.recv(timeout=5) == "1"
            found: bytes = wire.socket.getpeercert(binary_form=True)  # type: ignore[attr-defined]
            return found

    with Daemon("edge-1", config("one")) as daemon:
        first = shown()
        daemon.configure(config("two"))
        daemon.signal(signal.SIGHUP)
        daemon.wait_line(10.0, event="node.reloaded")
        second = shown()
        assert (
            ssl.DER_cert_to_PEM_cert(second).split() == (tmp_path / "two.crt").read_text().split()
        )
        assert first != second
    figures.tell("http over TLS: call and WebSocket; another certificate after a reload")
