"""Numbered messages: what counts as lost, doubled or out of order."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from linkd.client.errors import NoDaemon, Refused
from linkd.client.http import Answer
from linkd.drill import monitor
from linkd.drill.monitor import Publisher


class Calls:
    """Answers each publish by the next of its answers."""

    def __init__(self, *answers: Exception | None) -> None:
        self.answers = iter(answers)
        self.made: list[tuple[str, bytes]] = []

    def __call__(
        self, path: str, method: str, target: str, body: bytes | None = None, *_: Any, **__: Any
    ) -> Answer:
        self.made.append((target, body or b""))
        answer = next(self.answers, None)
        if answer is not None:
            raise answer
        return Answer(201, {}, b'{"offset":1,"count":10}')


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch) -> Any:
    def run(*answers: Exception | None) -> Publisher:
        calls = Calls(*answers)
        monkeypatch.setattr(monitor, "call", calls)
        publisher = Publisher("/socket", "orders", "mark")
        for _ in answers:
            publisher._publish()
        return publisher

    return run


def test_all_there_once_in_order(publish: Any) -> None:
    counted = publish(None, None).judge(range(20))
    assert (counted.published, counted.lost, counted.twice, counted.out_of_order) == (20, 0, 0, 0)


def test_what_was_acknowledged_and_is_not_there_is_lost(publish: Any) -> None:
    numbers = [number for number in range(20) if number not in (3, 19)]
    assert publish(None, None).judge(numbers).lost == 2


def test_doubles_and_disorder_are_counted(publish: Any) -> None:
    counted = publish(None).judge([0, 1, 2, 2, 4, 3, 5, 6, 7, 8, 9])
    assert (counted.lost, counted.twice, counted.out_of_order) == (0, 1, 2)


def test_an_unanswered_call_is_in_doubt_and_not_lost(publish: Any) -> None:
    publisher = publish(NoDaemon("the daemon at /socket closed without an answer"), None)
    for numbers in (range(20), range(10, 20)):
        counted = publisher.judge(numbers)
        assert (counted.published, counted.doubtful, counted.lost) == (10, 10, 0)


def test_a_refused_or_impossible_call_is_refused(publish: Any) -> None:
    full = Refused("log-full", "no room", 507)
    nobody = NoDaemon("no daemon at /socket: Connection refused")
    counted = publish(full, nobody, None).judge(range(20, 30))
    assert (counted.published, counted.refused, counted.doubtful, counted.lost) == (10, 20, 0, 0)


def test_pages_are_followed_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def record(offset: int, number: int, mark: str = "mark") -> str:
        return f'{{"offset":{offset},"data":{{"drill":"{mark}","n":{number}}}}}'

    pages = {
        1: f'{{"records":[{record(1, 0)},{record(2, 7, "other")}],"next":3,"gap":null}}',
        3: '{"records":[],"next":9,"gap":null}',
        9: f'{{"records":[{record(9, 1)},{{"offset":10,"text":"x"}}],"next":11,"gap":null}}',
        11: '{"records":[],"next":11,"gap":null}',
    }

    def call(path: str, method: str, target: str, **_: Any) -> Answer:
        position = int(target.partition("from=")[2].partition("&")[0])
        return Answer(200, {}, pages[position].encode())

    monkeypatch.setattr(monitor, "call", call)
    assert monitor.arrived("/socket", "orders", "mark") == [0, 1]


def test_the_thread_ends_when_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = Calls(*itertools.repeat(None, 1000))
    monkeypatch.setattr(monitor, "call", calls)
    publisher = Publisher(str(tmp_path), "orders", "mark")
    publisher.start()
    while len(calls.made) < 2:
        pass
    publisher.end()
    assert not publisher.is_alive()
    assert publisher.published == 10 * len(calls.made)
