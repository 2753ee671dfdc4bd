"""Addresses, delays, observables, bodies, records."""

from __future__ import annotations

import asyncio
import gc
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import globalLogPublisher

from linkd.client.aio import Enqueued
from linkd.client.connection import RetryDelays
from linkd.client.errors import Closed
from linkd.client.options import Observable, Stored, address
from linkd.client.record import RecordContext, batches, decode_value, encode_value, unpack
from linkd.client.twisted import TwistedLoop
from linkd.errors import BadRecord, LogFull
from linkd.protocol.client import Deliver, Published
from linkd.protocol.json import rfc3339
from linkd.protocol.records import MAX_BATCH_BYTES, EncodedRecord, decode_records, encode_records

DEEP = b"[" * 5000 + b"]" * 5000
"""JSON that is deeper than a reader of JSON goes."""


def test_an_address_is_a_socket_or_a_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LINKD_SOCKET", raising=False)
    assert address().socket == "/run/linkd/linkd.sock"
    monkeypatch.setenv("LINKD_SOCKET", "/tmp/x.sock")
    assert str(address()) == "/tmp/x.sock"
    assert address(Path("/a/b")).url == "ws://localhost/v1/stream"
    assert address("unix:///a/b").socket == "/a/b"
    there = address("https://hub.example.net/linkd/")
    assert (there.host, there.port, there.tls) == ("hub.example.net", 443, True)
    assert there.url == "wss://hub.example.net/linkd/v1/stream"
    assert address("http://[::1]:9480").url == "ws://[::1]:9480/v1/stream"
    assert str(address("ws://h:1")) == "ws://h:1/v1/stream"
    for wrong in ("ftp://x", "http://"):
        with pytest.raises(ValueError, match="expected a socket's path"):
            address(wrong)


def test_delays_double_up_to_the_cap_and_start_anew_after_a_stable_connection() -> None:
    backoff = RetryDelays(0.2, 15.0, stable_after=5.0)
    delays = [backoff.failed(0.5) for _ in range(9)]
    assert delays[:3] == [0.1, 0.2, 0.4]
    assert delays[-1] == 7.5
    assert backoff.lost(4.9, 0.5) == 7.5
    assert backoff.lost(5.0, 0.5) == 0.1
    assert backoff.failures == 1
    for _ in range(2000):
        backoff.failed(0.999)
    assert backoff.failed(0.0) == 0.0


def test_observers_get_the_present_value_and_each_change() -> None:
    value, heard = Observable(1), list[int]()
    unsubscribe = value.subscribe(heard.append)
    value.set(2)
    value.set(2)
    unsubscribe()
    unsubscribe()
    value.set(3)
    assert (heard, value.value) == ([1, 2], 3)


numbers = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(json_values | st.binary())
def test_a_value_comes_back_as_it_was(value: object) -> None:
    body, content_type = encode_value(value)
    assert decode_value(body, content_type) == value


def test_bodies_that_are_not_what_they_say_stay_bytes() -> None:
    assert decode_value(b"{", "application/json") == b"{"
    assert decode_value(b"\xff", "text/plain") == b"\xff"
    assert decode_value(b'"\xff"', "application/json") == b'"\xff"'
    assert decode_value(DEEP, "application/json") == DEEP
    assert decode_value(b"5", "Application/JSON; charset=utf-8") == 5
    assert encode_value(bytearray(b"x")) == (b"x", "")
    for wrong in (object(), {1j}):
        with pytest.raises(BadRecord):
            encode_value(wrong)
    assert math.isnan(1e400 - 1e400)
    assert encode_value(math.inf)[0] == b"null"


@given(
    st.lists(st.binary(max_size=40_000), max_size=12), st.sampled_from(["", "created", "é" * 127])
)
def test_batches_hold_every_record_in_order_within_bounds(bodies: list[bytes], type_: str) -> None:
    made = list(batches(bodies, type_, encode_value))
    for count, records in made:
        assert count == 1 or len(records) <= MAX_BATCH_BYTES
    found = [record for count, records in made for record in decode_records(records, count)]
    assert [record.body for record in found] == bodies
    assert all(record.type == type_ for record in found)


@pytest.mark.parametrize(
    ("body", "content_type", "shown"),
    [
        (b'{"a": 1}', "application/json", b'"data":{"a": 1}'),
        (b'{"a":1}', "", b'"data":{"a":1}'),
        (b"[1]", "text/plain", b'"text":"[1]"'),
        (b"{no", "", b'"text":"{no"'),
        (b"\xff", "", b'"base64":"/w=="'),
        (b'["\xff"]', "", b'"base64":"WyL/Il0="'),
        pytest.param(DEEP, "application/json", b'"text":"[[[[', id="deep"),
    ],
)
def test_a_record_as_json(body: bytes, content_type: str, shown: bytes) -> None:
    async def ack(_: int) -> None:
        """Not used."""

    records = encode_records([EncodedRecord(b""), EncodedRecord(body, "t", "i", content_type)])
    frame = Deliver(1, 6, "a", 2, records, 1_763_690_400.1234, "edge-1", 3)
    (record,) = unpack(frame, RecordContext(decode_value, ack), skip=1)
    said = record.to_json()
    assert said.startswith(b'{"offset":7,"channel":"a","type":"t","id":"i","origin":"edge-1"')
    assert b'"origin_offset":4' in said
    assert b'"time":"2025-11-21T02:00:00.123Z"' in said
    assert shown in said
    assert (record.offset, record.origin_offset, record.body, record.id) == (7, 4, body, "i")
    if body == DEEP:
        with pytest.raises(ValueError, match="deep"):
            record.json()


def test_stamps_have_milliseconds() -> None:
    assert rfc3339(0.0) == "1970-01-01T00:00:00.000Z"


@pytest.mark.parametrize(
    "wrong", ["", "127.0.0.1:9480", "hub.example.net:80", "[::1]:9480", "a\0b"]
)
def test_what_is_plainly_no_path_is_no_address(wrong: str) -> None:
    with pytest.raises(ValueError, match="expected a socket"):
        address(wrong)


@pytest.mark.parametrize("is_taken", [False, True])
def test_an_error_that_nobody_awaits_is_no_unhandled_one(is_taken: bool) -> None:
    """But what a program adds to the Deferred is handled or logged, as everywhere in Twisted."""
    logged: list[object] = []
    globalLogPublisher.addObserver(logged.append)
    try:
        loop = TwistedLoop(None)
        waiting = loop.promise()
        if is_taken:
            waiting.addCallback(lambda _: None)
        loop.settle(waiting, Closed("the node was closed"))
        loop.settle(waiting, None)
        del waiting
        gc.collect()
    finally:
        globalLogPublisher.removeObserver(logged.append)
    assert bool(logged) is is_taken


def test_an_error_that_is_awaited_late_is_raised() -> None:
    loop = TwistedLoop(None)
    waiting = loop.promise()
    loop.settle(waiting, Closed("the node was closed"))
    failed: list[Exception] = []
    waiting.addErrback(lambda failure: failed.append(failure.value))
    assert [type(each) for each in failed] == [Closed]


def test_what_is_stored_of_many_is_known_also_where_others_were_refused() -> None:
    async def check() -> None:
        loop = asyncio.get_running_loop()
        outcomes: list[asyncio.Future[Published]] = [loop.create_future() for _ in range(4)]
        enqueued = Enqueued([(10, outcome) for outcome in outcomes])
        outcomes[0].set_result(Published(1, 1, 10))
        outcomes[1].set_exception(LogFull("full"))
        waiting = asyncio.ensure_future(asyncio.wait_for(enqueued, 0))
        with pytest.raises(TimeoutError):
            await waiting
        assert (enqueued.stored, enqueued.done()) == (Stored(1, 10, 10), False)
        outcomes[2].set_result(Published(3, 21, 0, duplicate=True))  # sent again after a reconnect
        outcomes[3].set_exception(Closed("closed"))
        with pytest.raises(LogFull):
            await enqueued
        assert enqueued.stored == Stored(1, 30, 20)

    asyncio.run(check())
