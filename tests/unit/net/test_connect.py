"""A name with several addresses: the link is up in time where any of them is good."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import msgspec
import pytest

from linkd.config.addresses import parse_url
from linkd.errors import ConfigError, unusable
from linkd.protocol.peer import Goodbye, encode
from tests.support.hosts import URL, Hosts, Temper, address

BAD: tuple[Temper, ...] = ("silent", "refusing", "mute", "bad-gateway")


def up_after(tmp_path: Path, tempers: list[Temper], connect_timeout: float = 5.0) -> float:
    """Return the seconds until the link is up, at most `connect_timeout` + 2."""
    hosts = Hosts(tmp_path, tempers, connect_timeout)
    hosts.link.redial = lambda _: hosts.dialer.dial(0.5)
    hosts.dialer.dial(0.0)
    took = hosts.run(connect_timeout + 2.0, until="greeted")
    assert hosts.link.connections, [each.detail for each in hosts.link.failures]
    assert len(hosts.link.connections) == 1
    hosts.run(1.0)
    assert hosts.link.losses == []
    return took


def test_a_silent_first_address_is_passed_over(tmp_path: Path) -> None:
    hosts = Hosts(tmp_path, ["silent", "good"])
    hosts.dialer.dial(0.0)
    took = hosts.run(10.0, until="greeted")
    assert hosts.link.connections, hosts.link.failures
    assert took < 0.4
    assert hosts.dialed == [address(0), address(1)]


@pytest.mark.parametrize("count", [2, 3])
def test_every_order_of_few_addresses(tmp_path: Path, count: int) -> None:
    for bad in itertools.product(BAD, repeat=count - 1):
        for place in range(count):
            up_after(tmp_path, [*bad[:place], "good", *bad[place:]])


@pytest.mark.parametrize("temper", BAD)
def test_the_last_of_eight_addresses(tmp_path: Path, temper: Temper) -> None:
    assert up_after(tmp_path, [*[temper] * 7, "good"]) < 5.0
    up_after(tmp_path, [*[temper] * 7, "good"], connect_timeout=2.0)


def test_many_addresses_in_any_order(tmp_path: Path) -> None:
    dice = random.Random(18)
    for _ in range(60):
        tempers: list[Temper] = [dice.choice(BAD) for _ in range(dice.randint(3, 7))]
        tempers.insert(dice.randint(0, len(tempers)), "good")
        up_after(tmp_path, tempers)


def test_one_handshake_at_a_time_where_all_are_good(tmp_path: Path) -> None:
    hosts = Hosts(tmp_path, ["good"] * 4)
    hosts.dialer.dial(0.0)
    assert hosts.run(5.0, until="greeted") < 0.1
    assert hosts.dialed == [address(0)]


def test_a_mute_address_costs_its_turn_and_not_the_attempt(tmp_path: Path) -> None:
    hosts = Hosts(tmp_path, ["mute", "good"])
    hosts.dialer.dial(0.0)
    assert hosts.run(7.0, until="greeted") == pytest.approx(5.0 / 3, abs=0.1)
    assert hosts.link.failures == []
    hosts.run(1.0)
    assert [pipe.near.gone for pipe in hosts.pipes] == [True, False]


def test_the_good_address_is_dialed_first_the_next_time(tmp_path: Path) -> None:
    hosts = Hosts(tmp_path, ["mute", "good", "silent"])
    hosts.dialer.dial(0.0)
    hosts.run(7.0, until="greeted")
    hosts.link.connections[0].abort("closed", "a test")
    hosts.run(0.1)
    hosts.dialed.clear()
    hosts.dialer.configure(hosts.dialer.settings, 5.0)  # a reload forgets nothing
    hosts.dialer.dial(0.0)
    assert hosts.run(7.0, until="greeted") < 0.1
    assert hosts.dialed == [address(1)]


def test_the_next_attempt_begins_behind_the_address_that_failed(tmp_path: Path) -> None:
    hosts = Hosts(tmp_path, ["mute", "mute", "mute"])
    hosts.dialer.dial(0.0)
    hosts.run(2.0)
    hosts.tempers[address(0)] = "refusing"
    hosts.run(5.0, until="failed")
    assert hosts.dialed == [address(0), address(1), address(2)]
    hosts.dialed.clear()
    hosts.dialer.dial(0.0)
    hosts.run(5.0, until="failed")
    assert hosts.dialed[0] == address(0)
    assert hosts.dialed[1:] == [address(1), address(2)]


def test_an_address_that_was_good_and_fails_is_the_last_to_be_tried(tmp_path: Path) -> None:
    hosts = Hosts(tmp_path, ["good", "silent", "silent"])
    hosts.dialer.dial(0.0)
    hosts.run(7.0, until="greeted")
    hosts.link.connections[0].abort("closed", "a test")
    hosts.run(0.1)
    hosts.tempers[address(0)] = "bad-gateway"
    hosts.dialed.clear()
    for _ in range(2):
        hosts.dialer.dial(0.0)
        hosts.run(7.0, until="failed")
    assert hosts.dialed[:3] == [address(0), address(1), address(2)]
    assert hosts.link.failures[-1].kind == "broken"


@pytest.mark.parametrize(
    ("tempers", "kind", "reason"),
    [
        (["silent", "silent"], "unreachable", "unreachable"),
        (["silent", "refusing"], "refused", "refused"),
        (["mute", "refusing"], "broken", "unreachable"),
        (["silent", "bad-gateway"], "broken", "closed"),
    ],
)
def test_what_a_failed_attempt_counts_as(
    tmp_path: Path, tempers: list[Temper], kind: str, reason: str
) -> None:
    hosts = Hosts(tmp_path, tempers)
    hosts.dialer.dial(0.0)
    hosts.run(7.0, until="failed")
    failure = hosts.link.failures[-1]
    assert (failure.kind, failure.reason) == (kind, reason)


def test_details_name_the_addresses(tmp_path: Path) -> None:
    hosts = Hosts(tmp_path, ["bad-gateway", "refusing", "mute", "silent"])
    hosts.dialer.dial(0.0)
    assert hosts.run(7.0, until="failed") == pytest.approx(5.0, abs=0.1)
    assert hosts.link.failures[-1].detail == (
        f"{URL}: [2001:db8::a]:9443: it answered 502 to POST /token; 192.0.2.11:9443: refused;"
        " 192.0.2.13:9443: no answer; [2001:db8::c]:9443: the handshake was not done within 5.0 s"
    )


def test_a_passing_error_of_this_host_is_unreachable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = Hosts(tmp_path, ["good", "good"])
    failures = []
    for number in (24, 5, 116, 13):  # EMFILE, EIO, ESTALE, EACCES

        def load(path: object, number: int = number) -> bytes:
            raise unusable(f"{path}: cannot read the secret", OSError(number, "why"))

        monkeypatch.setattr("linkd.net.dialer.load_secret", load)
        hosts.dialer.dial(0.0)
        hosts.run(7.0, until="failed")
        failures.append(hosts.link.failures[-1].kind)
    assert failures == ["unreachable", "unreachable", "unreachable", "rejected"]


def test_a_url_without_a_path_is_dialed_at_the_links_own(tmp_path: Path) -> None:
    hosts = Hosts(tmp_path, ["good"])
    peer = msgspec.structs.replace(hosts.dialer.settings, dial=("ws://hub.test:9443/",))
    hosts.dialer.configure(peer, 5.0)
    hosts.dialer.dial(0.0)
    hosts.run(7.0, until="greeted")
    assert hosts.link.failures == []
    assert list(hosts.dialer._good) == [parse_url("ws://hub.test:9443/link")]
    other = msgspec.structs.replace(peer, dial=("ws://other.test/",))
    hosts.dialer.configure(other, 5.0)
    assert hosts.dialer._good == {}
    with pytest.raises(ConfigError, match="scheme"):
        hosts.dialer.configure(msgspec.structs.replace(peer, dial=("http://hub.test/",)), 5.0)


def fail_again(hosts: Hosts, temper: Temper) -> tuple[str, str]:
    """Dial a host that has this temper now; return kind and reason of the failure."""
    hosts.tempers[address(0)] = temper
    hosts.dialer.dial(0.0)
    hosts.run(7.0, until="failed")
    failure = hosts.link.failures[-1]
    return failure.kind, failure.reason


def bring_up(hosts: Hosts) -> None:
    """Bring the link up, and have the hub close it."""
    hosts.tempers[address(0)] = "good"
    hosts.dialer.dial(0.0)
    hosts.run(5.0, until="greeted")
    hosts.link.connections[-1].abort("closed", "over")
    hosts.run(1.0)


def test_a_close_within_the_handshake_is_a_restart_three_times_where_the_url_has_worked(
    tmp_path: Path,
) -> None:
    """A hub that restarts closes what it has accepted; dialers came back after up to 12 s."""
    hosts = Hosts(tmp_path, ["closing"])
    assert fail_again(hosts, "closing") == ("broken", "closed")
    for _ in range(2):
        bring_up(hosts)
        kinds = [fail_again(hosts, "closing") for _ in range(5)]
        assert kinds == 3 * [("refused", "closed")] + 2 * [("broken", "closed")]
        assert fail_again(hosts, "refusing") == ("refused", "refused")
        assert fail_again(hosts, "closing") == ("refused", "closed")


def test_a_proxys_404_is_broken_where_the_url_has_worked_and_rejected_before(
    tmp_path: Path,
) -> None:
    """An ingress answers 404 while the hub behind it restarts; linkd names a reason itself."""
    hosts = Hosts(tmp_path, ["foreign"])
    assert fail_again(hosts, "foreign") == ("rejected", "rejected")
    bring_up(hosts)
    assert fail_again(hosts, "foreign") == ("broken", "closed")
    hosts.listener.nodes.peers.clear()
    assert fail_again(hosts, "good") == ("rejected", "rejected")


def test_failures_carry_what_the_url_announced(tmp_path: Path) -> None:
    hosts = Hosts(tmp_path, ["refusing"])
    hosts.listener._dialers = 4000
    fail_again(hosts, "refusing")
    assert hosts.link.failures[-1].return_spread is None
    bring_up(hosts)
    assert hosts.link.connections[-1].return_spread == 8.0
    fail_again(hosts, "refusing")
    assert hosts.link.failures[-1].return_spread == 8.0


def test_a_goodbyes_spread_counts_until_the_next_hello(tmp_path: Path) -> None:
    """Only the first delay knew it: later redials of a hub that stays away came after 0.5 s."""
    hosts = Hosts(tmp_path, ["good"])
    bring_up(hosts)
    hosts.dialer.dial(0.0)
    hosts.run(5.0, until="greeted")
    hosts.link.connections[-1]._message(encode(Goodbye("stopped", return_spread=20.0)))
    assert hosts.link.connections[-1].return_spread == 20.0
    hosts.link.connections[-1].abort("closed", "over")
    hosts.run(1.0)
    for _ in range(2):
        fail_again(hosts, "refusing")
        assert hosts.link.failures[-1].return_spread == 20.0
    bring_up(hosts)
    fail_again(hosts, "refusing")
    assert hosts.link.failures[-1].return_spread != 20.0
