"""Who may have a WebSocket, and how a page and a program hear why they may not."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_twisted
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin, Subprotocol

from linkd.protocol.client import SUBPROTOCOL
from tests.support.api_calls import Served, thread
from tests.support.fake_node import KEY, SHOP_KEY

PAGE = "https://app.example"
"""The origin that the node allows."""


@pytest_twisted.async_yield_fixture  # type: ignore[misc]
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    one = Served(tmp_path, origins=(PAGE, "null"))
    yield one
    await one.stop()


class Outcome:
    """What a WebSocket came to: `code` of the close or HTTP status, the sentence, `is_http`."""

    def __init__(self, code: int, said: str, is_http: bool) -> None:
        self.code = code
        self.said = said
        self.is_http = is_http

    def __repr__(self) -> str:
        return f"{'HTTP ' if self.is_http else ''}{self.code} {self.said!r}"


def closed_by(error: ConnectionClosed) -> Outcome:
    """Return what a close frame said."""
    assert error.rcvd is not None
    return Outcome(error.rcvd.code, error.rcvd.reason, False)


def attempt(
    served: Served,
    target: str,
    origin: str | None = PAGE,
    headers: Mapping[str, str] | None = None,
    subprotocols: tuple[str, ...] = (),
    host: str = "localhost",
) -> Outcome:
    """Open a WebSocket; return 101 where it stays open and answers. Blocks."""
    try:
        with connect(
            f"ws://{host}:{served.port}{target}",
            sock=socket.create_connection(("127.0.0.1", served.port), timeout=5),
            origin=None if origin is None else Origin(origin),
            additional_headers=headers or {},
            subprotocols=[Subprotocol(one) for one in subprotocols] or None,
        ) as wire:
            try:
                wire.send('{"type":"ping"}')
                wire.recv(timeout=5)
            except ConnectionClosed as closed:
                return closed_by(closed)
            return Outcome(101, str(wire.subprotocol or ""), False)
    except ConnectionClosed as closed:  # the end of the context raises it again
        return closed_by(closed)
    except InvalidStatus as error:
        answer = error.response
        said = json.loads(answer.body or b"{}").get("message", "")
        return Outcome(answer.status_code, said, True)


async def token(served: Served, channel: str | None = None) -> str:
    body = b"" if channel is None else json.dumps({"channel": channel}).encode()
    made: str = (await served.keyed("POST", "/v1/token", body)).json()["token"]
    return made


BEARER = {"Authorization": f"Bearer {KEY}"}
SHOP = {"Authorization": f"Bearer {SHOP_KEY}"}

MATRIX: tuple[tuple[str, int, str, str, dict[str, str]], ...] = (
    ("no key", 401, "needed", "/ws?channel=orders", {}),
    ("a wrong key", 401, "not known", "/ws?channel=a", {"Authorization": "Bearer " + "x" * 40}),
    ("no bearer", 401, "Bearer KEY", "/ws?channel=a", {"Authorization": "Basic eDp5"}),
    ("a forged token", 401, "not known", "/ws?ws_token=forged&channel=orders", {}),
    ("a forged token at /", 401, "not known", "/?ws_token=forged&channel=orders", {}),
    ("a channel beyond the key", 403, "may not publish", "/ws?channel=news", SHOP),
    ("one of two channels", 403, "may not publish", "/ws?channel=orders&channel=news", SHOP),
    ("no channel's name", 400, "no channel", "/ws?channel=or%20ders", BEARER),
    ("a wrong flag", 400, "envelope", "/ws?channel=orders&envelope=yes", BEARER),
    ("a wrong offset", 400, "from", "/ws?channel=orders&from=x", BEARER),
    ("a wrong timeout", 400, "timeout", "/ws?channel=orders&timeout=0.1", BEARER),
    ("a name twice", 400, "twice", "/ws?channel=orders&from=1&from=2", BEARER),
    ("no UTF-8", 400, "UTF-8", "/ws?channel=%ff", BEARER),
    ("another path", 404, "no such path", "/socket?channel=orders", BEARER),
)


@pytest.mark.parametrize(("status", "sentence", "target", "headers"), [row[1:] for row in MATRIX])
@pytest_twisted.ensureDeferred
async def test_a_page_and_a_program_hear_the_same_sentence(
    served: Served, status: int, sentence: str, target: str, headers: dict[str, str]
) -> None:
    page = await thread(lambda: attempt(served, target, headers=headers))
    program = await thread(lambda: attempt(served, target, origin=None, headers=headers))
    assert (page.code, page.is_http) == (4000 + status, False), page
    assert (program.code, program.is_http) == (status, True), program
    assert sentence in page.said, page
    assert page.said == program.said
    assert len(page.said.encode()) <= 123


@pytest_twisted.ensureDeferred
async def test_another_host_is_refused_readably(served: Served) -> None:
    target, host = "/ws?channel=orders", "other.example"
    page = await thread(lambda: attempt(served, target, PAGE, BEARER, host=host))
    assert (page.code, page.is_http) == (4421, False), page
    assert "api.hosts" in page.said
    program = await thread(lambda: attempt(served, target, None, BEARER, host=host))
    assert (program.code, program.is_http) == (421, True)


@pytest_twisted.ensureDeferred
async def test_an_origin_that_is_not_allowed_reads_why(served: Served) -> None:
    for target in ("/ws?channel=orders", "/?channel=orders", "/elsewhere"):
        for headers in ({}, BEARER):
            heard = await thread(
                lambda t=target, h=headers: attempt(served, t, "https://evil.example", h)
            )
            assert (heard.code, heard.is_http) == (4403, False)
            assert heard.said == "the origin https://evil.example is not in api.origins"
    assert served.node.log.next == 1


@pytest_twisted.ensureDeferred
async def test_the_native_stream_keeps_http_answers(served: Served) -> None:
    offer = (SUBPROTOCOL,)
    for origin in (None, PAGE, "https://evil.example"):
        heard = await thread(
            lambda o=origin: attempt(served, "/v1/stream", o, {}, subprotocols=offer)
        )
        assert heard.is_http, heard
        assert heard.code == (403 if origin == "https://evil.example" else 401)
    heard = await thread(lambda: attempt(served, "/v1/stream", PAGE, BEARER))
    assert (heard.code, heard.is_http) == (400, True)


@pytest_twisted.ensureDeferred
async def test_a_node_that_starts_asks_to_come_again(served: Served) -> None:
    served.node.starting = True
    page = await thread(lambda: attempt(served, "/ws?channel=orders", headers=BEARER))
    assert (page.code, page.said) == (1013, "the node is starting")
    program = await thread(lambda: attempt(served, "/ws?channel=orders", None, BEARER))
    assert (program.code, program.is_http) == (503, True)


@pytest_twisted.ensureDeferred
async def test_too_many_wrong_keys_are_read_by_a_page(served: Served) -> None:
    heard = [
        await thread(lambda: attempt(served, "/ws?channel=orders&ws_token=forged"))
        for _ in range(22)
    ]
    assert [one.code for one in heard] == [4401] * 20 + [4429] * 2
    assert heard[-1].said == "too many wrong keys"
    right = await thread(lambda: attempt(served, "/ws?channel=orders", headers=BEARER))
    assert right.code == 101


@pytest_twisted.ensureDeferred
async def test_a_refusal_with_a_body_is_answered_as_http(served: Served) -> None:
    head = (
        f"GET /ws HTTP/1.1\r\nHost: localhost\r\nOrigin: {PAGE}\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nContent-Length: 5\r\n\r\nhello"
    )
    got = await thread(lambda: served.raw(head.encode()))
    assert got.startswith(b"HTTP/1.1 401"), got[:200]


@pytest_twisted.ensureDeferred
async def test_headers_in_several_lines_are_answered(served: Served) -> None:
    twice = "Upgrade: websocket\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    for target, more, status in (
        ("/ws", "", b"401"),
        ("/", f"Authorization: Bearer {KEY}\r\n", b"400"),
        ("/v1/channels/orders", "", b"401"),
    ):
        head = f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{twice}{more}\r\n"
        got = await thread(lambda h=head: served.raw(h.encode()))
        assert got.split(b" ")[1] == status, (target, got[:200])


@pytest_twisted.ensureDeferred
async def test_a_health_check_needs_no_host(served: Served) -> None:
    """HAProxy asks in HTTP/1.0 without one, and under the name `localhost` of an old default."""

    def probe(request: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", served.port), timeout=5) as line:
            line.sendall(request)
            return b"".join(iter(lambda: line.recv(65_536), b""))

    for path, host, status in (
        (b"/healthz", b"", b"200"),
        (b"/readyz", b"", b"200"),
        (b"/readyz", b"Host:\r\n", b"200"),
        (b"/readyz", b"Host: a@b\r\n", b"200"),
        (b"/metrics", b"", b"400"),
        (b"/v1/status", b"Host: balancer.example\r\n", b"421"),
    ):
        answer = await thread(partial(probe, b"GET %s HTTP/1.0\r\n%s\r\n" % (path, host)))
        assert answer.split(b" ")[1] == status, (path, host)
        assert b"hub" not in answer
    foreign = b"GET /readyz HTTP/1.0\r\nOrigin: https://evil.example\r\n\r\n"
    assert b" 403 " in await thread(partial(probe, foreign))


@pytest_twisted.ensureDeferred
async def test_names_of_applications_in_the_url_are_ignored(served: Served) -> None:
    for more in ("uid=abcde", "v=1&v=2", "EIO=4&transport=websocket", "%ff=%ff", "access_token="):
        for path in ("/ws", "/"):
            heard = await thread(
                lambda p=path, m=more: attempt(served, f"{p}?channel=orders&{m}", headers=BEARER)
            )
            assert heard.code == 101, (more, heard)


@pytest_twisted.ensureDeferred
async def test_the_root_is_the_dashboard_and_the_websocket(served: Served) -> None:
    page = await served.keyed("GET", "/")
    assert (page.status, page.headers["content-type"].split(";")[0]) == (200, "text/html")
    heard = await thread(lambda: attempt(served, "/?channel=orders", headers=BEARER))
    assert heard.code == 101
    crossed = await served.keyed("GET", "/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")
    assert crossed.status == 200
    sneaky = {**BEARER, "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    heard = await thread(lambda: attempt(served, "/?channel=orders", None, sneaky))
    assert heard.code == 403


@pytest_twisted.ensureDeferred
async def test_only_an_upgrade_that_succeeds_uses_a_token_up(served: Served) -> None:
    given = await token(served)
    refused = (
        (f"/ws?channel=orders&from=x&ws_token={given}", PAGE, 4400),
        (f"/ws?channel=or%20ders&ws_token={given}", None, 400),
        (f"/ws?channel=orders&ws_token={given}", "https://evil.example", 4403),
        (f"/v1/stream?token={given}", PAGE, 400),
        (f"/nowhere?ws_token={given}", PAGE, 4404),
    )
    for target, origin, code in refused:
        heard = await thread(lambda t=target, o=origin: attempt(served, t, o))
        assert heard.code == code, (target, heard)
    bad_key = (
        f"GET /ws?channel=orders&ws_token={given} HTTP/1.1\r\nHost: localhost\r\n"
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: short\r\n\r\n"
    )
    assert (await thread(lambda: served.raw(bad_key.encode()))).startswith(b"HTTP/1.1 400")
    first = await thread(lambda: attempt(served, f"/ws?channel=orders&ws_token={given}"))
    assert first.code == 101
    again = await thread(lambda: attempt(served, f"/ws?channel=orders&ws_token={given}"))
    assert (again.code, again.said) == (4401, "the key or token is not known, used, or expired")
    session = await token(served)
    made = await served.keyed("POST", "/v1/session", key=session)
    assert made.status == 204
    assert (await served.keyed("POST", "/v1/session", key=session)).status == 401


@pytest_twisted.ensureDeferred
async def test_of_many_upgrades_with_one_token_one_succeeds(served: Served) -> None:
    given = await token(served)
    target = f"/ws?channel=orders&ws_token={given}"
    outcomes = [thread(lambda: attempt(served, target)) for _ in range(6)]
    codes = sorted([(await one).code for one in outcomes])
    assert codes == [101] + [4401] * 5


def offer(secret: str) -> tuple[str, ...]:
    text = base64.urlsafe_b64encode(secret.encode()).decode().rstrip("=")
    return "linkd.text.1", f"linkd.bearer.{text}"


@pytest_twisted.ensureDeferred
async def test_a_page_shows_its_key_or_token_as_a_subprotocol(served: Served) -> None:
    given = await token(served, "orders")
    for secret, channel, code in (
        (KEY, "anything", 101),
        (SHOP_KEY, "orders", 101),
        (SHOP_KEY, "other", 4403),
        (given, "other", 4403),
        (given, "orders", 101),
        (given, "orders", 4401),
        ("x" * 40, "orders", 4401),
    ):
        heard = await thread(
            lambda s=secret, c=channel: attempt(served, f"/ws?channel={c}", subprotocols=offer(s))
        )
        assert heard.code == code, (channel, heard)
        assert code != 101 or heard.said == "linkd.text.1"
    bad = await thread(
        lambda: attempt(
            served, "/ws?channel=orders", subprotocols=("linkd.text.1", "linkd.bearer.#")
        )
    )
    assert bad.code == 4401
    call = {"Sec-WebSocket-Protocol": ", ".join(offer(KEY))}
    answer = await served.keyed("GET", "/v1/status", key=None, **call)
    assert answer.status == 401


@pytest_twisted.ensureDeferred
async def test_pages_without_an_origin_of_their_own_may_be_allowed(served: Served) -> None:
    heard = await thread(lambda: attempt(served, "/ws?channel=orders", "null", BEARER))
    assert heard.code == 101
    answer = await served.keyed("GET", "/v1/status", Origin="null")
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, "null")


@pytest_twisted.ensureDeferred
async def test_an_allowed_origin_may_send_the_headers_that_it_asks_for(served: Served) -> None:
    async def preflight(origin: str, asked: str) -> Any:
        return await served.keyed(
            "OPTIONS",
            "/v1/token",
            key=None,
            Origin=origin,
            Access_Control_Request_Method="POST",
            Access_Control_Request_Headers=asked,
        )

    allowed = await preflight(PAGE, "x-csrftoken, authorization,x-my.app!")
    names = allowed.headers["access-control-allow-headers"].lower().split(", ")
    assert allowed.status == 204
    assert {"x-csrftoken", "x-my.app!", "authorization", "content-type"} <= set(names)
    odd = await preflight(PAGE, "a b, <script>, " + "x" * 81 + ", ok")
    names = odd.headers["access-control-allow-headers"].split(", ")
    assert "ok" in names
    assert not {"a b", "<script>", "x" * 81} & set(names)
    refused = await preflight("https://evil.example", "x-csrftoken")
    assert refused.status == 403
    assert "access-control-allow-headers" not in refused.headers


@pytest_twisted.ensureDeferred
async def test_an_allowed_page_may_read_why_its_call_is_refused(served: Served) -> None:
    answer = await served.keyed("POST", "/v1/token", key="x" * 40, Origin=PAGE)
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (401, PAGE)
    evil = await served.keyed("POST", "/v1/token", key="x" * 40, Origin="https://evil.example")
    assert evil.status == 403
    assert "access-control-allow-origin" not in evil.headers


def publish_and_hear(served: Served, query: str, headers: Mapping[str, str]) -> list[Any]:
    """Publish without a channel on `/ws`; return the answer and what else comes. Blocks."""
    url = f"ws://127.0.0.1:{served.port}/ws?{query}"
    with connect(url, additional_headers=headers) as wire:
        wire.send('{"type":"chat","data":1,"id":"c-1"}')
        heard = []
        with suppress(TimeoutError):
            while True:
                heard.append(json.loads(wire.recv(timeout=0.5 if heard else 5.0)))
        return heard


def channels_of(heard: list[Any]) -> list[str]:
    return [one["channel"] for one in heard if one["type"] == "chat"]


@pytest_twisted.ensureDeferred
async def test_without_a_channel_the_callers_default_channel_counts(tmp_path: Path) -> None:
    for settings, query, headers, wanted in (
        ({}, "", BEARER, ["default"]),
        ({"default_channel": "lobby"}, "", BEARER, ["lobby"]),
        ({"default_channel": "lobby"}, "", SHOP, ["orders"]),
        ({}, "", SHOP, ["orders"]),
        ({}, "channel=", BEARER, []),
        ({}, "channel=a&channel=b", BEARER, ["a"]),
    ):
        directory = tmp_path / str(len(list(tmp_path.iterdir())))
        served = Served(directory, **settings)
        try:
            heard = await thread(lambda s=served, q=query, h=headers: publish_and_hear(s, q, h))
        finally:
            await served.stop()
        assert channels_of(heard) == wanted, (settings, query, heard)
        kinds = sorted(one["type"] for one in heard)
        assert kinds == (["ack", "chat"] if wanted else ["error"])


@pytest_twisted.ensureDeferred
async def test_a_narrowed_token_brings_its_channel(served: Served) -> None:
    given = await token(served, "room.7")
    heard = await thread(lambda: publish_and_hear(served, f"ws_token={given}", {}))
    assert channels_of(heard) == ["room.7"]


@pytest_twisted.ensureDeferred
async def test_several_channels_are_followed(served: Served) -> None:
    def run() -> list[str]:
        url = f"ws://127.0.0.1:{served.port}/ws?channel=a&channel=b.*&channel=a"
        with connect(url, additional_headers=BEARER) as wire:
            for channel in ("a", "b.1", "c", "b.2"):
                wire.send(json.dumps({"type": "chat", "data": 1, "channel": channel}))
            return [json.loads(wire.recv(timeout=5))["channel"] for _ in range(3)]

    assert sorted(await thread(run)) == ["a", "b.1", "b.2"]
    many = "&".join(f"channel=c.{number}" for number in range(257))
    heard = await thread(lambda: attempt(served, f"/ws?{many}", headers=BEARER))
    assert heard.code == 4429
    assert "limits.subscriptions" in heard.said


@pytest_twisted.ensureDeferred
async def test_an_address_with_too_many_connections_reads_why(served: Served) -> None:
    served.api.slots.limits = msgspec.structs.replace(
        served.api.slots.limits, api_connections_per_address=3
    )
    said = "too many connections from this address (limits.api_connections_per_address)"

    def run() -> None:
        url = f"ws://127.0.0.1:{served.port}/ws?channel=orders"
        with contextlib.ExitStack() as held:
            for _ in range(3):
                held.enter_context(connect(url, additional_headers=BEARER))
            page = attempt(served, "/ws?channel=orders", headers=BEARER)
            assert (page.code, page.said, page.is_http) == (4429, said, False)
            program = attempt(served, "/ws?channel=orders", None, BEARER)
            assert (program.code, program.said) == (429, said)
            answer = served.fetch("GET", "/healthz", local=False)
            assert (answer.status, answer.headers["connection"]) == (429, "close")
            assert served.fetch("GET", "/healthz").status == 200
            mute = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(12)]
            began = time.monotonic()
            for each in mute:
                with each:
                    each.settimeout(5)
                    with suppress(ConnectionError):
                        assert each.recv(1) == b""
            assert 1.5 < time.monotonic() - began < 4
        assert attempt(served, "/ws?channel=orders", headers=BEARER).code == 101

    await thread(run)


@pytest_twisted.ensureDeferred
async def test_nothing_is_gathered_of_a_client_that_was_refused(served: Served) -> None:
    """Each could leave a message of max_body_bytes in memory, outside every account."""

    def flood() -> int:
        with socket.create_connection(("127.0.0.1", served.port)) as wire:
            wire.sendall(
                b"GET /ws HTTP/1.1\r\nHost: localhost\r\nOrigin: https://evil.example\r\n"
                b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
            )
            wire.recv(4096)
            content = b"\x82\xff" + (900_000).to_bytes(8, "big") + bytes(4 + 800_000)
            wire.sendall(content)
            time.sleep(0.2)
            (one,) = served.api.websockets._open
            return sum(
                map(len, [one.data or b"", *(one._pieces or ()), *getattr(one, "frame_data", ())])
            )

    assert await thread(flood) <= 2 * 65_536
