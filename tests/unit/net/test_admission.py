"""From which addresses peers were greeted: bounded, kept over restarts, forgotten after 30 days.
Strangers make way: the oldest first, the mute ahead of those that have asked.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from linkd.config import LimitSettings
from linkd.net.admission import (
    ACCEPT_SECONDS,
    ASSUMED_RATE,
    CROWD_RATE,
    CROWD_SECONDS,
    FILE,
    KEPT_SECONDS,
    LATE_FOR_PEERS,
    LATE_FOR_STRANGERS,
    LEAST_STRANGERS,
    MEASURED,
    MIN_ACCEPTS,
    RESERVED,
    STRANGERS_SHARE,
    ConnectionLimiter,
    GreetedAddresses,
    PendingSlot,
)


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Return what is logged."""
    found: list[tuple[str, Any]] = []
    monkeypatch.setattr(
        "linkd.net.admission.emit", lambda event, **fields: found.append((event, fields["detail"]))
    )
    return found


def written(path: Path, *greetings: tuple[str, str, float], now: float = 100.0) -> GreetedAddresses:
    """Return a table with these greetings; its file is written at `now`."""
    table = GreetedAddresses(path, 0.0)
    for peer, address, at in greetings:
        table.greeted(peer, address, at)
    content = table.to_write(now)
    assert content is not None
    table.write(content)
    return table


def test_peers_are_counted_by_address_and_by_net() -> None:
    table = GreetedAddresses()
    assert not table
    for peer in ("a", "b", "a"):
        table.greeted(peer, "2001:db8::1", 1.0)
    table.greeted("c", "2001:db8::2", 1.0)
    table.greeted("c", "::ffff:192.0.2.1", 2.0)
    assert table.peers_at("2001:db8::/64") == 3
    assert table.peers_at("192.0.2.1") == 1
    assert table.peers_at("192.0.2.2") == 0
    assert table


def test_the_two_newest_addresses_of_a_peer_are_kept() -> None:
    table = GreetedAddresses()
    for at, address in enumerate(("192.0.2.1", "192.0.2.2", "192.0.2.1", "192.0.2.3")):
        table.greeted("a", address, float(at))
    assert [table.peers_at(f"192.0.2.{number}") for number in (1, 2, 3)] == [1, 0, 1]
    table.retain({"b"})
    assert not table


def test_a_restart_keeps_them_and_the_time_off_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / FILE
    written(path, ("a", "192.0.2.1", 50.0), ("b", "2001:db8::1", 60.0))
    table = GreetedAddresses(path, 5_000_000.0)
    assert table.peers_at("192.0.2.1") == 1
    assert table.peers_at("2001:db8::/64") == 1
    assert path.stat().st_mode & 0o077 == 0
    table.greeted("c", "192.0.2.1", 5_000_000.0 + KEPT_SECONDS - 60.0)
    content = table.to_write(5_000_000.0 + KEPT_SECONDS - 30.0)
    assert content is not None
    assert table.peers_at("2001:db8::/64") == 0 < table.peers_at("192.0.2.1")


def test_it_is_written_soon_where_an_address_is_new_and_hourly_else(tmp_path: Path) -> None:
    table = GreetedAddresses(tmp_path / FILE, 0.0)
    assert table.to_write(10_000.0) is None
    table.greeted("a", "192.0.2.1", 10_000.0)
    assert table.to_write(10_000.1) is not None
    table.greeted("a", "192.0.2.1", 10_001.0)
    assert table.to_write(10_002.0) is None
    assert table.to_write(13_700.0) is not None
    for number in range(5000):
        table.greeted(f"p{number}", f"198.51.{number // 250}.{number % 250}", 13_701.0)
    assert table.to_write(13_702.0) is None
    assert table.to_write(13_706.0) is not None


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"{}"])
def test_a_damaged_file_is_logged_and_nothing_is_known(
    tmp_path: Path, content: bytes, lines: list[tuple[str, Any]]
) -> None:
    path = tmp_path / FILE
    path.write_bytes(content)
    assert not GreetedAddresses(path, 0.0)
    assert [event for event, _ in lines] == ["listener.addresses-lost"]


def test_a_file_of_another_version_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / FILE
    table = written(path, ("a", "192.0.2.1", 50.0))
    table.write(b'{"version":3,"peers":{"a":{"192.0.2.1":1}}}')
    assert not GreetedAddresses(path, 0.0)


def test_the_file_of_the_version_before_is_read(tmp_path: Path) -> None:
    path = tmp_path / FILE
    GreetedAddresses(path).write(b'{"version":1,"peers":{"a":{"192.0.2.1":7.5}}}')
    table = GreetedAddresses(path, 0.0)
    assert table.peers_at("192.0.2.1") == 1
    assert table.handshakes_per_second == ASSUMED_RATE


def test_the_rate_of_handshakes_is_measured_in_a_crowd_and_kept(tmp_path: Path) -> None:
    path, used = tmp_path / FILE, [10.0]
    table = GreetedAddresses(path, 0.0, lambda: used[0])
    for number in range(300):  # one every 0.2 s: other work would count
        table.greeted("a", "192.0.2.1", 0.2 * number)
        used[0] += 0.5
    assert table.handshakes_per_second == ASSUMED_RATE
    for number in range(MEASURED + 1):
        table.greeted(f"p{number}", "192.0.2.1", 100.0 + 0.01 * number)
        used[0] += 0.0008
    assert table.handshakes_per_second == pytest.approx(1250.0, rel=0.02)
    for number in range(MEASURED + 1):  # among other work
        table.greeted(f"p{number}", "192.0.2.1", 110.0 + 0.01 * number)
        used[0] += 0.02
    assert table.handshakes_per_second == pytest.approx(1250.0 * 3 / 4 + 50.0 / 4, rel=0.02)
    content = table.to_write(200.0)
    assert content is not None
    table.write(content)
    assert GreetedAddresses(path, 0.0).handshakes_per_second == table.handshakes_per_second


@pytest.mark.parametrize(("number", "logged"), [(errno.ENOSPC, 0), (errno.EACCES, 1)])
def test_a_disk_that_refuses_is_tried_again_a_minute_later(
    tmp_path: Path, lines: list[tuple[str, Any]], number: int, logged: int
) -> None:
    table = written(tmp_path / FILE, ("a", "192.0.2.1", 50.0), now=100.0)
    table.not_written(OSError(number, "no"))
    assert len(lines) == logged
    assert table.to_write(159.0) is None
    assert table.to_write(161.0) is not None
    assert table.to_write(300.0) is None


def test_without_a_file_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    GreetedAddresses(None, 0.0).write(b"{}")
    assert list(tmp_path.iterdir()) == []


class Door:
    """An admission, and who was pushed out of it."""

    def __init__(self, greeted: dict[str, int] | None = None, **limits: int | float) -> None:
        table = GreetedAddresses()
        for address, count in (greeted or {}).items():
            for number in range(count):
                table.greeted(f"{address}/{number}", address, 0.0)
        table.handshakes_per_second = ASSUMED_RATE
        self.admission = ConnectionLimiter(LimitSettings(**limits), table)  # type: ignore[arg-type]
        self.gone: list[str] = []
        self.why: list[str] = []

    def enter(self, name: str, address: str | None = None) -> PendingSlot:
        def push_out(why: str) -> None:
            self.gone.append(name)
            self.why.append(why)

        return self.admission.enter(address or name, push_out)


def test_the_oldest_stranger_makes_way() -> None:
    door = Door(pending=3)
    slots = [door.enter(name) for name in "abcde"]
    assert door.gone == ["a", "b"]
    assert "3 connections have not sent a hello: the oldest was closed" in door.why[0]
    assert door.admission.pending == 3
    for slot in slots:
        door.admission.leave(slot)
        door.admission.leave(slot)
    assert door.admission.pending == 0
    assert door.admission._counts == door.admission._here == {}


def test_those_who_asked_for_a_token_outlast_the_mute() -> None:
    door = Door(pending=3)
    door.admission.asked(door.enter("a"))
    for name in "bcde":
        door.enter(name)
    assert door.gone == ["b", "c"]
    for name in "def":
        slot = door.enter(name)
        door.admission.asked(slot)
        door.admission.asked(slot)
    assert "a" not in door.gone[:-1]


def test_who_has_proved_to_be_a_peer_stays() -> None:
    door = Door(pending=3)
    door.admission.proved(door.enter("a"))
    for name in "bcdef":
        door.enter(name)
    assert door.gone == ["b", "c", "d"]
    assert door.admission.pending == 3


def test_one_address_pushes_its_own_out() -> None:
    door = Door(pending=100, pending_per_address=2)
    for name in "abcd":
        door.enter(name, "192.0.2.1")
    door.enter("other", "192.0.2.2")
    assert door.gone == ["a", "b"]
    assert "from 192.0.2.1" in door.why[0]


def test_strangers_leave_places_to_addresses_of_peers() -> None:
    door = Door({"192.0.2.1": 1}, pending=8)
    for number in range(10):
        door.enter(f"s{number}", f"198.51.100.{number}")
    assert door.gone == ["s0", "s1", "s2", "s3"]  # six slots are theirs
    door.enter("p", "192.0.2.1")
    door.enter("q", "192.0.2.1")
    assert len(door.gone) == 4
    door.enter("r", "192.0.2.1")
    assert door.gone[4:] == ["s4"]


def test_an_address_has_places_and_tokens_for_each_peer_greeted_from_it() -> None:
    door = Door({"192.0.2.1": 50}, pending_per_address=4, handshakes_per_second_per_address=1.0)
    for number in range(101):
        door.enter(f"p{number}", "192.0.2.1")
    assert door.gone == ["p0"]
    waits = [door.admission.ask("192.0.2.1", 1.0) for _ in range(60)]
    assert waits.count(None) == 51


def test_nobody_is_accepted_where_nobody_makes_way() -> None:
    door = Door({"192.0.2.1": 1, "192.0.2.2": 1}, pending=2)
    door.enter("a", "192.0.2.1")
    assert door.admission.accepts() == 1
    slot = door.enter("b", "192.0.2.2")
    assert door.admission.accepts() == 0
    door.admission.leave(slot)
    door.enter("s", "198.51.100.1")
    assert door.admission.accepts() == 1


@pytest.mark.parametrize("others", ["192.0.2.2", "198.51.100.1"])
def test_mute_connections_of_one_peers_address_lock_nobody_out(others: str) -> None:
    """With more peers there than half the slots, they took all, and nobody else was accepted."""
    door = Door({"192.0.2.1": 60, "192.0.2.2": 1}, pending=100, pending_per_address=4)
    for number in range(300):
        assert door.admission.accepts() > 0
        door.enter(f"mute {number}", "192.0.2.1")
    assert door.admission.pending == 75
    came = [door.enter(f"other {number}", others) for number in range(4)]
    for number in range(300):
        door.enter(f"mute again {number}", "192.0.2.1")
    assert all(slot.is_held for slot in came)
    assert all(name.startswith("mute") for name in door.gone)


def test_nor_do_those_of_several_such_addresses() -> None:
    hostile = [f"192.0.2.{number}" for number in range(3)]
    door = Door(dict.fromkeys(hostile, 60) | {"192.0.2.9": 1}, pending=100, pending_per_address=4)
    for number in range(600):
        assert door.admission.accepts() > 0
        door.enter(f"mute {number}", hostile[number % 3])
    assert door.admission.pending == 100
    slot = door.enter("peer", "192.0.2.9")
    for number in range(600):
        door.enter(f"mute again {number}", hostile[number % 3])
    assert slot.is_held
    assert door.admission.pending == 100


def test_as_many_are_accepted_as_a_crowd_gives_up() -> None:
    """An address keeps what any address may have; those who ask keep theirs the longest."""
    others = [f"198.51.100.{number}" for number in range(20)]
    known = {"192.0.2.1": 60, "192.0.2.2": 60} | dict.fromkeys(others, 1)
    door = Door(known, pending=100, pending_per_address=20)
    door.admission.greeted.handshakes_per_second = 1e6
    for number in range(40):
        slot = door.enter(f"a{number}", "192.0.2.1")
        if number < 10:
            door.admission.asked(slot)
    for number in range(60):
        door.admission.proved(door.enter(f"b{number}", "192.0.2.2"))
    assert door.admission.accepts() == 20
    for other in others:
        door.enter(other)
    assert door.gone == [f"a{number}" for number in range(10, 30)]


def test_a_thousand_peers_behind_one_address_return_at_once() -> None:
    door = Door({"192.0.2.1": 1000})
    slots = [door.enter(f"{number}", "192.0.2.1") for number in range(700)]
    for slot in slots:
        assert door.admission.ask("192.0.2.1", 1.0) is None
        door.admission.asked(slot)
    for number in range(700, 1000):
        door.admission.proved(slots.pop(0))
        door.enter(f"{number}", "192.0.2.1")
    assert door.gone == []


def test_an_iteration_accepts_what_it_can_work_on() -> None:
    door = Door()
    assert door.admission.accepts() == ACCEPT_SECONDS * ASSUMED_RATE
    door.admission.greeted.handshakes_per_second = 40.0
    assert door.admission.accepts() == MIN_ACCEPTS


def test_descriptors_hold_the_places_lower() -> None:
    door = Door(pending=100)
    door.admission.share = 2
    for name in "abc":
        door.enter(name)
    assert door.gone == ["a"]


def test_strangers_leave_tokens_to_peers_and_to_fresh_addresses() -> None:
    door = Door({"192.0.2.1": 1}, handshakes_per_second=100.0)
    rate = door.admission.ask
    each = door.admission.limits.handshakes_per_second_per_address
    assert each == 20.0
    granted = sum(
        rate(f"198.51.100.{number % 10}", 10.0) is None for number in range(1000)
    )  # ten addresses, 20 tokens each: the first is a fresh one's
    assert granted == 50
    fresh = sum(rate(f"203.0.113.{number}", 10.0) is None for number in range(200))
    assert fresh == 25
    assert sum(rate("192.0.2.1", 10.0) is None for _ in range(100)) == 21


def test_an_address_that_is_left_alone_is_fresh_again() -> None:
    door = Door({"192.0.2.9": 1}, handshakes_per_second=8.0)
    rate = door.admission.ask
    for now in (10.0, 20.0):
        assert [rate("192.0.2.1", now) is None for _ in range(6)] == [True] * 4 + [False] * 2
        assert [rate("192.0.2.2", now) is None for _ in range(3)] == [True, False, False]


def test_a_hub_that_knows_nobody_prefers_nobody() -> None:
    door = Door(handshakes_per_second=8.0)
    rate = door.admission.ask
    assert [rate("192.0.2.1", 10.0) is None for _ in range(9)] == [True] * 8 + [False]
    assert not door.admission.is_shed("192.0.2.1", 10.0, 99.0)


def test_without_a_cap_peers_come_as_fast_as_they_do_and_strangers_bounded() -> None:
    door = Door({f"192.0.2.{number}": 1 for number in range(200)})
    rate = door.admission.ask
    assert all(rate(f"192.0.2.{number}", 10.0) is None for number in range(200) for _ in range(9))
    strangers = [rate(f"198.51.100.{number}", 10.0) is None for number in range(100)]
    # The peers have spent all tokens but those few that are the strangers' own.
    assert strangers == [True] * int(LEAST_STRANGERS) + [False] * (100 - int(LEAST_STRANGERS))
    later = [rate(f"203.0.113.{number}", 12.0) is None for number in range(200)]
    assert sum(later) == ASSUMED_RATE * STRANGERS_SHARE * (1 - RESERVED) // 1


def test_a_late_loop_refuses_strangers_first_then_peers_by_promised_turns() -> None:
    door = Door({"192.0.2.1": 5000})
    rate = door.admission.ask
    strangers = [rate(f"198.51.100.{one}", 10.0, LATE_FOR_STRANGERS) is None for one in range(7)]
    assert strangers == [True] * int(LEAST_STRANGERS) + [False] * 2
    assert rate("192.0.2.1", 10.0, LATE_FOR_STRANGERS) is None
    waits = [rate("192.0.2.1", 10.0, LATE_FOR_PEERS) for _ in range(4000)]
    seconds = [wait.seconds for wait in waits if wait is not None]
    assert len(seconds) == 4000
    # The dialer adds half as much on average: the k-th comes after k / rate.
    assert seconds[-1] * 1.5 == pytest.approx(4000 / ASSUMED_RATE, rel=0.01)
    assert seconds[1999] * 1.5 == pytest.approx(2000 / ASSUMED_RATE, rel=0.01)
    assert "the event loop is 1.0 s late" in str(waits[0])


def test_a_late_loop_drops_strangers_but_for_a_few_a_second() -> None:
    door = Door({"192.0.2.1": 1})
    shed = door.admission.is_shed
    for number in range(int(LEAST_STRANGERS)):
        assert not shed("198.51.100.1", 9.0, LATE_FOR_STRANGERS)
        assert door.admission.ask(f"203.0.113.{number}", 9.0, LATE_FOR_STRANGERS) is None
    assert not shed("198.51.100.1", 9.0, 0.0)
    assert shed("198.51.100.1", 9.0, LATE_FOR_STRANGERS)
    assert not shed("192.0.2.1", 9.0, 99.0)
    # At a hub that is late for ever, a peer with a new address gets in within a second.
    assert not shed("198.51.100.1", 9.3, 99.0)
    assert door.admission.ask("198.51.100.1", 9.3, 99.0) is None


def test_strangers_are_dropped_where_too_many_wait() -> None:
    door = Door({"192.0.2.1": 1})
    shed = door.admission.is_shed
    assert not shed("198.51.100.1", 10.0, 0.0)
    for number in range(3000):
        door.admission.ask(f"198.51.{number // 250}.{number % 250}", 10.0)
    assert shed("198.51.100.1", 10.0, 0.0)
    assert not shed("192.0.2.1", 10.0, 0.0)
    for number in range(int(LEAST_STRANGERS)):
        assert not shed("198.51.100.1", 10.0 + 10.0, 0.0)
        assert door.admission.ask(f"203.0.113.{number}", 10.0 + 10.0) is None
    assert shed("198.51.100.1", 10.0 + 10.0, 0.0)
    assert not shed("198.51.100.1", 10.0 + 20.0, 0.0)


def test_strangers_are_dropped_while_a_crowd_of_peers_returns() -> None:
    """With an answer each, a flood of 500 a second cost the hub more than 5,000 peers."""
    door = Door({"192.0.2.1": 300})
    for number in range(int(LEAST_STRANGERS)):
        assert not door.admission.is_shed("198.51.100.1", 10.0, 0.0)
        assert door.admission.ask(f"203.0.113.{number}", 10.0) is None
    for _ in range(int(CROWD_RATE)):
        door.admission.ask("192.0.2.1", 10.0)
    assert not door.admission.is_shed("198.51.100.1", 10.0, 0.0)
    door.admission.ask("192.0.2.1", 10.0)
    assert door.admission.is_shed("198.51.100.1", 10.0, 0.0)
    assert not door.admission.is_shed("192.0.2.1", 10.0, 0.0)
    # Five a second come in all the same.
    assert not door.admission.is_shed("198.51.100.1", 10.3, 0.0)
    assert door.admission.ask("198.51.100.1", 10.3) is None
    assert door.admission.is_shed("198.51.100.2", 10.3, 0.0)
    over = 10.01 + CROWD_SECONDS
    for number in range(int(LEAST_STRANGERS)):
        assert door.admission.ask(f"203.0.113.{number}", over) is None
    assert not door.admission.is_shed("198.51.100.2", over, 0.0)


def test_a_new_address_comes_in_beside_a_crowd_of_peers_that_never_ends() -> None:
    """Peers behind one address took all tokens: a peer that had moved stayed out for ever."""
    door = Door({"192.0.2.1": 300})
    for tenth in range(100):
        now = 10.0 + tenth / 10
        for _ in range(20):
            door.admission.ask("192.0.2.1", now)
        if tenth % 15 == 0:
            assert door.admission.ask(f"198.51.100.{tenth}", now, 0.05) is None


def test_a_cap_holds_for_strangers_too() -> None:
    door = Door({"192.0.2.1": 5}, handshakes_per_second=8.0)
    asked = [door.admission.ask(f"198.51.100.{number}", 10.0) is None for number in range(20)]
    assert sum(asked) <= 8


@pytest.mark.parametrize(("cap", "rate"), [(None, ASSUMED_RATE), (50.0, 50.0), (9e5, ASSUMED_RATE)])
def test_the_rate_is_what_is_measured_or_the_cap(cap: float | None, rate: float) -> None:
    limits = {} if cap is None else {"handshakes_per_second": cap}
    assert Door(**limits).admission.rate == rate
