"""The last hour of each link: steps of 5 s, bounded, with what is not known as null."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from linkd.node.history import MOST_LINKS, STEPS, History


class Link:
    """As much of a link's driver as a history looks at."""

    def __init__(self, peer: str = "hub") -> None:
        self.peer = peer
        self.silence = 0.0
        self.connection: Any = SimpleNamespace(
            silence_seconds=lambda: self.silence, rtt_seconds=0.04
        )
        self.outbound = SimpleNamespace(sent_records=0, owed_records=0)
        self.inbound = SimpleNamespace(received_records=0)
        self.replicator = SimpleNamespace(
            session=SimpleNamespace(outbound=self.outbound, inbound=self.inbound)
        )


def seconds(history: History, links: list[Any], begin: float, count: int) -> None:
    for second in range(count):
        history.second(links, begin + second)


def test_a_step_has_its_longest_silence_and_its_records() -> None:
    history, link = History(), Link()
    history.second([link], 100.0)  # type: ignore[list-item]
    for second, silence in enumerate((4.5, 0.2, 1.2, 2.2, 3.2)):
        link.silence = silence
        link.outbound.sent_records += 10
        link.inbound.received_records += 1
        link.outbound.owed_records = 7
        history.second([link], 101.0 + second)  # type: ignore[list-item]
    found = history.of("hub", 1_000_000.0)
    assert found.step_seconds == 5.0
    assert found.end == "1970-01-12T13:46:40.000Z"
    for series in (found.rtt_seconds, found.silence_seconds, found.sent_records):
        assert len(series) == STEPS
    assert found.silence_seconds[-2:] == [0.0, 4.5]
    assert found.rtt_seconds[-1] == pytest.approx(0.04)
    assert found.backlog_records[-1] == 7
    assert found.sent_records[-3:] == [None, None, 50]
    assert found.received_records[-1] == 5


def test_what_is_not_known_is_null() -> None:
    history, link = History(), Link()
    seconds(history, [link], 0.0, 11)
    link.connection = None
    seconds(history, [link], 11.0, 5)
    assert history.of("hub", 0.0).silence_seconds[-3:] == [0.0, 0.0, None]
    seconds(history, [link], 16.0, 5)
    found = history.of("hub", 0.0)
    assert found.silence_seconds[-3:] == [0.0, None, None]
    assert found.rtt_seconds[-1] is None
    assert found.sent_records[-1] == 0
    history.second([link], 100.0)  # type: ignore[list-item]  # frozen for 80 s
    found = history.of("hub", 0.0)
    assert found.backlog_records[-1] == 0
    assert found.backlog_records[-16:-1] == [None] * 15
    link.outbound.sent_records = -1  # a new link counts from the beginning
    history.second([link], 105.0)  # type: ignore[list-item]
    assert history.of("hub", 0.0).sent_records[-1] is None
    history.second([link], 105.0 + 10 * 3600.0)  # type: ignore[list-item]
    assert history.of("hub", 0.0).backlog_records[:-1] == [None] * (STEPS - 1)


def test_it_is_bounded() -> None:
    history = History()
    links = [Link(f"edge-{number}") for number in range(MOST_LINKS + 10)]
    seconds(history, links, 0.0, 21)
    assert history.of("edge-0", 0.0).backlog_records[-1] == 0
    assert history.of(f"edge-{MOST_LINKS}", 0.0).backlog_records == []
    seconds(history, links[1:], 21.0, 10)
    assert history.of("edge-0", 0.0).backlog_records == []
    assert history.of(f"edge-{MOST_LINKS}", 0.0).backlog_records[-1] == 0


def test_nothing_is_known_before_the_first_second() -> None:
    assert History().of("hub", 0.0).rtt_seconds == []
