"""What a link does with connections and attempts."""

from __future__ import annotations

from typing import Any

import pytest

from linkd.core.backoff import Backoff
from linkd.core.link import (
    Abort,
    Acknowledged,
    Adopt,
    AttemptBegan,
    Changed,
    Deadline,
    Dial,
    Diverged,
    FailedAttempt,
    Greeted,
    Link,
    Lost,
    NetworkChanged,
    Opening,
    Refuse,
    Resumed,
    Resynced,
    RetryNow,
    Start,
    Stop,
    StopDialing,
)
from linkd.errors import LocalProtocolError
from linkd.protocol.peer import Generation


def backoff() -> Backoff:
    """Return the usual delays, halfway through their spread."""
    return Backoff(15.0, 5.0, lambda: 0.5)


def link(dials: bool = True, name: str = "edge", peer: str = "hub") -> Link:
    """Return a started link."""
    made = Link(name, peer, backoff() if dials else None)
    made.handle(Start(), 0.0)
    return made


def greeted(key: int, counter: int = 1, boot: str = "a", **other: Any) -> Greeted:
    """Return a greeting of the log `log`, dialed by us."""
    fields = {"log": "log", "dialed": True, "address": f"192.0.2.{key}:9443"}
    return Greeted(key, Generation(boot, counter), **{**fields, **other})


def up(made: Link, key: int = 1, now: float = 1.0, **other: Any) -> Link:
    """Bring a link up."""
    made.handle(greeted(key, **other), now)
    made.handle(Resumed(key), now)
    assert made.state == "up"
    return made


def only(effects: list[Any], kind: type) -> Any:
    """Return the one effect of a kind."""
    found = [each for each in effects if isinstance(each, kind)]
    assert len(found) == 1, effects
    return found[0]


def test_a_dialer_dials_at_once_and_comes_up() -> None:
    made = Link("edge", "hub", backoff())
    assert made.handle(Start(), 5.0) == [Dial(0.0), Changed("stopped", "waiting", None, None)]
    assert made.handle(AttemptBegan(), 5.0) == [Changed("waiting", "connecting", None, None)]
    assert made.handle(AttemptBegan(), 5.1) == []
    assert made.handle(Opening(), 5.2) == [Changed("connecting", "opening", None, None)]
    assert made.handle(greeted(1), 5.3) == [Changed("opening", "resuming", None, None), Adopt(1)]
    assert made.handle(Resumed(1), 5.4) == [Changed("resuming", "up", None, None)]
    assert (made.attempts, made.connection, made.since, made.deadline) == (1, 1, 5.4, 10.4)


def test_a_listener_waits_and_never_dials() -> None:
    made = Link("hub", "edge", None)
    assert made.handle(Start(), 0.0) == [Changed("stopped", "waiting", None, None)]
    made.handle(greeted(1, dialed=False), 1.0)
    made.handle(Resumed(1), 1.0)
    assert made.deadline is None
    assert made.handle(Lost(1, "ping-timeout", "silent", None, True), 9.0) == [
        Changed("up", "waiting", "ping-timeout", "silent")
    ]
    assert made.handle(RetryNow(), 10.0) == []


def test_failures_wait_by_their_kind_and_are_told() -> None:
    made = link()
    made.handle(AttemptBegan(), 1.0)
    effects = made.handle(FailedAttempt("unreachable", "dns", "no such name"), 2.0)
    assert effects == [Dial(0.5), Changed("connecting", "waiting", "dns", "no such name")]
    made.handle(AttemptBegan(), 3.0)
    effects = made.handle(FailedAttempt("rejected", "rejected", "unknown"), 4.0)
    assert effects == [Dial(60.0), Changed("connecting", "rejected", "rejected", "unknown")]
    assert (made.attempt_reason, made.attempt_detail) == ("rejected", "unknown")
    assert (made.reason, made.detail, made.attempts) == (None, None, 2)
    made.handle(AttemptBegan(), 64.0)
    assert only(made.handle(FailedAttempt("busy", "busy", "x", 4.0), 64.1), Dial) == Dial(6.0)


@pytest.mark.parametrize("hurry", [RetryNow(), NetworkChanged()])
def test_a_hurry_dials_at_once_whatever_the_delay(hurry: Any) -> None:
    made = link()
    made.handle(AttemptBegan(), 1.0)
    assert only(made.handle(hurry, 1.5), Dial) == Dial(0.0)
    made.handle(AttemptBegan(), 1.5)
    made.handle(FailedAttempt("rejected", "rejected", "unknown"), 2.0)
    assert made.handle(hurry, 3.0) == [Dial(0.0)]
    assert made.state == "rejected"
    made.handle(AttemptBegan(), 3.0)
    made.handle(Opening(), 3.1)
    assert made.handle(hurry, 3.2) == []
    up(made)
    assert made.handle(hurry, 4.0) == []


def test_after_silence_it_dials_at_once_after_a_close_over_the_return_spread() -> None:
    for silent, spread, after in (
        (True, 8.0, 0.0),
        (False, None, 0.25),
        (False, 8.0, 4.0),
    ):
        made = up(link())
        effects = made.handle(Lost(1, "silence", "gone", None, silent, spread), 6.0)
        assert only(effects, Dial) == Dial(after)
        assert made.connection is None


@pytest.mark.parametrize(("lasted", "after"), [(4.999, 4.0), (5.0, 0.25)])
def test_delays_start_anew_only_after_a_stable_connection(lasted: float, after: float) -> None:
    made = link()
    for _ in range(3):
        made.handle(AttemptBegan(), 1.0)
        made.handle(FailedAttempt("broken", "refused", "no"), 1.0)
    up(made, now=2.0)
    assert made.handle(Deadline(), 2.0 + lasted) == []
    made.handle(Lost(1, "closed", "gone"), 2.0 + lasted)
    made.handle(AttemptBegan(), 9.0)
    effects = made.handle(FailedAttempt("broken", "refused", "no"), 9.0)
    assert only(effects, Dial) == Dial(after)


def test_where_something_is_owed_some_of_it_must_be_acknowledged_first() -> None:
    for acknowledged, after in ((False, 0.25), (True, 0.0)):
        made = link()
        made.handle(greeted(1), 1.0)
        made.handle(Resumed(1, owed=True), 1.0)
        made.handle(Deadline(), 6.0)
        assert made.deadline is None
        if acknowledged:
            made.handle(Acknowledged(), 7.0)
        effects = made.handle(Lost(1, "silence", "gone", None, True), 20.0)
        assert only(effects, Dial) == Dial(after)


def test_a_goodbye_that_says_when_is_obeyed() -> None:
    made = up(link())
    effects = made.handle(Lost(1, "stopped", "restart", 4.0), 50.0)
    assert only(effects, Dial) == Dial(6.0)
    assert made.state == "waiting"


def test_a_goodbye_that_says_when_moves_it_to_the_next_url_over_the_announced_spread() -> None:
    made = Link("edge", "hub", Backoff(15.0, 5.0, lambda: 0.5, urls=2))
    made.handle(Start(), 0.0)
    up(made)
    effects = made.handle(Lost(1, "stopped", "restart", 4.0, False, 3.0), 50.0)
    assert only(effects, Dial) == Dial(1.55)


def test_a_goodbye_for_a_clone_waits_for_a_person() -> None:
    made = up(link())
    effects = made.handle(Lost(1, "duplicate", "two hosts"), 50.0)
    assert only(effects, Dial) == Dial(60.0)
    assert made.state == "rejected"


def test_a_newer_connection_of_the_same_boot_takes_over_at_once() -> None:
    made = up(link(dials=False), dialed=False)
    effects = made.handle(greeted(2, counter=2, dialed=False), 3.0)
    detail = "taken over by a newer connection from 192.0.2.2:9443"
    assert effects == [
        Abort(1, "replaced", detail),
        Changed("up", "resuming", "replaced", detail),
        Adopt(2),
    ]
    assert made.connection == 2
    assert made.handle(Lost(1, "replaced", detail), 3.1) == []
    assert made.handle(Resumed(1), 3.1) == []
    assert made.state == "resuming"


@pytest.mark.parametrize("counter", [1, 2])
def test_an_older_connection_of_the_same_boot_is_refused(counter: int) -> None:
    made = up(link(dials=False), counter=2, dialed=False)
    refused = only(made.handle(greeted(2, counter=counter, dialed=False), 3.0), Refuse)
    assert (refused.connection, refused.reason) == (2, "replaced")
    assert made.connection == 1


def test_another_boot_takes_over_at_once() -> None:
    made = up(link(dials=False), counter=9, dialed=False)
    effects = made.handle(greeted(2, counter=1, boot="b", dialed=False), 3.0)
    assert only(effects, Adopt) == Adopt(2)
    assert only(effects, Abort).connection == 1


def test_another_log_under_the_name_of_a_live_connection_is_refused() -> None:
    made = up(link(dials=False), dialed=False)
    new = greeted(2, boot="b", log="other", dialed=False)
    refused = only(made.handle(new, 3.0), Refuse)
    assert refused.reason == "duplicate"
    assert "192.0.2.1:9443" in refused.detail
    assert "192.0.2.2:9443" in refused.detail
    made.handle(Lost(1, "closed", "gone"), 4.0)
    assert only(made.handle(new, 5.0), Adopt) == Adopt(2)


def test_two_boots_that_fight_are_told_apart_and_one_stays() -> None:
    made = up(link(dials=False), dialed=False, now=0.0)
    fights = [(2, "b", 10.0), (3, "a", 20.0)]
    for key, boot, now in fights:
        assert only(made.handle(greeted(key, key, boot, dialed=False), now), Adopt) == Adopt(key)
    refused = only(made.handle(greeted(4, 4, "b", dialed=False), 30.0), Refuse)
    assert refused.reason == "duplicate"
    assert "192.0.2.3:9443" in refused.detail
    assert "192.0.2.4:9443" in refused.detail
    for number in range(5, 25):
        now = 30.0 + 60.0 * (number - 4)
        assert only(made.handle(greeted(number, number, "b", dialed=False), now), Refuse)
    assert made.connection == 3


def test_a_flood_of_clones_is_refused_and_not_remembered_without_bound() -> None:
    made = up(link(dials=False), dialed=False, now=0.0)
    now, key = 1.0, 2
    for number in range(100):
        for boot, adopted in ((f"b{number}", True), ("a", True), (f"b{number}", False)):
            new = greeted(key, key, boot, dialed=False)
            assert only(made.handle(new, now), Adopt if adopted else Refuse)
            now, key = now + 0.1, key + 1
    assert len(made._takeovers._clones) == 64
    # What is remembered goes ten minutes after the last try; then a boot takes over as any other.
    later = now + 601.0
    assert only(made.handle(greeted(key, key, "b1", dialed=False), later), Adopt)


def test_a_clone_stays_refused_for_ten_minutes_after_its_last_try_and_not_longer() -> None:
    made = up(link(dials=False), dialed=False, now=0.0)
    for key, boot in ((2, "b"), (3, "a"), (4, "b")):
        made.handle(greeted(key, key, boot, dialed=False), 1.0)
    assert made.connection == 3
    assert only(made.handle(greeted(5, 5, "b", dialed=False), 600.9), Refuse)
    assert only(made.handle(greeted(6, 6, "b", dialed=False), 1200.8), Refuse)
    assert only(made.handle(greeted(7, 7, "b", dialed=False), 1800.8), Adopt)


def test_two_takeovers_a_minute_apart_no_longer_count() -> None:
    for last, kind in ((60.9, Refuse), (61.0, Adopt)):
        made = up(link(dials=False), dialed=False, now=0.0)
        made.handle(greeted(2, 2, "b", dialed=False), 1.0)
        made.handle(greeted(3, 3, "a", dialed=False), 2.0)
        assert only(made.handle(greeted(4, 4, "b", dialed=False), last), kind)


def test_takeovers_further_apart_are_no_fight() -> None:
    made = up(link(dials=False), dialed=False, now=0.0)
    for number in range(2, 12):
        boot = "ab"[number % 2]
        effects = made.handle(greeted(number, number, boot, dialed=False), 31.0 * number)
        assert only(effects, Adopt) == Adopt(number)


def test_restarts_of_one_host_are_no_fight() -> None:
    made = up(link(dials=False), dialed=False, now=0.0)
    for number in range(2, 30):
        new = greeted(number, 1, f"boot-{number}", dialed=False)
        assert only(made.handle(new, float(number)), Adopt) == Adopt(number)


def test_if_both_dial_what_the_lesser_name_dialed_stays() -> None:
    lesser, greater = link(name="a", peer="b"), link(name="b", peer="a")
    for first in (True, False):
        up(lesser, key=1 if first else 11, dialed=first)
        up(greater, key=1 if first else 11, dialed=not first)
        if first:
            refused = only(lesser.handle(greeted(2, boot="b", dialed=False), 2.0), Refuse)
            assert "dialed by a stays" in refused.detail
            assert only(greater.handle(greeted(2, boot="b", dialed=True), 2.0), Refuse)
        else:
            assert only(lesser.handle(greeted(12, boot="a", dialed=True), 2.0), Adopt) == Adopt(12)
            effects = greater.handle(greeted(12, boot="a", dialed=False), 2.0)
            assert only(effects, Adopt) == Adopt(12)
            assert only(effects, Abort).connection == 11
        for each in (lesser, greater):
            assert each.connection is not None
            each.handle(Lost(each.connection, "closed", "gone"), 3.0)


def test_an_attempt_of_the_lesser_name_goes_on_beside_what_the_peer_dialed() -> None:
    for name, peer, stops in (("a", "b", False), ("b", "a", True)):
        made = link(name=name, peer=peer)
        made.handle(AttemptBegan(), 1.0)
        effects = made.handle(greeted(1, dialed=False), 1.1)
        assert (StopDialing() in effects) is stops
        assert made.handle(FailedAttempt("broken", "closed", "no"), 1.2) == []
        waiting = link(name=name, peer=peer)
        assert StopDialing() in waiting.handle(greeted(1, dialed=False), 1.1)


def test_an_attempt_under_way_goes_on_when_what_the_peer_dialed_ends() -> None:
    for failed, dials in ((False, False), (True, True)):
        made = link(name="a", peer="b")
        made.handle(AttemptBegan(), 1.0)
        made.handle(greeted(1, dialed=False), 1.1)
        made.handle(Resumed(1), 1.2)
        if failed:
            made.handle(FailedAttempt("broken", "closed", "no"), 1.3)
        lost = made.handle(Lost(1, "closed", "replaced there"), 1.4)
        assert any(isinstance(effect, Dial) for effect in lost) is dials
        assert made.state == "waiting"
    made = link(name="a", peer="b")
    made.handle(AttemptBegan(), 1.0)
    made.handle(greeted(1, dialed=False), 1.1)
    made.handle(Lost(1, "closed", "replaced there"), 1.4)
    assert made.handle(greeted(2, dialed=True), 1.5)[-1] == Adopt(2)
    made.handle(Resumed(2), 1.6)
    assert only(made.handle(Lost(2, "closed", "gone"), 1.7), Dial)
    made = link(name="a", peer="b")
    made.handle(AttemptBegan(), 1.0)
    made.handle(greeted(1, dialed=False), 1.1)
    made.handle(Lost(1, "closed", "replaced there"), 1.4)
    assert only(made.handle(FailedAttempt("broken", "closed", "no"), 1.5), Dial)


def test_stopping_ends_all_and_refuses_newcomers() -> None:
    made = up(link())
    assert made.handle(Stop("the daemon stops"), 5.0) == [
        StopDialing(),
        Changed("up", "stopped", "stopped", "the daemon stops"),
    ]
    assert made.handle(Lost(1, "stopped", "said so"), 5.1) == []
    assert made.handle(Stop("again"), 5.2) == []
    assert only(made.handle(greeted(2), 5.3), Refuse).reason == "stopped"
    assert made.handle(Start(), 6.0)[0] == Dial(0.0)


def test_a_diverged_link_keeps_its_connection_until_someone_says_from_where() -> None:
    made = link()
    made.handle(greeted(1), 1.0)
    assert made.handle(Diverged("nothing in common"), 1.1) == [
        Changed("resuming", "diverged", None, "nothing in common")
    ]
    assert made.connection == 1
    assert made.handle(Resynced(), 2.0) == [Changed("diverged", "resuming", None, None)]
    made.handle(Resumed(1), 2.0)
    assert made.state == "up"
    made.handle(Diverged("again"), 3.0)
    assert only(made.handle(Lost(1, "silence", "gone", None, True), 20.0), Dial)


def test_attempts_count_since_the_last_connection_was_up() -> None:
    made = link()
    for _ in range(3):
        made.handle(AttemptBegan(), 1.0)
        made.handle(FailedAttempt("unreachable", "unreachable", "no"), 1.0)
    made.handle(AttemptBegan(), 2.0)
    up(made)
    assert made.attempts == 4
    made.handle(Lost(1, "silence", "gone", None, True), 20.0)
    assert made.attempts == 0


def test_a_connection_that_was_never_up_does_not_end_the_count_of_attempts() -> None:
    made = link()
    made.handle(AttemptBegan(), 1.0)
    made.handle(greeted(1), 1.0)
    made.handle(Lost(1, "closed", "gone"), 2.0)
    assert (made.state, made.attempts, made.connection) == ("waiting", 1, None)


def test_a_listener_never_dials_whatever_comes() -> None:
    made = link(dials=False)
    effects = made.handle(FailedAttempt("broken", "closed", "late"), 1.0)
    effects += made.handle(NetworkChanged(), 1.0)
    up(made, dialed=False)
    effects += made.handle(Deadline(), 1000.0)
    effects += made.handle(Lost(1, "duplicate", "gone", 5.0), 1001.0)
    effects += made.handle(Stop("the daemon stops"), 1002.0)
    assert [type(each) for each in effects] == [Changed, Changed]
    assert made.state == "stopped"


def test_what_can_not_be_raises() -> None:
    with pytest.raises(LocalProtocolError, match="resynced in state waiting"):
        link().handle(Resynced(), 1.0)


def test_a_retry_during_the_handshake_follows_an_attempt_that_fails_at_once() -> None:
    """A certificate was renewed 4 ms before the peer refused the old one: 55 s without a link."""
    made = link()
    made.handle(AttemptBegan(), 1.0)
    made.handle(Opening(), 1.1)
    assert made.handle(RetryNow(), 1.2) == []
    expired = FailedAttempt("rejected", "tls", "your certificate has expired")
    assert only(made.handle(expired, 1.3), Dial) == Dial(0.0)
    made.handle(AttemptBegan(), 1.3)
    made.handle(Opening(), 1.4)
    assert only(made.handle(expired, 1.5), Dial).after > 30.0
