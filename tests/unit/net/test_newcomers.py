"""Bounds on newcomers, look-ups that share their work, frames, and word of network changes."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from random import Random
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.task import Clock

from linkd.config import LimitSettings
from linkd.core.backoff import Backoff
from linkd.net.admission import ConnectionLimiter
from linkd.net.connect import Resolver, interleave
from linkd.net.http_head import has_controls, parse_head, usual_upgrade
from linkd.net.linux import NetworkMonitor
from linkd.net.websocket import MESSAGE, apply_mask, put, take
from linkd.protocol.peer import MAX_MESSAGE_BYTES as MOST


def test_those_sent_away_are_told_to_come_at_the_rate() -> None:
    admission = ConnectionLimiter(
        LimitSettings(handshakes_per_second=10.0, handshakes_per_second_per_address=1000.0)
    )
    waits = [admission.ask(f"a{number}", 100.0) for number in range(30)]
    assert waits[:10] == [None] * 10
    seconds = [wait.seconds for wait in waits[10:] if wait is not None]
    assert len(seconds) == 20
    assert seconds == sorted(seconds)
    assert seconds[-1] == pytest.approx(2.0 * 2 / 3, abs=0.2)
    assert admission.ask("later", 103.1) is None


def test_a_crowd_is_let_in_at_about_the_rate_and_asks_about_twice_each() -> None:
    rate, count, rng = 200.0, 5_000, Random(1)
    admission = ConnectionLimiter(
        LimitSettings(handshakes_per_second=rate, handshakes_per_second_per_address=1000.0)
    )
    backoff = Backoff(15.0, 5.0, rng.random)
    coming = [(rng.random(), number) for number in range(count)]
    heapify(coming)
    attempts, now = 0, 0.0
    while coming:
        now, number = heappop(coming)
        attempts += 1
        wait = admission.ask(f"a{number}", now)
        if wait is not None:
            told = max(1, round(wait.seconds))  # as the header has it
            heappush(coming, (now + backoff.busy(told), number))
    assert count / rate <= now + 1.0 <= 1.35 * count / rate
    assert attempts <= 2.1 * count


def test_one_look_up_serves_all_who_wait_and_old_answers_serve_after_a_quarter_second() -> None:
    clock, answers = Clock(), [Deferred[list[str]](), Deferred[list[str]]()]
    asked: list[str] = []

    def lookup(host: str) -> Deferred[list[str]]:
        asked.append(host)
        return answers[len(asked) - 1]

    resolver = Resolver(clock, lookup)
    got: list[Any] = []
    for _ in range(3):
        resolver.resolve("hub.example.net").addCallback(got.append)
    assert len(asked) == 1
    answers[0].callback(["192.0.2.1"])
    assert got == [["192.0.2.1"]] * 3
    resolver.resolve("hub.example.net").addCallback(got.append)
    gone = resolver.resolve("hub.example.net")
    gone.addErrback(lambda failure: failure.trap(CancelledError))
    gone.cancel()
    clock.advance(0.249)
    assert len(got) == 3
    clock.advance(0.002)
    assert len(got) == 4
    answers[1].callback(["192.0.2.2"])
    assert clock.getDelayedCalls() == []


def test_a_name_that_never_had_an_address_fails() -> None:
    for error in (OSError("no such name"), OSError(-2, "no such name")):
        resolver = Resolver(Clock(), lambda _, error=error: fail(error))
        problems: list[Any] = []
        resolver.resolve("none.example").addErrback(problems.append)
        assert str(problems[0].value).endswith("none.example could not be looked up: no such name")


def test_families_take_turns() -> None:
    assert interleave(["::1", "::2", "192.0.2.1", "::1"]) == ["::1", "192.0.2.1", "::2"]
    assert interleave([]) == []


@pytest.mark.parametrize("masked", [0, 0x80])
@pytest.mark.parametrize("size", [0, 1, 125, 126, 1535, 1536, 65_535, 65_536, 131_072])
def test_frames_come_back_as_they_were_put(masked: int, size: int) -> None:
    payload = bytes(number % 251 for number in range(size))
    whole = b"".join(put(MESSAGE, payload, masked))
    assert take(b"??" + whole + b"rest", 2, masked, MOST) == (MESSAGE, payload, 2 + len(whole))
    for cut in (0, 1, 2, 5, len(whole) - 1):
        if cut >= len(whole):
            continue
        missing = take(whole[:cut], 0, masked, MOST)
        assert isinstance(missing, int)
        assert 0 < missing <= len(whole) - cut
        if cut == len(whole) - 1:
            assert missing == 1
    if size:
        assert take(whole, 0, masked ^ 0x80, MOST) == 0


def test_masking_twice_is_nothing() -> None:
    for size in (1, 7, 1536, 5000):
        masked = apply_mask(memoryview(b"x" * size), b"abcd")
        assert masked[:4] == bytes(x ^ y for x, y in zip(b"xxxx"[:size], b"abcd", strict=False))
        assert apply_mask(masked, b"abcd") == b"x" * size


def test_too_long_a_frame_is_not_waited_for() -> None:
    assert take(b"\x82\x7f" + (131_073).to_bytes(8, "big"), 0, 0, MOST) == 0


def test_heads_that_are_none() -> None:
    for raw in (
        b"",
        b"GET",
        b"GET / HTTP/1.1\r\nno colon",
        b"GET / HTTP/1.1\r\n: x",
        b"G / H\r\n a: b",
        b"POST / HTTP/1.1\r\nContent-Length: 0\r\ncontent-length: 5",
        b"POST / HTTP/1.1\r\nContent-Length: 0\r\nContent-Length: 0",
    ):
        assert parse_head(raw) is None


USUAL = (
    "GET /link HTTP/1.1\r\nUser-Agent: x\r\nHost: hub.example.net:9443\r\nUpgrade: WebSocket\r\n"
    "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    "Sec-WebSocket-Protocol: linkd.1\r\nSec-WebSocket-Version: 13\r\nLinkd-Node: edge"
)


def test_a_usual_upgrade_is_parsed_here() -> None:
    found = usual_upgrade(USUAL.encode())
    assert found is not None
    assert (found.path, found.protocols) == ("/link", ["linkd.1"])
    assert found.headers["linkd-node"] == "edge"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("GET", "HEAD"),
        ("/link", "/link?x=1"),
        ("HTTP/1.1", "HTTP/1.0"),
        ("Host: hub.example.net:9443", "X: y"),
        (":9443", ":x"),
        ("Upgrade: WebSocket", "Upgrade: h2c"),
        ("Connection: Upgrade", "Connection: close"),
        ("ZQ==", "ZQ=!"),
        ("linkd.1", "linkd.1, linkd.1"),
        ("Version: 13", "Version: 8"),
        ("User-Agent: x", "Origin: null"),
        ("User-Agent: x", "Sec-WebSocket-Extensions: permessage-deflate"),
        ("User-Agent: x", "host: twice"),
        ("User-Agent: x", "no colon"),
    ],
)
def test_any_other_upgrade_is_left_to_autobahn(old: str, new: str) -> None:
    assert usual_upgrade(USUAL.replace(old, new).encode()) is None


@pytest.mark.parametrize(
    "control", ["\r", "\n", "\v", "\f", "\0", "\x1c", "\x1e", "\x7f", "\r\r\n"]
)
@pytest.mark.parametrize("place", ["User-Agent: x", "Linkd-Node: ed", "GET /li", "Ho"])
def test_a_head_with_control_characters_is_none(control: str, place: str) -> None:
    """Autobahn takes VT, FF and 0x1C to 0x1E for the end of a line, we took them for a value's."""
    raw = USUAL.replace(place, place + control, 1).encode("latin-1")
    assert raw != USUAL.encode()
    assert has_controls(raw)
    assert parse_head(raw) is None
    assert usual_upgrade(raw) is None


def test_tabs_and_letters_of_other_languages_are_no_control_characters() -> None:
    raw = USUAL.replace("User-Agent: x", "User-Agent:\tÅlesund").encode()
    assert not has_controls(raw)
    assert usual_upgrade(raw) is not None


def test_a_burst_of_network_changes_is_told_once() -> None:
    clock, told = Clock(), []
    watch = NetworkMonitor(clock, lambda: told.append(clock.seconds()))
    for _ in range(5):
        watch.noticed()
        clock.advance(0.2)
    assert told == []
    clock.advance(0.3)
    assert len(told) == 1
    for _ in range(40):
        watch.noticed()
        clock.advance(0.1)
    assert 2 <= len(told) <= 4
    watch.stop()
    assert clock.getDelayedCalls() == []
