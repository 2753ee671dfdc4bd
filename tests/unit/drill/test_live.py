"""Rules of the packet filter: narrow, marked, and taken back exactly. A drill on a running pair
whose daemons go away meanwhile: it is said in the report.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from linkd.drill import deadman, live
from linkd.drill.live import (
    Kind,
    PacketMatch,
    Plan,
    Request,
    commands,
    local_port,
    programs,
    remote,
)
from linkd.drill.monitor import DaemonClient, Tally
from linkd.drill.report import Bounds

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n"


@pytest.mark.parametrize("kind", ["blackhole", "oneway", "reset"])
@pytest.mark.parametrize(
    "far", [PacketMatch("10.0.0.1", 9443, False), PacketMatch("fd00::1", 9443, True)]
)
def test_what_is_made_is_exactly_what_is_taken_back(kind: Kind, far: PacketMatch) -> None:
    begin, undo = commands(kind, far, "token", "iptables-nft")
    assert len(begin) == len(undo) == (1 if kind == "oneway" else 2)
    for made, gone in zip(begin, undo, strict=True):
        assert made[0] == gone[0] == "iptables-nft"
        assert made[made.index("-I") + 1 :] == gone[gone.index("-D") + 1 :]
        assert "linkd-drill:token" in made
        assert far.address in made
        assert "9443" in made


def test_only_the_links_own_port_is_touched() -> None:
    dialed, _ = commands("blackhole", PacketMatch("10.0.0.1", 9443, False), "t", "iptables")
    assert "INPUT -p tcp -s 10.0.0.1 --sport 9443" in " ".join(dialed[0])
    assert "OUTPUT -p tcp -d 10.0.0.1 --dport 9443" in " ".join(dialed[1])
    accepted, _ = commands("blackhole", PacketMatch("10.0.0.2", 9443, True), "t", "iptables")
    assert "INPUT -p tcp -s 10.0.0.2 --dport 9443" in " ".join(accepted[0])
    assert "OUTPUT -p tcp -d 10.0.0.2 --sport 9443" in " ".join(accepted[1])


def test_resets_themselves_pass() -> None:
    begin, _ = commands("reset", PacketMatch("10.0.0.1", 9443, False), "t", "iptables")
    assert all("! --tcp-flags RST RST" in " ".join(command) for command in begin)


def test_a_dialers_rules_go_by_the_peers_port() -> None:
    assert remote("dialer", "10.0.0.1:9443") == PacketMatch("10.0.0.1", 9443, False)
    assert remote("dialer", "[fd00::1]:443") == PacketMatch("fd00::1", 443, False)
    assert remote("dialer", "[::ffff:10.0.0.1]:443") == PacketMatch("10.0.0.1", 443, False)


def test_a_listeners_rules_go_by_its_own_port() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as near,
        server.accept()[0],
    ):
        host, port = near.getsockname()
        expected = PacketMatch("127.0.0.1", server.getsockname()[1], True)
        assert remote("listener", f"{host}:{port}") == expected


def test_an_unknown_connection_or_address_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no connection with 192\.0\.2\.1:1"):
        remote("listener", "192.0.2.1:1")
    with pytest.raises(ValueError, match="hub"):
        remote("dialer", "hub:9443")


def test_the_kernels_lists_are_read(tmp_path: Path) -> None:
    listening = "   0: 00000000:24E3 00000000:0000 0A 0 0 0 0 0\n"
    four = "   1: 0100000A:24E3 0200000A:C350 01 0 0 0 0 0\n"
    six = "   2: 0000000000000000FFFF00000100000A:24E4 0000000000000000FFFF00000300000A:C351 01 0\n"
    (tmp_path / "tcp").write_text(HEAD + listening + four)
    (tmp_path / "tcp6").write_text(HEAD + six)
    assert local_port("10.0.0.2", 50000, tmp_path) == 0x24E3
    assert local_port("10.0.0.3", 50001, tmp_path) == 0x24E4
    assert local_port("10.0.0.2", 50001, tmp_path) is None


@pytest.mark.parametrize(
    ("there", "version", "tables", "expected"),
    [
        ([], "v1.8.9 (nf_tables)", "", ["iptables"]),
        (["nft", "legacy"], "v1.8.9 (nf_tables)", "", ["iptables-nft"]),
        (["nft", "legacy"], "v1.8.9 (nf_tables)", "filter", ["iptables-nft", "iptables-legacy"]),
        (["nft", "legacy"], "v1.8.9 (legacy)", "filter", ["iptables-legacy", "iptables-nft"]),
        (["nft"], "v1.8.9 (legacy)", "filter", ["iptables", "iptables-nft"]),
    ],
)
def test_both_kinds_of_the_packet_filter_are_looked_at(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    there: list[str],
    version: str,
    tables: str,
    expected: list[str],
) -> None:
    monkeypatch.setattr(deadman, "admin_path", lambda: str(tmp_path))
    assert programs("iptables", tmp_path) == []
    for name in ("iptables", *(f"iptables-{kind}" for kind in there)):
        (tmp_path / name).write_text(f"#!/bin/sh\necho 'iptables {version}'\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "ip_tables_names").write_text(tables)
    assert programs("iptables", tmp_path) == expected


def test_messages_that_nobody_can_be_asked_about_fail_the_drill_and_end_it_not(
    tmp_path: Path,
) -> None:
    nobody = str(tmp_path / "linkd.sock")
    request = Request(kind="reset", peer="hub", seconds=5.0, channel="orders", far_socket=nobody)
    far = PacketMatch("192.0.2.1", 9443, ours=False)
    status: Any = None
    plan = Plan("edge", status, far, "1", [], [])
    said: list[str] = []
    course = live._LiveRun(request, plan, DaemonClient(nobody), Bounds(), said.append)
    (publisher,) = course.publishers
    messages: dict[str, Tally] = {}
    (counted,) = course._counted(publisher, messages)
    delivered = course._delivered(publisher)
    for check in (delivered, counted):
        assert not check.ok
        assert nobody in check.got
    assert messages == {}
    assert said == ["waiting until the peer has the numbered messages"]


@pytest.mark.parametrize(
    ("kind", "seconds", "note"),
    [
        ("reset", 2.0, "; no longer than from ping to ping, 5 s: an idle link need not fall"),
        ("reset", 6.0, ""),
        ("blackhole", 5.0, "; shorter than 10 s, so not both ends had to notice"),
        ("blackhole", 12.0, ""),
    ],
)
def test_a_drill_too_short_to_be_noticed_is_reported_as_such(
    tmp_path: Path, kind: Kind, seconds: float, note: str
) -> None:
    request = Request(kind=kind, peer="hub", seconds=seconds, channel=None, far_socket=None)
    status: Any = None
    plan = Plan("edge", status, PacketMatch("192.0.2.1", 9443, ours=False), "1", [], [])
    daemon = DaemonClient(str(tmp_path / "linkd.sock"))
    course = live._LiveRun(request, plan, daemon, Bounds(), lambda _: None)
    assert course._why() == f"bounds: the defaults{note}"
