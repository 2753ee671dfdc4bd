"""Numbered messages: what counts as lost, doubled or out of order. What a watch makes of a
daemon's words, and what is planned on a running pair.
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import pytest

from linkd.client.errors import NoDaemon, Refused
from linkd.client.http import Answer
from linkd.drill import monitor
from linkd.drill.deadman import DrillFailed
from linkd.drill.live import Request, plan
from linkd.drill.monitor import GONE, DaemonClient, LinkMonitor, Publisher
from linkd.drill.runner import Course
from linkd.status import LinkStatus, LogStatus, NodeStatus, Outage


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
    assert monitor.received_numbers("/socket", "orders", "mark") == [0, 1]


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


def link(state: str, since: float, **more: Any) -> LinkStatus:
    fields: dict[str, Any] = {
        "peer": "hub", "role": "dialer", "state": state, "since_seconds": since,
        "generation": None, "address": "192.0.2.1:9443", "rtt_seconds": None,
        "silence_seconds": None, "backlog_records": 0, "backlog_bytes": 0,
        "backlog_age_seconds": None, "sent_records": 0, "received_records": 0, "attempts": 0,
        "next_attempt_seconds": None, "reason": None, "detail": None, "peer_version": None,
        "certificate_expires_seconds": None,
    }  # fmt: skip
    return LinkStatus(**{**fields, **more})


def outage(began: str) -> Outage:
    return Outage("hub", began, "silence", 10.0, 12.0, 3, 40, 0.1)


class Scripted(DaemonClient):
    """Says what it is told to say; None: it does not answer."""

    def __init__(self, *links: LinkStatus | None) -> None:
        super().__init__("/nowhere")
        self.links = list(links)
        self.kept = [outage("old")]

    def status(self) -> NodeStatus:
        now = self.links.pop(0)
        if now is None:
            raise NoDaemon("no daemon")
        return NodeStatus("edge", "1", 1.0, LogStatus("L", 1, 1, 0, 1), [], [now])

    def outages(self, peer: str) -> list[Outage]:
        return self.kept


def watched(*links: LinkStatus | None) -> tuple[LinkMonitor, Scripted]:
    daemon = Scripted(*links)
    watch = LinkMonitor("edge", daemon, "hub")
    for _ in links:
        watch._look()
    return watch, daemon


def test_states_become_spans_without_holes() -> None:
    watch, _ = watched(link("up", 100.0), link("up", 100.1), link("waiting", 0.0), link("up", 0.0))
    assert [span.state for span in watch.spans] == ["up", "waiting", "up"]
    for before, after in zip(watch.spans, watch.spans[1:], strict=False):
        assert before.ended == after.began
    assert watch.role == "dialer"


def test_a_state_begins_when_the_daemon_says_not_when_it_was_asked() -> None:
    watch, daemon = watched(link("waiting", 0.0))
    time.sleep(0.3)
    daemon.links.append(link("up", 0.2))
    watch._look()
    since = watch.up_since()
    assert since is not None
    assert 0.19 < time.monotonic() - since < 0.3
    assert watch.spans[0].ended == since


def test_a_silent_daemon_is_gone() -> None:
    watch, _ = watched(link("up", 5.0), None)
    assert watch.spans[-1].state == GONE
    assert not watch.up
    assert watch.up_since() is None


def test_reasons_count_only_while_the_link_is_down() -> None:
    watch, _ = watched(link("up", 1.0, reason="closed"), link("waiting", 0.0, reason="dns"))
    assert watch.reasons == {"dns"}


def test_only_outages_of_the_drill_count() -> None:
    watch, daemon = watched(link("up", 1.0))
    assert watch.outages() == []
    daemon.kept = [outage("old"), outage("new")]
    assert [one.began for one in watch.outages()] == ["new"]


def test_a_link_that_never_fell_has_no_return() -> None:
    watch, daemon = watched(link("up", 100.0))
    course = Course([watch], [], print)
    assert course.measure()[0].back_seconds is None
    daemon.links += [link("waiting", 0.0), link("up", 0.0)]
    watch._look()
    watch._look()
    back = course.measure()[0].back_seconds
    assert back is not None
    assert 0.0 <= back < 0.5


REQUEST = Request(kind="blackhole", peer="hub", seconds=30.0)


def test_a_plan_names_the_rules_and_changes_nothing() -> None:
    made = plan(REQUEST, Scripted(link("up", 9.0)))
    assert made.node == "edge"
    said = "\n".join(made.lines(REQUEST))
    assert "for 30 s" in said
    assert " -w 5 -I INPUT -p tcp -s 192.0.2.1 --sport 9443" in said
    assert f"linkd-drill:{made.token}" in said


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (link("waiting", 1.0), "is waiting: a drill needs it up"),
        (link("up", 1.0, peer="other"), "there is no peer 'hub' here; there is other"),
        (link("up", 1.0, address=None), "a drill needs it up"),
        (link("up", 1.0, role="listener"), "no connection with 192"),
    ],
)
def test_what_cannot_be_drilled_is_refused(now: LinkStatus, expected: str) -> None:
    with pytest.raises(DrillFailed, match=expected):
        plan(REQUEST, Scripted(now))
