"""The bus: who is there, what is taken and what is refused, and when it is away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from twisted.internet.task import Clock

from linkd import events
from linkd.config.settings import ClusterSettings
from linkd.errors import ConfigError
from linkd.node import bus as module
from linkd.node.bus import SILENT_SECONDS, Bus, Hello, Sealed, inspect_bus, open_connector
from linkd.protocol.peer import Volatile
from tests.support.fake_redis import FakeRedis, Instance, SharedStores


class Lab:
    """Instances on one bus."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.redis = FakeRedis(self.clock)
        self.stores = SharedStores()
        self.instances: list[Instance] = []

    def start(self, log: str = "log-1", stores: SharedStores | None = None) -> Instance:
        """Start another instance."""
        one = Instance(self.redis, stores or self.stores, log)
        self.instances.append(one)
        one.start()
        self.run(0.5)
        return one

    def run(self, seconds: float) -> None:
        """Let time pass."""
        for _ in range(int(seconds * 100)):
            self.clock.advance(0.01)


Seen = list[tuple[str, dict[str, Any]]]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    found: Seen = []
    monkeypatch.setattr(events, "emit", lambda event, **fields: found.append((event, fields)))
    return found


@pytest.fixture
def lab(seen: Seen) -> Lab:
    return Lab()


def message(sequence: int = 1, presence: bool = False) -> Volatile:
    return Volatile("chat", 1, b"", 0.0, None, "hub", "run", sequence, presence)


def test_two_instances_hear_each_other_and_not_themselves(lab: Lab, seen: Seen) -> None:
    a = lab.start()
    a.bus.send(message())  # nobody is there
    b = lab.start()
    a.bus.send(message(2))
    b.bus.send(message(3, presence=True))
    lab.run(0.1)
    assert b.got == [(message(2), a.word)]
    assert a.got == [(message(3, presence=True), b.word)]
    assert (a.sisters, b.sisters) == ([(b.word, True)], [(a.word, True)])
    assert [event for event, _ in seen] == ["bus.connected", "bus.connected"]
    assert not +a.bus.dropped  # type: ignore[operator]
    hellos = len(lab.redis.sent)
    lab.run(10.0)
    assert 19 <= len(lab.redis.sent) - hellos <= 21  # a hello a second each, and no more


def test_an_instance_that_dies_is_gone_after_some_seconds_and_one_that_ends_at_once(
    lab: Lab,
) -> None:
    a, b, c = lab.start(), lab.start(), lab.start()
    b.end.open = False
    lab.run(SILENT_SECONDS - 1.2)
    assert (b.word, False) not in a.sisters
    lab.run(2.2)
    assert a.sisters == [(b.word, True), (c.word, True), (b.word, False)]
    c.bus.stop()
    c.bus.send(message())
    c.bus.wake()
    lab.run(0.1)
    assert a.sisters[-1] == (c.word, False)
    lab.run(10.0)
    assert len(a.sisters) == 4
    b.end.open = True
    lab.run(2.0)
    assert a.sisters[-1] == (b.word, True)
    assert b.sisters[-1] == (a.word, True)


def test_a_frozen_instance_does_not_take_the_others_for_dead(lab: Lab) -> None:
    a, b = lab.start(), lab.start()
    lab.clock.advance(60.0)  # all at once: nothing came meanwhile
    lab.run(3.0)
    assert a.sisters == [(b.word, True)]
    assert b.sisters == [(a.word, True)]


def test_a_goodbye_of_a_stranger_changes_nothing(lab: Lab) -> None:
    a = lab.start()
    b = lab.start()
    b.bus.stop()
    c = lab.start()
    assert (b.word, True) not in c.sisters
    sealed = Sealed("log-1", "gone", 1, msgspec.Raw(msgspec.msgpack.encode(Hello((), True))))
    lab.redis.deliver(a.bus.seal(msgspec.msgpack.encode(sealed)))
    lab.run(0.1)
    assert c.sisters == [(a.word, True)]


def test_wake_ups_come_at_most_every_five_milliseconds(lab: Lab) -> None:
    a = lab.start()
    a.bus.wake()
    b = lab.start()
    began = len(lab.redis.sent)
    for _ in range(10):
        a.bus.wake()
    assert len(lab.redis.sent) == began + 1
    lab.run(0.02)
    assert len(lab.redis.sent) == began + 2
    assert b.woken == 2
    a.bus.wake()
    a.bus.wake()
    a.bus.stop()
    lab.run(1.0)
    assert b.woken == 3


def sent(lab: Lab, content: type) -> list[bytes]:
    """Return the messages on the bus with such content."""
    found = []
    for each in lab.redis.sent:
        sealed = msgspec.msgpack.decode(each[32:], type=Sealed)
        if isinstance(module._decode(sealed.content), content):
            found.append(each)
    return found


def refused(one: Instance) -> dict[str, int]:
    return {reason: count for reason, count in one.bus.dropped.items() if count}


def test_what_was_recorded_is_refused_at_those_who_had_it_and_at_new_ones(
    lab: Lab, seen: Seen
) -> None:
    a, b = lab.start(), lab.start()
    a.bus.send(message())
    lab.run(0.1)
    recorded = list(lab.redis.sent)
    [volatile] = sent(lab, Volatile)
    lab.redis.deliver(volatile)
    lab.run(0.1)
    assert len(b.got) == 1
    assert refused(b) == {"replayed": 1}
    assert seen[-1] == (
        "bus.refused",
        {"reason": "replayed", "detail": "a message on the bus has come before"},
    )
    a.end.open = False
    lab.run(7.0)  # a is dead, and comes back to nobody by its old words
    c = lab.start()
    for each in recorded:
        lab.redis.deliver(each)
    lab.run(3.0)
    lab.redis.deliver(volatile)
    lab.run(0.1)
    assert c.got == []
    assert (a.word, True) not in c.sisters
    assert b.sisters[-1] != (a.word, True)
    assert refused(c)["replayed"] >= 1


def test_an_instance_that_never_proves_that_it_hears_us_is_not_taken(lab: Lab, seen: Seen) -> None:
    a, b = lab.start(), lab.start()
    a.end.open = False
    c = lab.start()
    sent_before = len(seen)

    def speak(number: int) -> None:
        sealed = Sealed("log-1", "old", number, msgspec.Raw(module._encode(message(number))))
        lab.redis.deliver(b.bus.seal(module._encode(sealed)))
        lab.run(0.1)

    speak(1)
    assert len(seen) == sent_before  # it may have just started
    lab.run(2.0)
    speak(2)
    assert seen[-1][1]["reason"] == "unproven"
    assert refused(c) == {"unproven": 1}
    assert c.got == []


def test_what_is_forged_or_foreign_is_refused_counted_and_said_once_for_many(
    lab: Lab, seen: Seen
) -> None:
    a, b = lab.start(), lab.start()
    other = lab.start("log-2", SharedStores())
    lab.run(1.0)
    assert "foreign" in refused(a)
    assert "foreign" in refused(other)
    assert other.sisters == []
    thief = Bus("hub", "log-1", SharedStores().store(), lab.clock, lab.clock.callLater)  # type: ignore[arg-type]
    [good, *_] = [each for each in sent(lab, Hello) if b"log-1" in each]
    bad = [thief.seal(good[32:]), b"", b"\xc1" * 64, good[:-1], good[:40] + b"\0" + good[41:]]
    before, counts = len(seen), refused(b)
    for each in bad * 20:
        b.bus.arrived(each)
    lab.run(0.05)
    assert refused(b)["forged"] == counts.get("forged", 0) + 100
    reasons = [fields["reason"] for _, fields in seen[before:]]
    assert reasons.count("forged") == 1
    assert (a.got, b.got) == ([], [])
    assert a.sisters == [(b.word, True)]


def test_a_message_that_verifies_and_has_no_sense_is_refused(lab: Lab) -> None:
    a, b = lab.start(), lab.start()
    for content in (b"\xc1", b"\x91\xa3new"):
        sealed = Sealed("log-1", a.bus.run, 99, msgspec.Raw(content))
        b.bus.arrived(a.bus.seal(module._encode(sealed)[: -0 or None]))
    lab.run(0.1)
    assert refused(b) == {"forged": 2}


def test_without_a_key_nothing_verifies(lab: Lab) -> None:
    a = lab.start()
    fresh = Instance(lab.redis, lab.stores)
    fresh.bus.arrived(a.bus.seal(b"x"))
    lab.run(0.1)
    assert refused(fresh) == {"forged": 1}


def test_of_two_keys_made_at_once_all_take_the_last(lab: Lab) -> None:
    first, second = Instance(lab.redis, lab.stores), Instance(lab.redis, lab.stores)
    first.start()
    second.bus._cursors._rows.clear()  # it did not see the first one's yet
    second.start()
    first.bus._key_changed("trim", b"7")
    first.bus._key_changed("bus", None)
    lab.run(2.0)
    assert first.sisters == [(second.word, True)]
    assert second.sisters == [(first.word, True)]


def test_away_is_said_once_and_back_once(lab: Lab, seen: Seen) -> None:
    a, b = lab.start(), lab.start()
    del seen[:]
    lab.redis.open = False
    a.bus.failed("redis://lb: refused")
    a.bus.failed("redis://lb: no route")
    assert seen == [("bus.away", {"detail": "redis://lb: refused"})]
    assert "the bus is away (redis://lb: refused)" in str(a.warnings[-1])
    a.bus.send(message())
    a.bus.send(message(2, presence=True))
    assert refused(a) == {"away": 1}
    lab.run(6.0)
    assert a.sisters == [(b.word, True), (b.word, False)]
    lab.redis.open = True
    lab.run(2.0)
    assert [event for event, _ in seen] == ["bus.away", "bus.connected"]
    assert a.warnings[-1] is None
    assert a.sisters[-1] == (b.word, True)
    a.bus.stop()
    a.bus.failed("closed")
    assert [event for event, _ in seen] == ["bus.away", "bus.connected"]


def test_what_waits_is_bounded_on_the_way_out_and_in(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = lab.start(), lab.start()
    a.end.room = False
    a.bus.send(message())
    assert refused(a) == {"full": 1}
    a.end.room = True
    monkeypatch.setattr(module, "MAX_INBOX", 3)
    a.bus.send(message(2))
    [volatile] = sent(lab, Volatile)
    for _ in range(5):
        b.bus.arrived(volatile)
    assert refused(b) == {"full": 2}
    b.bus.stop()
    lab.run(0.1)  # what was taken before the end is dropped
    assert b.got == []


def test_the_runs_that_are_remembered_are_bounded(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_SISTERS", 2)
    a, b = lab.start(), lab.start()
    for run in ("x", "y"):
        sealed = Sealed("log-1", run, 1, msgspec.Raw(module._encode(Hello())))
        lab.redis.deliver(b.bus.seal(module._encode(sealed)))
        lab.run(0.1)
    assert set(a.bus._sisters) == {b.bus.run, "y"}
    a.bus._sisters["y"].is_up = True
    c = lab.start()
    lab.run(2.0)
    assert len(a.bus._sisters) == 2
    assert ("/y", False) in a.sisters
    assert (c.word, True) in a.sisters


def test_a_bus_that_never_began_ends(lab: Lab) -> None:
    Instance(lab.redis, lab.stores).bus.stop()


@pytest.mark.parametrize(
    "call",
    [
        lambda settings: open_connector(settings, "log", bytes, print, print),
        inspect_bus,
    ],
)
def test_without_redis_py_a_bus_is_refused_in_words(
    call: Callable[[ClusterSettings], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "linkd.node.redis_bus", None)
    with pytest.raises(ConfigError, match=r"install linkd-daemon\[cluster\]"):
        call(ClusterSettings(instance="a", bus="redis://127.0.0.1"))
