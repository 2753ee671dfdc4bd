"""Acks are paced: the first after a pause at once, then 20 ms or 1 MiB apart."""

from __future__ import annotations

from twisted.internet.task import Clock

from linkd.node.replicator import ACK_BYTES, AckScheduler


def paced() -> tuple[Clock, list[float], AckScheduler]:
    clock, sent = Clock(), list[float]()
    return clock, sent, AckScheduler(clock, lambda: sent.append(round(clock.seconds(), 4)))


def test_the_first_after_a_pause_goes_in_the_same_turn_and_the_next_20_ms_later() -> None:
    clock, sent, acks = paced()
    clock.advance(5.0)
    acks.stored(10)
    acks.stored(10)
    assert sent == []
    clock.advance(0)
    assert sent == [5.0]
    clock.advance(0.005)
    for _ in range(3):
        acks.stored(10)
    clock.pump([0.005] * 5)
    assert sent == [5.0, 5.02]
    clock.advance(1.0)
    acks.stored(10)
    clock.advance(0)
    assert len(sent) == 3


def test_a_mebibyte_does_not_wait_and_what_comes_behind_it_does() -> None:
    clock, sent, acks = paced()
    acks.stored(1)
    clock.advance(0)
    acks.stored(ACK_BYTES - 1)
    assert len(sent) == 1
    acks.stored(1)
    assert len(sent) == 2
    acks.stored(1)
    assert len(sent) == 2
    clock.pump([0.01] * 3)
    assert len(sent) == 3
