"""The HTTP API on a fake node, over real sockets."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import AsyncIterator
from itertools import repeat
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, ensureDeferred

from linkd.api import operations
from linkd.api.server import PAGE_READS
from linkd.net.rate_limit import FairShare
from linkd.protocol.records import EncodedRecord, NewRecords, encode_records
from linkd.status import Outage
from tests.support.api_calls import Served, pause, reactor, thread, until
from tests.support.fake_node import KEY, SHOP_KEY
from tests.support.needs import need

JSON = {"Content-Type": "application/json"}


@pytest_twisted.async_yield_fixture  # type: ignore[misc]
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    one = Served(tmp_path)
    yield one
    await one.stop()


def put(served: Served, channel: str, *bodies: bytes) -> None:
    """Store messages."""
    records = [EncodedRecord(body, "", "", "application/json") for body in bodies]
    draft = NewRecords(channel, len(records), encode_records(records), 1_790_000_000.25)
    served.node.log.append(draft, lambda _: None)


@pytest_twisted.ensureDeferred
async def test_publish_and_read_back_verbatim(served: Served) -> None:
    body = b'{ "total":  12.50,"name":"\xc3\xa4" }'
    headers = {**JSON, "Linkd-Type": "created", "Linkd-Id": "o-1", "Linkd-Ttl": "60"}
    first = await served.call("POST", "/v1/channels/orders", body, headers)
    assert (first.status, first.json()) == (201, {"offset": 1, "count": 1})
    again = await served.call("POST", "/v1/channels/orders", body, headers)
    assert (again.status, again.json()) == (200, {"offset": 1, "count": 0, "duplicate": True})
    page = await served.call("GET", "/v1/channels/orders")
    assert b'"data":' + body in page.body
    record = page.json()["records"][0]
    assert record["type"] == "created"
    assert record["id"] == "o-1"
    assert record["origin"] == "edge-1"
    assert record["origin_offset"] == record["offset"] == 1
    assert record["time"].endswith("Z")
    assert page.json()["next"] == 2
    assert page.json()["gap"] is None
    exact = await served.call("GET", "/v1/records/1")
    assert exact.body == body
    assert exact.headers["content-type"] == "application/json"
    assert served.node.published[0].ttl == 60.0


@pytest_twisted.ensureDeferred
async def test_bodies_are_shown_as_what_they_are(served: Served) -> None:
    for body, content_type in (
        (b"caf\xc3\xa9", "text/plain; charset=utf-8"),
        (b"[1,2]", ""),
        (b"plain", ""),
        (b"\xff\x00", "application/octet-stream"),
        (b'{"a":1}', "application/x-www-form-urlencoded"),
    ):
        headers = {"Content-Type": content_type} if content_type else {}
        answer = await served.call("POST", "/v1/channels/a.b", body, headers)
        assert answer.status == 201
    records = (await served.call("GET", "/v1/channels/a.%2A")).json()["records"]
    shown = [{k: r[k] for k in ("data", "text", "base64") if k in r} for r in records]
    assert shown == [
        {"text": "café"},
        {"data": [1, 2]},
        {"text": "plain"},
        {"base64": "/wA="},
        {"data": {"a": 1}},
    ]


@pytest_twisted.ensureDeferred
async def test_lines_are_stored_all_or_none(served: Served) -> None:
    headers = {"Content-Type": "application/x-ndjson"}
    bad = await served.call("POST", "/v1/channels/orders", b'{"n":1}\n{"n":\n', headers)
    assert bad.status == 400
    assert "line 2" in bad.json()["message"]
    assert served.node.log.next == 1
    good = await served.call("POST", "/v1/channels/orders", b'{"n":1}\r\n\n"two"\n3', headers)
    assert (good.status, good.json()) == (201, {"offset": 1, "count": 3})
    one = await served.call("POST", "/v1/channels/orders", b"1\n2", {**headers, "Linkd-Id": "x"})
    assert (one.status, one.json()["error"]) == (400, "malformed")


@pytest.mark.parametrize(
    ("status", "error", "channel", "body", "headers"),
    [
        (400, "malformed", "orders", b'{"a":', JSON),
        (400, "malformed", "orders", b"", JSON),
        (400, "malformed", "orders", b"\xff", {"Content-Type": "text/plain"}),
        (415, "unsupported-type", "orders", b"x", {"Content-Type": "nonsense"}),
        (415, "unsupported-type", "orders", b"x", {"Content-Encoding": "gzip"}),
        (415, "unsupported-type", "orders", b"x", {"Content-Type": "text/plain; charset=latin-1"}),
        (400, "malformed", "or ders", b"x", {}),
        (400, "malformed", "orders", b"x", {"Linkd-Ttl": "-1"}),
        (400, "malformed", "orders", b"x", {"Linkd-Ttl": "nan"}),
        (400, "malformed", "orders", b"x", {"Linkd-Id": "i" * 256}),
        (413, "body-too-large", "orders", b"x" * 1_048_577, {}),
    ],
)
@pytest_twisted.ensureDeferred
async def test_malformed_publishes(
    served: Served, status: int, error: str, channel: str, body: bytes, headers: dict[str, str]
) -> None:
    target = f"/v1/channels/{channel.replace(' ', '%20')}"
    answer = await served.call("POST", target, body, headers)
    assert (answer.status, answer.json()["error"]) == (status, error)
    assert served.node.log.next == 1


@pytest_twisted.ensureDeferred
async def test_log_full_is_507(served: Served) -> None:
    served.node.log.fill("the disk has no room")
    answer = await served.call("POST", "/v1/channels/orders", b"x")
    assert (answer.status, answer.json()["error"]) == (507, "log-full")


@pytest_twisted.ensureDeferred
async def test_what_comes_while_the_node_stops_is_to_be_repeated(served: Served) -> None:
    served.node.log.close(lambda: None)
    answer = await served.call("POST", "/v1/channels/orders", b"x")
    assert (answer.status, answer.json()["error"]) == (503, "unavailable")
    assert answer.headers["retry-after"] == "1"


@pytest_twisted.ensureDeferred
async def test_a_wait_for_a_peer_that_is_removed_meanwhile(served: Served) -> None:
    waiting = served.call("POST", "/v1/channels/orders?wait=hub&timeout=10", b"x")
    await until(lambda: bool(served.node.links.waits))
    served.node.remove("hub")
    gone = await waiting
    assert (gone.status, gone.json()["error"], gone.json()["offset"]) == (404, "not-found", 1)
    assert gone.json()["message"] == "hub was removed from the configuration meanwhile"


@pytest_twisted.ensureDeferred
async def test_wait_for_a_peer(served: Served) -> None:
    target = "/v1/channels/orders?wait=hub&timeout=0.2"
    late = await served.call("POST", target, b"x")
    assert late.status == 504
    assert (late.json()["error"], late.json()["offset"]) == ("timeout", 1)
    there = served.call("POST", "/v1/channels/orders?wait=hub&timeout=10", b"x")
    await until(lambda: served.node.log.next == 3)
    served.node.reach("hub", 3)
    assert (await there).status == 201
    assert (await served.call("POST", "/v1/channels/private?wait=hub", b"x")).status == 409
    assert (await served.call("POST", "/v1/channels/orders?wait=nobody", b"x")).status == 404
    volatile = await served.call("POST", "/v1/channels/telemetry.a?wait=hub", b"x")
    assert volatile.status == 409
    assert served.node.log.next == 3


@pytest_twisted.ensureDeferred
async def test_pages_skip_and_repeat_nothing(served: Served) -> None:
    for number in range(50):
        put(served, "orders" if number % 3 else "other", b"%d" % number)
    seen: list[int] = []
    position = 1
    while True:
        page = (await served.call("GET", f"/v1/channels/orders?from={position}&limit=7")).json()
        if not page["records"]:
            break
        seen += [record["data"] for record in page["records"]]
        assert len(page["records"]) <= 7
        position = page["next"]
    assert seen == [number for number in range(50) if number % 3]
    assert position == served.node.log.next


@pytest_twisted.ensureDeferred
async def test_a_page_stops_inside_a_batch(served: Served) -> None:
    put(served, "orders", *[b"%d" % number for number in range(10)])
    page = (await served.call("GET", "/v1/channels/orders?from=3&limit=4")).json()
    assert [record["offset"] for record in page["records"]] == [3, 4, 5, 6]
    assert page["next"] == 7


@pytest_twisted.ensureDeferred
async def test_a_page_tells_a_gap(served: Served) -> None:
    for number in range(4):
        put(served, "orders", b"%d" % number)
    served.node.log.trim(3)
    page = (await served.call("GET", "/v1/channels/orders?from=1")).json()
    assert page["gap"] == {"first": 1, "next": 3}
    assert [record["offset"] for record in page["records"]] == [3, 4]
    assert (await served.call("GET", "/v1/records/1")).status == 410


@pytest_twisted.ensureDeferred
async def test_long_poll(served: Served) -> None:
    began = time.monotonic()
    empty = (await served.call("GET", "/v1/channels/orders?wait=0.3")).json()
    assert 0.25 <= time.monotonic() - began < 2.0
    assert empty == {"records": [], "next": 1, "gap": None}
    waiting = served.call("GET", "/v1/channels/orders?from=1&wait=10")
    await pause(0.1)
    put(served, "other", b"1")
    put(served, "orders", b"2")
    page = (await waiting).json()
    assert [record["offset"] for record in page["records"]] == [2]
    assert len(served.node.log.on_commit) == 1


@pytest_twisted.ensureDeferred
async def test_pages_of_one_caller_hold_up_nobody_elses(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(served, "orders", b"1")
    waiting: list[Deferred[None]] = []

    class Share(FairShare):
        def left(self) -> float:
            return 0.0

        def turn(self, caller: str = "") -> Deferred[None]:
            if caller != "admin":
                return super().turn(caller)
            waiting.append(Deferred())
            return waiting[-1]

    monkeypatch.setattr(served.api, "share", Share(reactor))  # the handlers' alone
    pages = [served.keyed("GET", "/v1/channels/orders") for _ in range(PAGE_READS + 1)]
    await until(lambda: len(waiting) == PAGE_READS)
    page = await served.call("GET", "/v1/channels/orders").addTimeout(3.0, reactor)
    assert len(page.json()["records"]) == 1
    monkeypatch.undo()
    while waiting:
        waiting.pop().callback(None)
    assert [(await page).status for page in pages] == [200] * (PAGE_READS + 1)


@pytest_twisted.ensureDeferred
async def test_what_consumers_have_yet_to_read_is_counted_in_slices(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(200):
        put(served, f"c{number}", b"1")
    for name, pattern in (("of-one", "c7"), ("of-all", "%3E")):
        await served.call("GET", f"/v1/channels/{pattern}?consumer={name}&from=earliest")
    await served.call("GET", "/v1/channels/c1?consumer=of-nothing&from=latest")

    async def pending() -> dict[str, int | None]:
        listed = (await served.call("GET", "/v1/consumers")).json()["consumers"]
        return {one["name"]: one["pending_records"] for one in listed}

    assert await pending() == {"of-all": 200, "of-nothing": 0, "of-one": 1}
    monkeypatch.setattr(served.node.log, "totals", lambda _: repeat(("c7", 1, 1)))
    monkeypatch.setattr(operations, "PENDING_SECONDS", 0.5)
    counted, late_times = ensureDeferred(pending()), []
    while not counted.called:
        before = time.monotonic()
        await pause(0)
        late_times.append(time.monotonic() - before)
    assert await counted == {"of-all": None, "of-nothing": 0, "of-one": None}
    assert len(late_times) > 10
    assert sorted(late_times)[len(late_times) // 2] < 0.05


@pytest_twisted.ensureDeferred
async def test_consumers_from_any_language(served: Served) -> None:
    first = (await served.call("GET", "/v1/channels/orders?consumer=billing")).json()
    assert first == {"records": [], "next": 1, "gap": None}
    put(served, "orders", b"1", b"2")
    put(served, "other", b"3")
    page = (await served.call("GET", "/v1/channels/orders?consumer=billing")).json()
    assert len(page["records"]) == 2
    again = (await served.call("GET", "/v1/channels/orders?consumer=billing")).json()
    assert again == page
    acked = await served.call("POST", "/v1/consumers/billing/ack", b'{"next":2}', JSON)
    assert (acked.status, acked.json()) == (200, {"owner": "socket", "name": "billing", "next": 2})
    rest = (await served.call("GET", "/v1/channels/orders?consumer=billing")).json()
    assert [record["offset"] for record in rest["records"]] == [2]
    listed = (await served.call("GET", "/v1/consumers")).json()["consumers"]
    assert listed == [
        {
            "owner": "socket",
            "name": "billing",
            "next": 2,
            "lag_records": 2,
            "pending_records": 1,
            "patterns": ["orders"],
        }
    ]
    other = await served.call("POST", "/v1/consumers/billing/ack", b'{"next":9,"log":"x"}', JSON)
    assert (other.status, other.json()["error"]) == (410, "gap")
    own = msgspec.json.encode({"next": 2, "log": served.node.log.id})
    assert (await served.call("POST", "/v1/consumers/billing/ack", own, JSON)).status == 200
    assert (await served.call("DELETE", "/v1/consumers/billing")).status == 204
    assert (await served.call("DELETE", "/v1/consumers/billing")).status == 404
    unknown = await served.call("POST", "/v1/consumers/nobody/ack", b'{"next":2}', JSON)
    assert unknown.status == 404
    for body in (b"{", b"{}", b'{"next":"x"}', b'{"next":-1}', b'{"next":1,"more":2}'):
        put(served, "orders", b"1")
        await served.call("GET", "/v1/channels/orders?consumer=billing")
        bad = await served.call("POST", "/v1/consumers/billing/ack", body, JSON)
        assert (bad.status, bad.json()["error"]) == (400, "malformed")
    short = await served.call("GET", "/v1/channels/orders?consumer=resume.tab")
    assert (short.status, short.json()["error"]) == (400, "malformed")


@pytest_twisted.ensureDeferred
async def test_event_stream_resumes_after_the_last_id(served: Served) -> None:
    need("curl")
    put(served, "orders", b'{\n"n":1}', b"2", b"3")

    def follow() -> str:
        command = ["curl", "-sN", "-m", "1", "--unix-socket", served.path]
        command += ["-H", "Accept: text/event-stream", "-H", "Last-Event-ID: 1"]
        done = subprocess.run([*command, "http://x/v1/channels/orders"], capture_output=True)
        return done.stdout.decode()

    text = await thread(follow)
    assert text.startswith("retry: ")
    ids = [line[4:] for line in text.splitlines() if line.startswith("id: ")]
    assert [id_.partition("@")[0] for id_ in ids] == ["1", "2", "3"]
    assert ids[2] == f"3@{served.node.log.epoch}"

    def all_of_it() -> str:
        command = ["curl", "-sN", "-m", "1", "--unix-socket", served.path]
        command += ["-H", "Accept: text/event-stream", "http://x/v1/channels/orders?from=earliest"]
        return subprocess.run(command, capture_output=True).stdout.decode()

    blocks = (await thread(all_of_it)).split("\n\n")
    first = [line[6:] for line in blocks[1].splitlines() if line.startswith("data: ")]
    assert json.loads("\n".join(first))["data"] == {"n": 1}
    await until(lambda: not served.api.streams)
    assert not served.node.subscriptions._followers


@pytest_twisted.ensureDeferred
async def test_an_event_stream_without_a_message_yet_has_an_id_to_resume_at(
    served: Served,
) -> None:
    """EventSource on a quiet channel lost what was published while it was reconnecting."""
    need("curl")
    put(served, "orders", b"1", b"2")

    def follow(*last: str) -> list[str]:
        command = ["curl", "-sN", "-m", "0.5", "--unix-socket", served.path]
        command += ["-H", "Accept: text/event-stream", *last, "http://x/v1/channels/alarms"]
        text = subprocess.run(command, capture_output=True).stdout.decode()
        return [line for line in text.splitlines() if line.startswith(("id: ", "data: "))]

    (first,) = await thread(follow)
    assert first == f"id: 2@{served.node.log.epoch}"
    put(served, "alarms", b'"fire"')
    got = await thread(lambda: follow("-H", f"Last-Event-ID: {first[4:]}"))
    assert got[0] == first
    assert got[1].startswith("id: 3@")
    assert "fire" in got[2]
    # Of a log that this one has nothing of: from its beginning.
    got = await thread(lambda: follow("-H", "Last-Event-ID: 900@another"))
    assert got[0].startswith("id: 0")
    assert "fire" in got[-1]


@pytest_twisted.ensureDeferred
async def test_events_as_page_and_stream(served: Served) -> None:
    need("curl")
    served.node.change("hub", "waiting", "ping-timeout")
    page = (await served.call("GET", "/v1/events")).json()
    assert [event["event"] for event in page["events"]] == ["link.waiting"]
    assert page["next"] == 2

    def follow() -> str:
        command = ["curl", "-sN", "-m", "1.5", "--unix-socket", served.path]
        command += ["-H", "Accept: text/event-stream", "http://x/v1/events"]
        return subprocess.run(command, capture_output=True).stdout.decode()

    following = thread(follow)
    await until(lambda: bool(served.api.streams))
    served.node.change("hub", "up")
    text = await following
    found = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
    assert [event["new"] for event in found] == ["waiting", "up"]
    await until(lambda: not served.node.events._watchers)


@pytest_twisted.ensureDeferred
async def test_status_outages_probes_and_metrics(served: Served) -> None:
    served.node.recorded.append(
        Outage("hub", "2026-11-21T02:00:00.000Z", "silence", 6.9, 12.0, 3, 40, 0.1)
    )
    status = (await served.call("GET", "/v1/status")).json()
    assert status["links"][0]["peer"] == "hub"
    assert (await served.call("GET", "/v1/outages?peer=hub")).json()["outages"][0]["attempts"] == 3
    history = (await served.call("GET", "/v1/peers/hub/history")).json()
    assert (history["peer"], history["step_seconds"]) == ("hub", 5.0)
    assert (history["silence_seconds"], history["sent_records"]) == ([1.0], [None])
    assert (await served.call("GET", "/v1/peers/nobody/history")).status == 404
    assert (await served.call("GET", "/healthz")).json()["ok"] is True
    assert (await served.call("GET", "/readyz")).status == 200
    served.node.change("hub", "waiting")
    ready = await served.call("GET", "/readyz")
    assert (ready.status, ready.json()) == (503, {"ready": False, "waiting_for": ["hub"]})
    own = await served.keyed("GET", "/readyz", key=None)
    assert (own.status, own.json()["waiting_for"]) == (503, ["hub"])
    foreign = await served.keyed("GET", "/readyz", key=None, Host="balancer.example:80")
    assert (foreign.status, foreign.json()) == (503, {"ready": False, "waiting_for": []})
    alive = await served.keyed("GET", "/healthz", key=None, Host="balancer.example")
    assert (alive.status, alive.json()["ok"]) == (200, True)
    for fell in served.node.on_fell:
        fell("hub", "silence", 7.0)
    for rose in served.node.on_rose:
        rose("hub", 14.0)
    text = (await served.call("GET", "/metrics")).body.decode()
    for line in (
        'linkd_link_up{peer="hub"} 0.0',
        'linkd_link_outages_total{peer="hub",reason="silence"} 1',
        'linkd_link_down_seconds_bucket{peer="hub",le="15.0"} 1',
        'linkd_records_sent_total{peer="hub"} 5.0',
        "linkd_log_bytes ",
        "linkd_log_commit_seconds_bucket",
    ):
        assert line in text


@pytest_twisted.ensureDeferred
async def test_acting_on_links_and_log(served: Served) -> None:
    assert (await served.call("POST", "/v1/peers/hub/kick")).status == 200
    assert served.node.kicked == ["hub"]
    assert (await served.call("POST", "/v1/peers/nobody/kick")).status == 404
    drill = "/v1/peers/hub/drill"
    began = b'{"drill":"blackhole","state":"started","seconds":30}'
    ended = b'{"drill":"blackhole","state":"ended","verdict":"pass"}'
    assert (await served.call("POST", drill, began, JSON)).status == 204
    assert (await served.call("POST", drill, ended, JSON)).status == 204
    assert [event for event, _ in served.node.told] == ["drill.started", "drill.ended"]
    assert (await served.call("POST", "/v1/peers/nobody/drill", began, JSON)).status == 404
    assert (await served.call("POST", drill, b'{"drill":"X","state":"ended"}', JSON)).status == 400
    assert (await served.keyed("POST", drill, began, JSON)).status == 404, "on the socket only"
    told = await served.call("POST", "/v1/peers/hub/resync", b'{"confirmed":false}', JSON)
    assert told.json() == {"peer": "hub", "message": "nothing would be sent again", "done": False}
    forget = "/v1/peers/old/forget"
    would = await served.call("POST", forget, b'{"confirmed":false}', JSON)
    assert would.json() == {"peer": "old", "records": 12, "bytes": 345, "done": False}
    assert (await served.call("POST", forget, b'{"confirmed":true}', JSON)).json()["done"] is True
    assert (await served.call("POST", forget, b'{"confirmed":true}', JSON)).status == 404
    configured = await served.call("POST", "/v1/peers/hub/forget", b'{"confirmed":true}', JSON)
    assert (configured.status, configured.json()["error"]) == (409, "diverged")
    put(served, "orders", b"1")
    put(served, "orders", b"2")
    would = await served.call("POST", "/v1/log/trim", b'{"before":2}', JSON)
    assert would.json() == {"records": 1, "owed": 1, "done": False}
    assert served.node.log.first == 1
    did = await served.call("POST", "/v1/log/trim", b'{"before":2,"confirmed":true}', JSON)
    assert did.json()["done"] is True
    assert served.node.log.first == 2


@pytest_twisted.ensureDeferred
async def test_unknown_paths_methods_and_queries(served: Served) -> None:
    assert (await served.call("GET", "/v1/nothing")).status == 404
    wrong = await served.call("PUT", "/v1/channels/orders", b"x")
    assert (wrong.status, wrong.headers["allow"]) == (405, "POST, GET")
    for query in ("from=x", "limit=0", "limit=10001", "wait=-1", "what=1", "from=1&from=2"):
        answer = await served.call("GET", f"/v1/channels/orders?{query}")
        assert (answer.status, answer.json()["error"]) == (400, "malformed")
    assert (await served.call("GET", "/v1/channels/or%ffders")).status == 400
    assert (await served.call("GET", "/v1/channels/orders%2F..%2Fx")).status == 400


@pytest_twisted.ensureDeferred
async def test_while_starting_and_stopping(served: Served) -> None:
    served.node.starting = True
    answer = await served.call("POST", "/v1/channels/orders", b"x")
    assert (answer.status, answer.json()["error"]) == (503, "unavailable")
    assert (await served.call("GET", "/readyz")).status == 503
    assert (await served.call("GET", "/v1/status")).status == 200


@pytest_twisted.ensureDeferred
async def test_files_of_the_dashboard(served: Served) -> None:
    page = await served.keyed("GET", "/", key=None)
    assert page.status == 200
    assert "script-src 'self'" in page.headers["content-security-policy"]
    script = await served.keyed("GET", "/linkd.js", key=None)
    assert script.headers["content-type"] == "text/javascript; charset=utf-8"
    known = await served.keyed("GET", "/linkd.js", key=None, If_None_Match=script.headers["etag"])
    assert (known.status, known.body) == (304, b"")
    module = await served.keyed("GET", "/linkd.mjs", key=None)
    assert (module.body, module.headers["content-type"]) == (
        script.body,
        script.headers["content-type"],
    )
    for target in ("/linkd.d.ts", "/linkd.d.mts"):
        types = await served.keyed("GET", target, key=None)
        assert types.headers["content-type"] == "text/plain; charset=utf-8"
        assert b"export declare function connect(" in types.body
    head = await served.keyed("HEAD", "/linkd.js", key=None)
    assert (head.status, head.body) == (200, b"")
    for target in ("/dashboard/nothing.js", "/dashboard/..%2fserver.py", "/dashboard/README.md"):
        assert (await served.keyed("GET", target, key=None)).status == 404


@pytest_twisted.ensureDeferred
async def test_too_large_and_half_requests(served: Served) -> None:
    big = await served.keyed("POST", "/v1/channels/orders", b"x" * (17 * 1024 * 1024 + 5))
    assert (big.status, big.json()["error"]) == (413, "body-too-large")
    head = b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 20_000 + b"\r\n\r\n"
    assert b"400 Bad Request" in await thread(lambda: served.raw(head))
    many = b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 200 + b"\r\n"
    assert b"400 Bad Request" in await thread(lambda: served.raw(many))
    assert b"400 Bad Request" in await thread(lambda: served.raw(b"\x16\x03\x01\x00\xff\r\n"))
    assert (await served.call("GET", "/v1/status")).status == 200


@pytest_twisted.ensureDeferred
async def test_slow_heads_are_cut(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("linkd.api.site.HEAD_SECONDS", 0.3)
    began = time.monotonic()
    try:
        got = await thread(lambda: served.raw(b"GET /v1/sta"))
    except ConnectionResetError:
        got = b""
    assert got == b""
    assert 0.25 < time.monotonic() - began < 5.0


@pytest_twisted.ensureDeferred
async def test_stop_ends_what_waits(tmp_path: Path) -> None:
    served = Served(tmp_path)
    waiting = served.call("GET", "/v1/channels/orders?wait=20")
    outcome: list[Any] = []
    waiting.addBoth(outcome.append)
    await until(lambda: bool(served.node.subscriptions._followers))
    began = time.monotonic()
    await served.stop()
    assert time.monotonic() - began < 3.5
    await until(lambda: bool(outcome))
    assert not Path(served.path).exists()


@pytest_twisted.ensureDeferred
async def test_keys_decide_over_tcp(served: Served) -> None:
    none = await served.keyed("GET", "/v1/status", key=None)
    assert (none.status, none.headers["www-authenticate"]) == (401, "Bearer")
    assert (await served.keyed("GET", "/v1/status", key="w" * 40)).status == 401
    assert (await served.keyed("GET", "/v1/status", key=KEY)).status == 200
    allowed = await served.keyed("POST", "/v1/channels/orders", b"x", key=SHOP_KEY)
    assert allowed.status == 201
    for method, target in (
        ("POST", "/v1/channels/other"),
        ("GET", "/v1/channels/other"),
        ("GET", "/v1/channels/%3E"),
        ("GET", "/v1/channels/news.%3E"),
    ):
        answer = await served.keyed(method, target, b"x", key=SHOP_KEY)
        assert (answer.status, answer.json()["error"]) == (403, "channel-refused")
    assert (await served.keyed("GET", "/v1/channels/news.%2A", key=SHOP_KEY)).status == 200
    kicked = await served.keyed("POST", "/v1/peers/hub/kick", key=SHOP_KEY)
    assert (kicked.status, kicked.json()["error"]) == (403, "forbidden")
    put(served, "other", b"1")
    assert (await served.keyed("GET", "/v1/records/2", key=SHOP_KEY)).status == 403


@pytest_twisted.ensureDeferred
async def test_wrong_keys_are_limited_and_right_ones_are_not(served: Served) -> None:
    statuses = [(await served.keyed("GET", "/v1/status", key=f"{n:040}")).status for n in range(25)]
    assert statuses[:20] == [401] * 20
    assert statuses[-1] == 429
    assert (await served.keyed("GET", "/v1/status", key=KEY)).status == 200


@pytest_twisted.ensureDeferred
async def test_hosts_and_origins(served: Served) -> None:
    rebound = await served.keyed("GET", "/v1/status", Host="evil.example:80")
    assert (rebound.status, rebound.json()["error"]) == (421, "misdirected")
    assert (await served.keyed("GET", "/v1/status", Host="localhost:1")).status == 200
    foreign = await served.keyed("GET", "/v1/status", Origin="https://evil.example")
    assert (foreign.status, foreign.json()["error"]) == (403, "origin-refused")
    assert (await served.keyed("GET", "/v1/status", Origin="null")).status == 403
    own = await served.keyed("GET", "/v1/status", Origin=f"http://127.0.0.1:{served.port}")
    assert own.status == 200
    image = await served.keyed("GET", "/v1/status", Sec_Fetch_Site="cross-site")
    assert image.status == 403
    asked = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors"}
    assert (await served.keyed("GET", "/healthz", key=None, **asked)).status == 200
    assert (await served.keyed("POST", "/healthz", key=None, **asked)).status == 403


@pytest_twisted.ensureDeferred
async def test_pages_of_allowed_origins_may_call(tmp_path: Path) -> None:
    served = Served(tmp_path, origins=("https://app.example",))
    try:
        asked = await served.keyed(
            "OPTIONS", "/v1/status", key=None, Origin="https://app.example",
            Access_Control_Request_Method="GET",
        )  # fmt: skip
        assert asked.status == 204
        assert asked.headers["access-control-allow-origin"] == "https://app.example"
        answer = await served.keyed("GET", "/v1/status", Origin="https://app.example")
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        other = await served.keyed("OPTIONS", "/v1/status", key=None, Origin="https://b.example")
        assert other.status == 403
    finally:
        await served.stop()


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    ("origin", "is_secure"),
    [("https://app.example", True), ("HTTPS://app.example", True), ("http://app.example", False)],
)
async def test_a_session_behind_a_proxy_that_ends_tls_is_for_https_alone(
    tmp_path: Path, origin: str, is_secure: bool
) -> None:
    served = Served(tmp_path, origins=("https://app.example", "http://app.example"))
    try:
        given = {"X_Forwarded_Proto": "https"}  # anybody may send it
        opened = await served.keyed("POST", "/v1/session", **given, Origin=origin)
        assert opened.status == 204
        assert opened.headers["set-cookie"].endswith("; Secure") is is_secure
        without = await served.keyed("POST", "/v1/session", **given)
        assert "Secure" not in without.headers["set-cookie"]
    finally:
        await served.stop()


@pytest_twisted.ensureDeferred
async def test_no_key_is_required_where_configured(tmp_path: Path) -> None:
    served = Served(tmp_path, require_key=False)
    try:
        assert (await served.keyed("POST", "/v1/channels/orders", b"x", key=None)).status == 201
        assert (await served.keyed("GET", "/v1/status", key="w" * 40)).status == 401
    finally:
        await served.stop()


@pytest_twisted.ensureDeferred
async def test_tokens_and_sessions(served: Served) -> None:
    made = await served.keyed("POST", "/v1/token", key=SHOP_KEY)
    assert made.status == 201
    assert made.json()["expires_seconds"] == 30.0
    token = made.json()["token"]
    assert (await served.keyed("GET", "/v1/status", key=token)).status == 401
    opened = await served.keyed("POST", "/v1/session", key=token)
    assert opened.status == 204
    cookie = opened.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert (await served.keyed("POST", "/v1/session", key=token)).status == 401
    mine = cookie.split(";")[0]
    assert (await served.keyed("GET", "/v1/status", key=None, Cookie=mine)).status == 200
    refused = await served.keyed("GET", "/v1/channels/other", key=None, Cookie=mine)
    assert refused.status == 403
    forged = mine[:-3] + "AAA"
    assert (await served.keyed("GET", "/v1/status", key=None, Cookie=forged)).status == 401
    assert (await served.keyed("POST", "/v1/token", key=None, Cookie=mine)).status == 403
