"""After a run with secrets, keys, tokens, codes and bodies, none is found where it may leak.

Searched: every line of both daemons at the level debug, status, events, outages, metrics, the
answers to refused calls, the processes' command lines and environments; each secret as it is, and
in base64, hexadecimal and as a part of a URL.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import quote

import pytest

from linkd.drill.testbed import free_port
from tests.support import figures
from tests.support.daemon import COMMAND, SECRET, Daemon, listen, peer
from tests.support.lab import python
from tests.support.pairing_hosts import HUB, command, invite

pytestmark = pytest.mark.slow

CHANNELS: Final = 'send = [">"]\nreceive = [">"]\n'
PLACES: Final = ("/v1/status", "/v1/events", "/v1/outages", "/metrics", "/v1/consumers", "/readyz")


def unlike() -> str:
    """Return a string that stands nowhere else."""
    return "Zq" + secrets.token_hex(20) + "/+=Zq"


class Talk:
    """Calls over `http`, keeping what every refusal said."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.refusals: list[str] = []

    def call(
        self, method: str, path: str, headers: dict[str, str], body: bytes = b""
    ) -> tuple[int, str, str]:
        """Return status, body and cookie of an answer."""
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            line.request(method, path, body, headers)
            answer = line.getresponse()
            said, head = answer.read().decode("utf-8", "replace"), str(answer.headers)
            if answer.status >= 400:
                self.refusals.append(head + said)
            return answer.status, said, answer.getheader("Set-Cookie") or ""
        finally:
            line.close()


def forms(secret: str) -> Iterator[bytes]:
    """Yield a secret as it may be written somewhere."""
    raw = secret.encode()
    yield raw
    yield quote(secret, safe="").encode()
    yield json.dumps(secret)[1:-1].encode()
    yield raw.hex().encode()
    for shift in range(3):  # as a part of something longer, too
        encoded = base64.b64encode(b"x" * shift + raw)
        yield encoded[4:-4]
        yield encoded[4:-4].replace(b"+", b"-").replace(b"/", b"_")
    yield repr(secret)[1:-1].encode()


def searched(daemon: Daemon) -> Iterator[tuple[str, bytes]]:
    """Yield each place where a daemon tells something, and what it tells there."""
    for place in PLACES:
        said = daemon.call("GET", place)
        yield f"{daemon.name} {place}", (said if isinstance(said, str) else repr(said)).encode()
    process = Path(f"/proc/{daemon.pid}")
    yield f"{daemon.name} command line", (process / "cmdline").read_bytes()
    yield f"{daemon.name} environment", (process / "environ").read_bytes()
    yield f"{daemon.name} title", (process / "comm").read_bytes()
    lines = [json.dumps(line.fields, ensure_ascii=False) for line in daemon.lines]
    yield f"{daemon.name} log", "\n".join(lines).encode()


def found(places: list[tuple[str, bytes]], kept: dict[str, str]) -> list[str]:
    """Return what was found where."""
    return [
        f"{what} in {place}"
        for place, text in places
        for what, secret in kept.items()
        for form in forms(secret)
        if form in text
    ]


def talkative(name: str, config: str) -> Daemon:
    """Return a daemon that says all it can."""
    made = Daemon(name, config)
    run = ["run", "-c", str(made.config_file), "--log-format", "json", "--log-level", "debug"]
    made._command = python(*COMMAND, *run)
    return made


def converse(talk: Talk, key: str, body: str) -> dict[str, str]:
    """Use a key rightly and wrongly in every way; return the secrets that came of it."""
    right = {"Authorization": f"Bearer {key}"}
    kept = {"wrong key": unlike(), "wrong cookie": unlike(), "wrong token": unlike()}
    status, said, _ = talk.call("POST", "/v1/token", right)
    assert status == 201
    kept["token"] = json.loads(said)["token"]
    cookie = talk.call("POST", "/v1/session", {"Authorization": f"Bearer {kept['token']}"})[2]
    kept["cookie"] = cookie.split("=", 1)[1].split(";")[0]
    status, said, _ = talk.call("POST", "/v1/token", right)
    kept["unused token"] = json.loads(said)["token"]
    kind = {"Content-Type": "application/json"}
    wrong = {"Authorization": f"Bearer {kept['wrong key']}"}
    for headers in (
        wrong,
        {"Authorization": kept["wrong key"]},
        {"Authorization": f"Basic {base64.b64encode(kept['wrong key'].encode()).decode()}"},
        {"Cookie": f"linkd_session={kept['wrong cookie']}"},
        {"Authorization": f"Bearer {kept['token']}"},
    ):
        assert talk.call("GET", "/v1/status", headers)[0] == 401
    for path in (f"/ws?ws_token={kept['wrong token']}", f"/v1/stream?token={kept['wrong token']}"):
        assert talk.call("GET", path, {"Upgrade": "websocket", "Connection": "Upgrade"})[0] >= 400
    ends = (
        ("POST", "/v1/channels/orders", {**right, **kind}, f'"{body}"', 201),
        ("POST", "/v1/channels/orders", {**right, **kind}, f'{{"{body}":', 415),
        ("POST", "/v1/channels/private", {**right, **kind}, f'"{body}"', 403),
        ("POST", "/v1/channels/bad channel", {**right, **kind}, f'"{body}"', 400),
        ("POST", "/v1/channels/orders", {**right, **kind, "Linkd-Ttl": "x"}, f'"{body}"', 400),
        ("POST", "/v1/consumers/none/ack", {**right, **kind}, f'{{"next":"{body}"}}', 400),
        ("POST", "/v1/token", {**right, **kind}, f'{{"channel":["{body}"]}}', 400),
    )
    for method, path, headers, text, expected in ends:
        status, said, _ = talk.call(method, quote(path), headers, text.encode())
        assert status == expected or (expected >= 400 and status >= 400), (path, status, said)
    return kept


def test_no_secret_is_found_anywhere() -> None:
    """Two daemons with a shared secret, callers with keys and tokens, faults and refusals."""
    link_port, api_port, key, body = free_port(), free_port(), unlike(), "Body-" + unlike()
    hub = talkative("hub", "")
    key_file = hub.directory / "api.key"
    key_file.touch(0o600)
    key_file.write_text(key)
    hub.configure(
        f'http = "127.0.0.1:{api_port}"\n[[api.key]]\nname = "app"\nsecret_file = "{key_file}"\n'
        f'publish = ["orders"]\nsubscribe = ["orders"]\n'
        + listen(link_port, "127.0.0.1")
        + peer("edge", extra=CHANNELS)
    )
    edge = talkative("edge", peer("hub", f"ws://127.0.0.1:{link_port}/link", extra=CHANNELS))
    with contextlib.closing(hub), contextlib.closing(edge):
        hub.start()
        secret = edge.directory / "secret"
        wrong = "wrong-" + unlike()
        secret.write_text(wrong)
        edge.start()
        edge.wait_line(10.0, event="link.rejected")
        secret.write_text(SECRET)
        edge.call("POST", "/v1/peers/hub/kick", b"")
        edge.wait_up("hub")
        talk = Talk(api_port)
        kept = converse(talk, key, body)
        page = edge.call("GET", "/v1/channels/orders?from=earliest&wait=10", timeout=15)
        assert page["records"][0]["data"] == body
        hub.kill()
        edge.call("POST", "/v1/channels/orders", json.dumps(body).encode())
        hub.start()
        edge.call("POST", "/v1/peers/hub/kick", b"")
        edge.wait_up("hub")
        time.sleep(0.5)
        kept |= {"shared secret": SECRET, "wrong secret": wrong, "key": key, "body": body}
        kept["session key"] = base64.b64encode(
            (hub.directory / "state" / "session.key").read_bytes()
        ).decode()
        places = [*searched(hub), *searched(edge)]
        places += [("a refusal", refusal.encode()) for refusal in talk.refusals]
        log_bytes = sum(len(text) for place, text in places if place.endswith(" log"))
        figures.tell(
            f"{len(kept)} secrets searched for in {len(places)} places, {log_bytes} bytes of log"
        )
        assert len(talk.refusals) >= 13
        assert found(places, kept) == []
        # It can fail: what is told is found.
        assert found([("here", f"x{key}y".encode())], kept) == ["key in here"] * 3
        for daemon in (hub, edge):
            daemon.stop()


def test_no_part_of_a_pairing_is_found_anywhere() -> None:
    """Codes and private keys: of the authority, the hub and the node that joined."""
    port = free_port()
    hub = talkative("hub", HUB.replace("9443", str(port)))
    edge = talkative("edge-1", "")
    with contextlib.closing(hub), contextlib.closing(edge):
        hub.start()
        edge.start()
        code = invite(hub, "edge-1")
        unused = invite(hub, "edge-2")
        joined = command(edge, "join", code)
        assert joined.returncode == 0, joined.stderr
        again = command(edge, "join", code)
        assert again.returncode == 4
        kept = {"code": code, "unused code": unused}
        kept |= {f"{each} without hyphens": kept[each].replace("-", "") for each in tuple(kept)}
        for daemon in (hub, edge):
            for file in (daemon.directory / "state" / "pairing").glob("*.key"):
                lines = file.read_text().splitlines()
                kept[f"{daemon.name} {file.name}"] = lines[len(lines) // 2]
                assert file.stat().st_mode & 0o777 == 0o600
        assert len(kept) == 4 + 3
        places = [*searched(hub), *searched(edge)]
        places += [("join", (joined.stderr + again.stderr).encode())]
        assert found(places, kept) == []
        figures.tell(f"pairing: {len(kept)} secrets searched for in {len(places)} places")
