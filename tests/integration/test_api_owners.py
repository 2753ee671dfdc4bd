"""Every route and every frame against every object of another owner: it stays hidden and unharmed.

The victim is the key `shop`: a consumer that is held, a producer, an id, a token, a cookie session.
The attacker is the key `mallory`, who may use the channel `chat`. Each call and each frame is made
once with the victim's names and once with names that nobody has: both answers must be the same.
A route or a frame without an entry here fails the test.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
import pytest_twisted
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from linkd.api.routes import ROUTES
from linkd.api.text_frames import Kind
from linkd.config import ApiKey
from linkd.log.interface import UNOWNED, Appended, Consumer
from linkd.protocol import client
from linkd.protocol.records import EncodedRecord, NewRecords, Producer, encode_records
from linkd.status import Event
from tests.support.api_calls import Served, pause, thread
from tests.support.fake_node import KEY, SHOP_KEY, make_config

MALLORY_KEY = "m" * 40
MINE = {"consumer": "billing-7f3a", "producer": "till-7f3a", "id": "pay-7f3a", "owner": "shop"}
NOBODYS = {"consumer": "nothing-9c1", "producer": "none-9c1", "id": "no-9c1", "owner": "shop"}
JSON = {"Content-Type": "application/json"}


class Ask(msgspec.Struct):
    """A request; `{consumer}` and the like stand for names."""

    target: str
    body: str | None = None
    headers: dict[str, str] = {}


NOTHING: list[Ask] = []
"""The route names nothing that lasts and shows nothing of it; other tests cover its rights."""

HTTP: dict[str, list[Ask]] = {
    "POST /v1/channels/{channel}": [
        Ask("/v1/channels/chat", "x", {"Linkd-Id": "{id}"}),
        Ask("/v1/channels/orders", "x", {"Linkd-Id": "{id}"}),
    ],
    "GET /v1/channels/{channel}": [
        Ask("/v1/channels/chat?consumer={consumer}"),
        Ask("/v1/channels/chat?consumer={consumer}&from=earliest"),
        Ask("/v1/channels/orders?consumer={consumer}"),
        Ask("/v1/channels/chat?consumer={owner}/{consumer}"),
        Ask("/v1/channels/chat?consumer={consumer}&owner={owner}"),
    ],
    "GET /v1/consumers": [Ask("/v1/consumers"), Ask("/v1/consumers?owner={owner}")],
    "POST /v1/consumers/{name}/ack": [
        Ask("/v1/consumers/{consumer}/ack", '{"next":99}', JSON),
        Ask("/v1/consumers/{consumer}/ack?owner={owner}", '{"next":99}', JSON),
        Ask("/v1/consumers/{owner}%2F{consumer}/ack", '{"next":99}', JSON),
    ],
    "DELETE /v1/consumers/{name}": [
        Ask("/v1/consumers/{consumer}"),
        Ask("/v1/consumers/{consumer}?owner={owner}"),
        Ask("/v1/consumers/{owner}%2F{consumer}"),
    ],
    "POST /v1/consumers/{name}/move": [
        Ask("/v1/consumers/{consumer}/move?owner={owner}", '{"owner":"mallory","name":"x"}', JSON),
        Ask("/v1/consumers/x/move", '{"owner":"{owner}","name":"{consumer}"}', JSON),
    ],
    "GET /v1/records/{offset}": [Ask("/v1/records/1")],
    "GET /v1/presence/{channel}": [Ask("/v1/presence/chat")],
    "GET /v1/peers/{name}/history": [Ask("/v1/peers/hub/history")],
    "GET /v1/status": [Ask("/v1/status")],
    "GET /v1/instances": [Ask("/v1/instances")],
    "GET /v1/events": [Ask("/v1/events")],
    "GET /v1/outages": [Ask("/v1/outages")],
    "POST /v1/drain": [Ask("/v1/drain", "{}", JSON)],
    "GET /v1/drain": [Ask("/v1/drain")],
    "DELETE /v1/drain": [Ask("/v1/drain")],
    "POST /v1/peers/{name}/kick": [Ask("/v1/peers/hub/kick", "{}", JSON)],
    "POST /v1/peers/{name}/resync": [Ask("/v1/peers/hub/resync", "{}", JSON)],
    "POST /v1/peers/{name}/forget": [Ask("/v1/peers/hub/forget", "{}", JSON)],
    "POST /v1/peers/{name}/drill": [Ask("/v1/peers/hub/drill", "{}", JSON)],
    "POST /v1/log/trim": [Ask("/v1/log/trim", '{"before":99,"confirmed":true}', JSON)],
    "POST /v1/pairing/invite": [Ask("/v1/pairing/invite", "{}", JSON)],
    "GET /v1/pairing/peers": [Ask("/v1/pairing/peers")],
    "POST /v1/pairing/peers/{name}/revoke": [Ask("/v1/pairing/peers/hub/revoke", "{}", JSON)],
    "POST /v1/token": [Ask("/v1/token", '{"channel":"chat"}', JSON)],
    "POST /v1/session": [Ask("/v1/session", "")],
    "DELETE /v1/session": [Ask("/v1/session", None, {"Cookie": "linkd_session=forged.forged"})],
    "GET /v1/openapi.json": NOTHING,
    "GET /v1/stream": [Ask("/v1/stream")],
    "GET /ws": [Ask("/ws?channel=chat")],
    "GET /healthz": [Ask("/healthz")],
    "GET /readyz": [Ask("/readyz")],
    "GET /metrics": [Ask("/metrics")],
    "GET /": NOTHING,
    "GET /linkd.js": NOTHING,
    "GET /linkd.mjs": NOTHING,
    "GET /linkd.d.mts": NOTHING,
    "GET /linkd.d.ts": NOTHING,
    "GET /dashboard/{file}": NOTHING,
}

Names = dict[str, str]
RECORD = encode_records((EncodedRecord(b"x", "", "i"),))

FRAMES: dict[type, list[Callable[[Names], list[Any]]]] = {
    client.Open: [
        lambda n: [client.Open(client.VERSION, n["producer"])],
        lambda n: [client.Open(client.VERSION, f"{n['owner']}/{n['producer']}")],
    ],
    client.Publish: [
        lambda n: [
            client.Open(client.VERSION, n["producer"]),
            client.Publish(1, "chat", 1, RECORD),
            client.Publish(2**62, "chat", 1, RECORD),
        ],
        lambda n: [
            client.Open(client.VERSION, n["producer"]),
            client.Publish(1, "orders", 1, RECORD),
        ],
        lambda n: [
            client.Open(client.VERSION),
            client.Publish(
                1, "chat", 1, encode_records((EncodedRecord(b"x", "", n["id"]),)), None, (n["id"],)
            ),
        ],
    ],
    client.WaitForPeer: [
        lambda _: [client.Open(client.VERSION), client.WaitForPeer(1, "hub", "orders", 1, 0.1)]
    ],
    client.Subscribe: [
        lambda n: [
            client.Open(client.VERSION),
            client.Subscribe(1, ("chat",), "latest", n["consumer"], 10),
        ],
        lambda n: [
            client.Open(client.VERSION),
            client.Subscribe(1, ("orders",), 1, n["consumer"], 10),
        ],
        lambda n: [
            client.Open(client.VERSION),
            client.Subscribe(1, ("chat",), "latest", f"{n['owner']}/{n['consumer']}"[:63], 10),
        ],
    ],
    client.Unsubscribe: [
        lambda n: [
            client.Open(client.VERSION),
            client.Subscribe(1, ("chat",), "latest", n["consumer"], 10),
            client.Unsubscribe(1),
        ]
    ],
    client.Credit: [
        lambda _: [client.Open(client.VERSION), client.Credit(1, 99), client.ConsumerAck(1, 99)]
    ],
    client.ConsumerAck: [
        lambda n: [
            client.Open(client.VERSION),
            client.Subscribe(1, ("chat",), "latest", n["consumer"], 10),
            client.ConsumerAck(1, 2**62),
        ],
        lambda _: [client.Open(client.VERSION), client.ConsumerAck(1, 2**62)],
    ],
    client.WatchStatus: [lambda _: [client.Open(client.VERSION), client.WatchStatus()]],
}

TEXTS: dict[str, list[str]] = {
    "publish": [
        '{{"type":"a","data":1,"channel":"chat","id":"{id}"}}',
        '{{"type":"a","data":1,"channel":"orders","id":"{id}"}}',
    ],
    "subscribe": [
        '{{"type":"subscribe","data":{{"channel":"orders"}},"id":"{id}"}}',
        '{{"type":"subscribe","data":{{"channel":"chat","consumer":"{consumer}"}}}}',
        '{{"type":"subscribe","data":{{"channel":"orders","consumer":"{consumer}","subscription":1}}}}',
        '{{"type":"subscribe","data":{{"channel":"chat","consumer":"{consumer}","subscription":1}}}}',
    ],
    "ack": ['{{"type":"ack","data":{{"subscription":"{consumer}","next":9}},"id":"{id}"}}'],
    "unsubscribe": ['{{"type":"unsubscribe","data":{{"channel":"orders"}},"id":"{id}"}}'],
    "ping": ['{{"type":"ping"}}'],
    "pong": ['{{"type":"pong"}}'],
}


class Lab:
    """An API with the three keys, and the victim's objects in it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        config = make_config(folder)
        secret = folder / "mallory.key"
        secret.write_text(MALLORY_KEY)
        secret.chmod(0o600)
        mallory = ApiKey(
            name="mallory", secret_file=str(secret), publish=("chat",), subscribe=("chat",)
        )
        self.served = Served(folder, keys=(*config.api.keys, mallory))
        node = self.node = self.served.node
        self.settled: list[Any] = []
        record = encode_records((EncodedRecord(b"secret", "", MINE["id"]),))
        for sequence, ids in ((1, ()), (2, ()), (3, (MINE["id"],))):
            producer = Producer(MINE["producer"], sequence, "shop")
            draft = NewRecords("orders", 1, record, 1.0, None, ids, producer, (), "shop")
            node.log.append(draft, self.settled.append)
        self.ended: list[str] = []
        node.subscriptions.subscribe(("orders",), 2, self, ("shop", MINE["consumer"]))
        whose = f"shop/{MINE['consumer']}"
        node.events.add(
            Event(1, "t", "consumer.gap", None, None, None, None, None, f"{whose} is late", "shop")
        )
        caller = self.served.api.keyring.by_key(SHOP_KEY)
        assert caller is not None
        self.token = self.served.api.keyring.issue(caller, ())
        self.cookie = self.served.api.keyring.open_session(caller, ())

    def has_room(self, size: int) -> bool:
        return True

    def hold(self, size: int) -> bool:
        return True

    def batch(self, batch: Any) -> bool:
        return True

    def volatile(self, batch: Any) -> None:
        pass

    def gap(self, first: int, next: int) -> None:
        pass

    def end(self, reason: str) -> None:
        self.ended.append(reason)

    def state(self) -> Any:
        """Return all that the victim has."""
        node, keyring = self.node, self.served.api.keyring
        theirs = [one for one in node.subscriptions.consumers() if one.owner == "shop"]
        log = node.log
        spent = keyring.spend(self.token)
        assert spent is not None
        self.token = keyring.issue(spent[0], ())
        asked: list[Any] = []
        for sequence in (1, 3):
            producer = Producer(MINE["producer"], sequence, "shop")
            log.append(NewRecords("orders", 1, RECORD, 1.0, None, (), producer), asked.append)
        ids = (MINE["id"],)
        log.append(NewRecords("orders", 1, RECORD, 1.0, None, ids, None, (), "shop"), asked.append)
        assert asked == [Appended(1, 0, True), Appended(3, 0, True), Appended(3, 0, True)]
        cookie = keyring.by_cookie(self.cookie)
        return (
            theirs,
            log.state.producers.highest("shop", MINE["producer"]),
            list(self.ended),
            cookie is not None,
        )

    def ask(self, method: str, ask: Ask, names: Names) -> tuple[int, bytes]:
        """Make a request as mallory; return what is the same for all names."""

        def filled(text: str) -> str:
            for word, name in names.items():
                text = text.replace(f"{{{word}}}", name)
            return text

        body = None if ask.body is None else filled(ask.body).encode()
        headers = {name: filled(value) for name, value in ask.headers.items()}
        headers["Authorization"] = f"Bearer {MALLORY_KEY}"
        got = self.served.fetch(method, filled(ask.target), body, headers, local=False)
        return got.status, blurred(got.body, names)


def blurred(said: bytes, names: Names) -> bytes:
    """Return what was said without what may differ: names that were given, numbers, tokens."""
    for word, name in names.items():
        said = said.replace(name.encode(), word.encode())
    said = re.sub(rb'"token":"[^"]*"', b'"token":""', said)
    return re.sub(rb"[0-9]+(\.[0-9]+)?(e-[0-9]+)?", b"N", said)


def shows(said: bytes) -> bool:
    """Return whether something says a name of the victim's."""
    return any(MINE[word].encode() in said for word in ("consumer", "producer", "id"))


@pytest_twisted.async_yield_fixture  # type: ignore[misc]
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    one = Lab(tmp_path)
    yield one
    await one.served.stop()


def test_every_route_and_frame_has_an_entry() -> None:
    assert set(HTTP) == {f"{route.method} {route.path}" for route in ROUTES}
    assert set(FRAMES) == set(get_args(client.FromClient))
    assert set(TEXTS) == set(get_args(Kind))


@pytest.mark.parametrize("route", HTTP)
@pytest_twisted.ensureDeferred
async def test_no_route_touches_or_shows_what_another_key_has(lab: Lab, route: str) -> None:
    before, method = lab.state(), route.partition(" ")[0]

    def run() -> None:
        for ask in HTTP[route]:
            attack = lab.ask(method, ask, MINE)
            assert attack == lab.ask(method, ask, NOBODYS), ask.target
            plain = Ask(ask.target, ask.body, ask.headers)
            assert not shows(lab.ask(method, plain, NOBODYS)[1]), ask.target

    await thread(run)
    assert lab.state() == before


@contextmanager
def streaming(lab: Lab, names: Names, frames: list[Any]) -> Iterator[bytes]:
    """Send frames as mallory; give all that is said to them."""
    wire: ClientConnection = connect(
        f"ws://127.0.0.1:{lab.served.port}/v1/stream",
        subprotocols=[Subprotocol(client.SUBPROTOCOL)],
        additional_headers={"Authorization": f"Bearer {MALLORY_KEY}"},
    )
    with wire:
        wire.send(client.encode(frames))
        yield heard(wire, names)


def heard(wire: ClientConnection, names: Names) -> bytes:
    """Return what comes within a moment, as text without what may differ."""
    said = b""
    try:
        while True:
            got = wire.recv(timeout=0.3)
            if isinstance(got, bytes):  # one message or two: that is a matter of time
                said += b"".join(repr(frame).encode() for frame in client.decode_from_daemon(got))
            else:
                said += got.encode()
    except (TimeoutError, OSError):
        pass
    return blurred(said, names)


@pytest.mark.parametrize("kind", FRAMES)
@pytest_twisted.ensureDeferred
async def test_no_frame_touches_or_shows_what_another_key_has(lab: Lab, kind: type) -> None:
    before = lab.state()

    def run() -> None:
        for frames in FRAMES[kind]:
            with streaming(lab, MINE, frames(MINE)) as attack:
                pass
            with streaming(lab, NOBODYS, frames(NOBODYS)) as nothing:
                assert attack == nothing
                assert not shows(nothing)

    await thread(run)
    assert lab.state() == before


@pytest.mark.parametrize("kind", TEXTS)
@pytest_twisted.ensureDeferred
async def test_no_text_frame_touches_or_shows_what_another_key_has(lab: Lab, kind: str) -> None:
    before = lab.state()

    def told(text: str, names: Names) -> bytes:
        with connect(
            f"ws://127.0.0.1:{lab.served.port}/ws?channel=chat&status=1&presence=1",
            additional_headers={"Authorization": f"Bearer {MALLORY_KEY}"},
        ) as wire:
            wire.send(text.format(**names))
            return heard(wire, names)

    def run() -> None:
        for text in TEXTS[kind]:
            attack, nothing = told(text, MINE), told(text, NOBODYS)
            assert attack == nothing
            assert not shows(nothing)

    await thread(run)
    assert lab.state() == before


@pytest_twisted.ensureDeferred
async def test_what_concerns_a_consumer_is_heard_by_its_owner_and_operators(lab: Lab) -> None:
    for key, does in ((SHOP_KEY, True), (KEY, True), (MALLORY_KEY, False)):
        for path in ("/v1/status", "/v1/consumers", "/v1/events", "/metrics"):
            said = (await lab.served.keyed("GET", path, key=key)).body
            assert (MINE["consumer"].encode() in said) is does, (path, key)
    assert MINE["consumer"] not in str((await lab.served.keyed("GET", "/metrics", key=None)).body)
    assert (await lab.served.keyed("GET", "/metrics", key="wrong" * 8)).status == 401
    assert MINE["consumer"].encode() in (await lab.served.call("GET", "/metrics")).body


@pytest_twisted.ensureDeferred
async def test_an_event_stream_of_another_key_does_not_hear_of_a_consumer(lab: Lab) -> None:
    def follow(key: str) -> bytes:
        head = f"GET /v1/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
        asked = f"{head}Accept: text/event-stream\r\n\r\n".encode()
        try:
            return lab.served.raw(asked, wait=0.5)
        except TimeoutError:
            return b""

    got: dict[str, list[Event]] = {"shop": [], "mallory": []}
    for name, secret in (("shop", SHOP_KEY), ("mallory", MALLORY_KEY)):
        caller = lab.served.api.keyring.by_key(secret)
        assert caller is not None
        got[name] = [event for event in lab.node.events.after(0) if caller.may_see_event(event)]
    assert (len(got["shop"]), len(got["mallory"])) == (1, 0)
    assert not shows(await thread(lambda: follow(MALLORY_KEY)))


@pytest_twisted.ensureDeferred
async def test_an_operator_acts_on_the_consumers_of_others(lab: Lab) -> None:
    name, call = MINE["consumer"], lab.served.call
    acked = await call("POST", f"/v1/consumers/{name}/ack?owner=shop", b'{"next":3}', JSON)
    assert acked.json() == {"owner": "shop", "name": name, "next": 3}
    missing = await call("DELETE", f"/v1/consumers/{name}")
    assert missing.json()["message"] == (
        f"there is no consumer socket/{name}; there is shop/{name}"
    )
    move = f"/v1/consumers/{name}/move?owner=shop"
    for body, status in (
        ({"owner": "nobody", "name": "x"}, 404),
        ({"owner": "shop", "name": name}, 409),
        ({"owner": "shop", "name": "a b"}, 400),
        ({"owner": "mallory", "name": "bills"}, 200),
    ):
        moved = await call("POST", move, json.dumps(body).encode(), JSON)
        assert moved.status == status, moved.body
    assert lab.ended == ["replaced"]
    assert [one.key for one in lab.node.subscriptions.consumers()] == [("mallory", "bills")]
    gone = await lab.served.keyed("DELETE", "/v1/consumers/bills?owner=mallory")
    assert gone.status == 204


@pytest_twisted.ensureDeferred
async def test_a_narrowed_token_takes_no_consumer_that_reads_more(lab: Lab) -> None:
    lab.node.subscriptions.subscribe(("news.a",), "latest", lab, ("shop", "narrow"))
    keyring = lab.served.api.keyring
    caller = keyring.by_key(SHOP_KEY)
    assert caller is not None
    cookie = {"Cookie": f"linkd_session={keyring.open_session(caller, ('news.*',))}"}

    def page(name: str) -> int:
        target = f"/v1/channels/news.a?consumer={name}"
        return lab.served.fetch("GET", target, None, cookie, local=False).status

    def run() -> None:
        assert (page(MINE["consumer"]), page("narrow"), page("fresh")) == (403, 200, 200)
        listed = lab.served.fetch("GET", "/v1/consumers", None, cookie, local=False).json()
        assert [one["name"] for one in listed["consumers"]] == ["fresh", "narrow"]
        deleted = lab.served.fetch(
            "DELETE", f"/v1/consumers/{MINE['consumer']}", None, cookie, False
        )
        assert deleted.status == 404

    await thread(run)
    assert MINE["consumer"] in {one.name for one in lab.node.subscriptions.consumers()}


@pytest_twisted.ensureDeferred
async def test_an_unowned_consumer_goes_to_the_first_that_may_read_all_of_it(lab: Lab) -> None:
    store = lab.node.subscriptions._store
    store.set_consumer(Consumer(UNOWNED, "old", 2, ("orders", "news.*")))
    assert (await lab.served.keyed("GET", "/v1/channels/chat?consumer=old", key=MALLORY_KEY)).status
    page = await lab.served.keyed("GET", "/v1/channels/orders?consumer=old", key=SHOP_KEY)
    assert [one["offset"] for one in page.json()["records"]] == [2, 3]
    owners = {
        one.owner: one.next for one in lab.node.subscriptions.consumers() if one.name == "old"
    }
    assert owners == {"mallory": 4, "shop": 2}


@pytest.mark.parametrize(("left", "status"), [("none", 401), ("narrow", 403), ("same", 200)])
@pytest_twisted.ensureDeferred
async def test_a_reload_ends_the_long_polls_of_a_key_that_lost_its_right(
    lab: Lab, left: str, status: int
) -> None:
    poll = lab.served.keyed("GET", "/v1/channels/orders?from=latest&wait=20", key=SHOP_KEY)
    await pause(0.3)
    config = lab.served.config
    keys = {key.name: key for key in config.api.keys}
    if left == "none":
        del keys["shop"]
    elif left == "narrow":
        keys["shop"] = msgspec.structs.replace(keys["shop"], subscribe=("news.*",))
    api = msgspec.structs.replace(config.api, keys=tuple(keys.values()))
    lab.served.api.reload(msgspec.structs.replace(config, api=api))
    lab.node.log.append(NewRecords("orders", 1, RECORD, 1.0), lambda _: None)
    got = await poll
    assert got.status == status
    assert (b"records" in got.body) is (status == 200)
    assert not lab.served.api._running


@pytest_twisted.ensureDeferred
async def test_logging_out_ends_the_session(lab: Lab) -> None:
    cookie = {"Cookie": f"linkd_session={lab.cookie}"}

    def status(method: str, target: str) -> int:
        return lab.served.fetch(method, target, None, cookie, local=False).status

    def run() -> None:
        assert status("GET", "/v1/status") == 200
        assert status("DELETE", "/v1/session") == 204
        assert status("GET", "/v1/status") == 401

    await thread(run)
