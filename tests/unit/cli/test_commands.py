"""The simple commands against canned answers: what they print, what they ask, how they end."""

from __future__ import annotations

import importlib
import io
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import msgspec
import pytest

from linkd.cli import links, main
from linkd.cli.instances import instance_lines
from linkd.cli.output import Colours
from linkd.cli.status import node_text
from linkd.status import NodeStatus
from tests.support.fake_node import instance
from tests.support.http_daemon import HttpDaemon


def link(peer: str, state: str = "up", **more: Any) -> dict[str, Any]:
    return {
        "peer": peer, "role": "dialer", "state": state, "since_seconds": 3605.0,
        "generation": "ab:1", "address": "192.0.2.7:9443", "rtt_seconds": 0.0123,
        "silence_seconds": 0.4, "backlog_records": 0, "backlog_bytes": 0,
        "backlog_age_seconds": None, "sent_records": 10, "received_records": 3, "attempts": 0,
        "next_attempt_seconds": None, "reason": None, "detail": None, "peer_version": "0.1.0",
        "certificate_expires_seconds": None, "required": True,
    } | more  # fmt: skip


def status(*links: dict[str, Any], **log: Any) -> dict[str, Any]:
    return {
        "node": "edge-1",
        "version": "0.1.0",
        "uptime_seconds": 93784.0,
        "log": {"id": "L", "first": 1, "next": 12346, "bytes": 1 << 30, "max_bytes": 10 << 30}
        | log,
        "consumers": [{"owner": "socket", "name": "billing", "next": 12000, "lag_records": 346}],
        "links": list(links),
    }


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HttpDaemon]:
    with HttpDaemon(tmp_path / "d.sock") as running:
        monkeypatch.setenv("LINKD_SOCKET", str(running.path))
        yield running


def test_a_link_that_was_never_heard_has_no_time_of_that(
    daemon: HttpDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.answers["GET /v1/status"] = (
        200,
        status(link("hub", "waiting", last_heard_seconds=None)),
    )
    assert main(["status", "hub"]) == 0
    assert "  last heard              –\n" in capsys.readouterr().out


def test_status_says_how_long_a_link_is_down_and_why_in_full(
    daemon: HttpDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    detail = "no answer within 5.0 s from 192.0.2.7:9443, nor from 2001:db8::7 port 9443"
    down = link(
        "a-peer-with-a-long-name.example.net", "connecting", reason="silence", attempts=17,
        detail="nothing was heard for 10.0 s", down_since="2026-11-29T20:22:44.123Z",
        down_seconds=3605.0, last_heard_seconds=3605.0, attempt_seconds=2.1,
        attempt_reason="unreachable", attempt_detail=detail,
        next_attempt_seconds=None, rtt_seconds=None, silence_seconds=None,
        backlog_records=123_456_789, backlog_bytes=99_999_999_999, backlog_age_seconds=864_000.0,
        certificate_expires_seconds=89 * 86_400.0,
    )  # fmt: skip
    up = link("hub", reason="ping-timeout", last_heard_seconds=0.4)
    daemon.answers["GET /v1/status"] = (200, status(up, down))
    assert main(["status"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "edge-1  linkd 0.1.0  running 1d02h"
    assert lines[1] == "log 10% of 10 GiB, next offset 12,346"
    assert lines[4].split()[:5] == ["hub", "up", "1h00m", "12ms", "400ms"]
    assert lines[5] == "  last outage: ping-timeout"
    assert lines[6].split() == [
        "a-peer-with-a-long-name.example.net", "DOWN", "1h00m", "–", "1h00m", "123M", "93GiB",
        "10d", "–", "89d",
    ]  # fmt: skip
    said = "  silence: nothing was heard for 10.0 s, down since 11-29 20:22:44 UTC"
    assert lines[7] == said
    assert lines[8] == f"  unreachable: {detail} (17 attempts, this one 2.1s old)"
    assert lines[-1].split() == ["socket/billing", "12,000", "346"]
    assert main(["status", "a-peer-with-a-long-name.example.net"]) == 0
    said = capsys.readouterr().out
    assert "state                   DOWN for 1h00m" in said
    assert "down since              11-29 20:22:44 UTC" in said
    assert f"last failed attempt     unreachable: {detail}" in said
    assert "this attempt's age      2.1s" in said


def test_status_shows_at_which_instance_each_link_is(
    daemon: HttpDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    silent = "the instance hub-c has written nothing since 2026-12-01T12:00:00.000Z"
    links = (
        link("edge-1", instance="hub-b"),
        link("edge-2", "unknown", instance="hub-c", detail=silent),
        link("edge-3", "waiting", reason="silence", down_since="2026-12-01T12:00:00.000Z"),
    )
    daemon.answers["GET /v1/status"] = (200, status(*links) | {"instance": "hub-a"})
    assert main(["status"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "edge-1 at hub-a  linkd 0.1.0  running 1d02h"
    assert lines[3].split()[-1] == "AT"
    assert lines[4].split()[:2] + lines[4].split()[-1:] == ["edge-1", "up", "hub-b"]
    assert lines[5].split()[:2] + lines[5].split()[-1:] == ["edge-2", "unknown", "hub-c"]
    assert lines[6] == f"  {silent}"
    assert lines[7].split()[:2] + lines[7].split()[-1:] == ["edge-3", "DOWN", "–"]
    assert main(["status", "edge-1"]) == 0
    assert "  instance                hub-b\n" in capsys.readouterr().out
    assert main(["status", "--check"]) == 2
    assert "edge-2 unknown for 1h00m at hub-c; edge-3 DOWN" in capsys.readouterr().out


def test_instances_are_listed_with_what_differs(
    daemon: HttpDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [
        instance("hub-a", here=True, keeper=True, api="127.0.0.1:9480", seen_seconds=0.0),
        instance("hub-b", "draining", differs=["its [[peer]] tables are not those here"]),
        instance("hub-c", "silent", seen_seconds=None),
    ]
    answer = {"instances": [msgspec.to_builtins(one) for one in found]}
    daemon.answers["GET /v1/instances"] = (200, answer)
    assert main(["instances"]) == 0
    head, a, b, differs, c = capsys.readouterr().out.splitlines()
    words = ["INSTANCE", "STATE", "VERSION", "RUNNING", "SEEN", "LINKS", "HOST", "API"]
    assert head.split() == words
    assert " ".join(a.split()) == (
        "hub-a (here) up, keeper 0.1.0 1h00m 0ms 3 hub-a.example.net 127.0.0.1:9480"
    )
    assert " ".join(b.split()) == "hub-b draining 0.1.0 1h00m 1.5s 3 hub-b.example.net –"
    assert differs == "  its [[peer]] tables are not those here"
    assert " ".join(c.split()) == "hub-c silent 0.1.0 – – 3 hub-c.example.net –"
    painted = instance_lines(found, Colours(True))
    assert [line[:5] for line in painted[2:]] == ["\x1b[33m", "\x1b[31m", "\x1b[31m"]
    assert main(["instances", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [msgspec.json.decode(line)["instance"] for line in lines] == ["hub-a", "hub-b", "hub-c"]
    daemon.answers["GET /v1/instances"] = (200, {"instances": []})
    assert main(["instances"]) == 0
    assert capsys.readouterr().out == "this node has no [cluster]: it is its only instance\n"


@pytest.mark.parametrize(
    ("state", "required", "painted"),
    [
        ("up", True, "\x1b[32mup\x1b[0m"),
        ("waiting", True, "\x1b[31mDOWN\x1b[0m"),
        ("waiting", False, "\x1b[33mDOWN\x1b[0m"),
        ("rejected", False, "\x1b[31mDOWN rejected\x1b[0m"),
    ],
)
def test_a_required_link_that_is_down_is_red(state: str, required: bool, painted: str) -> None:
    body = msgspec.json.encode(status(link("hub", state, required=required)))
    assert painted in node_text(msgspec.json.decode(body, type=NodeStatus), Colours(True))


def test_status_of_one_peer_and_json(
    daemon: HttpDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.chunked = True
    daemon.answers["GET /v1/status"] = (200, status(link("hub")))
    assert main(["status", "hub"]) == 0
    assert "round trip              12ms" in capsys.readouterr().out
    assert main(["status", "--json"]) == 0
    assert msgspec.json.decode(capsys.readouterr().out)["node"] == "edge-1"
    assert main(["status", "hub", "--json"]) == 0
    assert msgspec.json.decode(capsys.readouterr().out)["peer"] == "hub"
    assert main(["status", "nobody"]) == 4
    assert "there are: hub" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answer", "code", "line"),
    [
        (status(link("hub")), 0, "LINKD OK - 1 link up | up=1;;;0;1 backlog=0;;;0"),
        (status(link("hub", "waiting", reason="dns")), 2, "LINKD CRITICAL - hub DOWN for 1h"),
        (status(link("b", "waiting", required=False)), 1, "LINKD WARNING - b DOWN for 1h00m"),
        (
            status(
                link(
                    "b", "rejected", reason="silence", down_since="2026-11-29T20:22:44.123Z",
                    attempt_reason="rejected", attempt_detail="no such peer",
                )
            ),
            2,
            "LINKD CRITICAL - b DOWN rejected for 1h00m since 11-29 20:22:44 UTC (silence),"
            " last attempt: rejected: no such peer",
        ),
        (status(link("hub"), bytes=9 << 30), 1, "LINKD WARNING - log 90% full"),
        (status(link("hub"), full="no room"), 2, "LINKD CRITICAL - publishes are refused: no room"),
        (status(link("b", certificate_expires_seconds=3e5)), 1, "LINKD WARNING - certificate of b"),
        (status(link("b", not_relayed_records=2)), 1, "LINKD WARNING - 2 records not relayed bet"),
        (status(link("b", nothing_passes=True)), 1, "LINKD WARNING - nothing passes to b: its `"),
    ],
)  # fmt: skip
def test_check_speaks_nagios(
    daemon: HttpDaemon,
    capsys: pytest.CaptureFixture[str],
    answer: dict[str, Any],
    code: int,
    line: str,
) -> None:
    daemon.answers["GET /v1/status"] = (200, answer)
    assert main(["status", "--check"]) == code
    assert capsys.readouterr().out.startswith(line)


def test_check_is_unknown_without_a_daemon(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", "--check", "--socket", str(tmp_path / "none")]) == 3
    assert capsys.readouterr().out.startswith("LINKD UNKNOWN - no daemon at ")


def test_no_daemon_is_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["status"], ["publish", "a", "b"], ["kick", "hub"], ["subscribe", "a"]):
        assert main(["--socket", str(tmp_path / "none"), *command]) == 3
        assert capsys.readouterr().err.startswith("linkd: no daemon at ")


def test_who_finds_no_daemon_is_told_where_to_look(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = str(tmp_path / "none")
    assert main(["status", "--socket", absent]) == 3
    said = capsys.readouterr().err
    assert "`systemctl status linkd`" in said
    assert said.count("\n") == 1
    assert main(["-c", str(tmp_path / "none.toml"), "log", "stat", "--socket", absent]) == 3
    said = capsys.readouterr().err
    assert said.startswith(f"linkd: no daemon at {absent}: ")
    assert "none.toml: can't be read" in said


def test_each_error_has_a_line_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "linkd.toml"
    file.write_text('[node]\nname = "a"\nname_ = "b"\n[logs]\n')
    assert main(["check", "-c", str(file)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"linkd: {file}: ") for line in lines)


def test_lines_that_are_meant_to_be_copied_stay_as_they_are(
    daemon: HttpDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    message = 'put these lines into [listen]:\nkey = "/k"'
    answer = (409, {"error": "pairing-refused", "message": message})
    daemon.answers["POST /v1/pairing/invite"] = answer
    assert main(["invite", "edge-1"]) == 4
    assert capsys.readouterr().err.splitlines()[1] == 'key = "/k"'


def test_an_option_that_took_the_name_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["invite", "--send", "a", "edge-1"]) == 2
    hint = "required: NAME (--send and --receive take every word behind them: put NAME first)"
    assert hint in capsys.readouterr().err
    assert main(["kick"]) == 2
    assert capsys.readouterr().err.endswith("required: PEER\n")


def test_what_is_no_utf_8_is_usage(daemon: HttpDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    daemon.answers["POST /v1/channels/orders"] = (201, {"offset": 7, "count": 1})
    for words in (
        ["kick", "\udcff"],
        ["publish", "orders\udcff", "x"],
        ["publish", "orders", "x", "--type", "\udcff"],
        ["token", "--channel", "\udcff"],
    ):
        assert main(words) == 2, words
        assert "expected UTF-8" in capsys.readouterr().err
    assert main(["publish", "orders", "\udcff"]) == 0
    assert daemon.asked[-1].body == b"\xff"


def test_interrupted_while_it_loads_it_ends_as_ever(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.import_module

    def load(name: str) -> ModuleType:
        signal.raise_signal(signal.SIGINT)
        return real(name)

    monkeypatch.setattr(importlib, "import_module", load)
    assert main(["version"]) == 130
    assert capsys.readouterr() == ("", "")
    monkeypatch.undo()
    assert main(["version"]) == 0


def test_usage_is_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["nonsense"]) == 2
    assert main(["status", "--js"]) == 2
    assert main(["log", "trim", "--before", "3", "--ye"]) == 2
    assert main(["publish"]) == 2
    assert main(["publish", "a", "--lines", "--id", "x"]) == 2
    assert main(["-c", str(tmp_path / "none.toml"), "status"]) == 2
    assert main(["outages", "--since", "yesterday"]) == 2
    assert main(["subscribe", "a", "--count", "-1"]) == 2
    assert main(["subscribe", "a", "--from", "-1"]) == 2
    assert main(["log", "trim", "--before", "-1"]) == 2
    for given in ("nan", "inf", "-5", "0", "1e99", "abc"):
        assert main(["publish", "a", "x", "--wait", "hub", "--timeout", given]) == 2, given
        assert main(["publish", "a", "x", "--ttl", given]) == 2, given
        assert main(["join", "code", "--timeout", given]) == 2, given
    capsys.readouterr()


def test_help_is_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "every outage" in capsys.readouterr().out
    assert main(["version"]) == 0
    assert capsys.readouterr().out.startswith("linkd 0.")


def test_publish_asks_what_was_typed(
    daemon: HttpDaemon, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.answers["POST /v1/channels/orders"] = (201, {"offset": 7, "count": 1})
    words = ["--type", "created", "--id", "o-1", "--ttl", "60", "--wait", "hub", "--timeout", "5"]
    assert main(["publish", "orders", '{"total":12}', *words]) == 0
    assert capsys.readouterr().out == "offset 7, hub has it\n"
    asked = daemon.asked[0]
    assert asked.target == "/v1/channels/orders?wait=hub&timeout=5.0"
    assert asked.body == b'{"total":12}'
    headers = {name: value for name, value in asked.headers.items() if name.startswith("linkd-")}
    assert headers == {"linkd-type": "created", "linkd-id": "o-1", "linkd-ttl": "60"}
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xffbytes")))
    assert main(["publish", "orders", "-", "--json"]) == 0
    assert daemon.asked[1].body == b"\xffbytes"
    assert capsys.readouterr().out == '{"offset":7,"count":1}\n'


def test_an_empty_message_is_a_message_and_called_so(
    daemon: HttpDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.answers["POST /v1/channels/orders"] = (201, {"offset": 7, "count": 1})
    assert main(["publish", "orders", ""]) == 0
    assert capsys.readouterr().out == "offset 7 (an empty message)\n"
    assert daemon.asked[0].body == b""


def test_who_types_the_message_is_told_how_to_end_it(
    daemon: HttpDaemon, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.answers["POST /v1/channels/orders"] = (201, {"offset": 7, "count": 1})
    typed = io.TextIOWrapper(io.BytesIO(b"typed\n"))
    monkeypatch.setattr(typed, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", typed)
    assert main(["publish", "orders"]) == 0
    assert "^D" in capsys.readouterr().err
    assert daemon.asked[0].body == b"typed\n"


@pytest.mark.parametrize("word", ["", ".", ".."])
@pytest.mark.parametrize(
    "words",
    [["kick"], ["resync"], ["revoke"], ["publish"], ["consumers", "--delete"]],
    ids=lambda words: words[0],
)
def test_what_can_be_no_name_is_not_asked_for(
    words: list[str], word: str, daemon: HttpDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["x"] if words == ["publish"] else []
    assert main([*words, word, *more]) == 2
    assert capsys.readouterr().err == f"linkd: expected a name, got {word!r}\n"
    assert daemon.asked == []


def drained(**fields: object) -> dict[str, object]:
    now = {"draining": True, "done": False, "seconds": 0.4, "links": 2, "unacknowledged": 1}
    return {**now, "owed_records": 0, **fields}


@pytest.mark.parametrize(
    ("answers", "code", "out", "err"),
    [
        (
            [drained(), drained(), drained(done=True, links=0)],
            0,
            "drained in 400ms, all links have ended\n",
            "linkd: draining: 2 links left, 1 of them with acknowledgements owed\n",
        ),
        (
            [drained(done=True, owed_records=1)],
            0,
            "drained in 400ms, all links have ended; 1 owed record waits in the log\n",
            "",
        ),
        (
            [drained(done=True, owed_records=1200)],
            0,
            "drained in 400ms, all links have ended; 1,200 owed records wait in the log\n",
            "",
        ),
        ([drained(draining=False)], 1, "", "linkd: somebody else has ended the drain\n"),
        (
            [drained(unacknowledged=0)] * 99,
            5,
            "",
            "linkd: draining: 2 links left\n"
            "linkd: 2 links left after 15s; the node goes on draining\n",
        ),
    ],
)
def test_a_drain_shows_its_progress_and_its_end(
    answers: list[dict[str, object]],
    code: int,
    out: str,
    err: str,
    daemon: HttpDaemon,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += 1.0
        daemon.answers["GET /v1/drain"] = (200, answers[min(int(now[0]), len(answers) - 1)])

    monkeypatch.setattr(links, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    daemon.answers["POST /v1/drain"] = (200, answers[0])
    assert main(["drain", "--retry-after", "0.5"]) == code
    assert daemon.asked[0].body == b'{"timeout":10.0,"retry_after":0.5}'
    printed = capsys.readouterr()
    assert printed.out == out
    assert printed.err == err


def test_an_interrupted_drain_goes_on(
    daemon: HttpDaemon, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(links, "time", SimpleNamespace(monotonic=lambda: 0.0, sleep=interrupted))
    daemon.answers["POST /v1/drain"] = (200, drained())
    assert main(["drain"]) == 130
    assert "the node goes on draining; `linkd drain --undo` ends that" in capsys.readouterr().err


@pytest.mark.parametrize("draining", [True, False])
def test_a_drain_is_undone(
    draining: bool, daemon: HttpDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.answers["GET /v1/drain"] = (200, drained(draining=draining))
    daemon.answers["DELETE /v1/drain"] = (200, drained(draining=False))
    assert main(["drain", "--undo"]) == 0
    assert [each.method for each in daemon.asked] == ["GET", "DELETE"]
    said = "links are taken again\n" if draining else "the node was not draining\n"
    assert capsys.readouterr().out == said


def test_refusals_are_4_and_time_outs_5(
    daemon: HttpDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.answers["POST /v1/channels/orders"] = (507, {"error": "log-full", "message": "no room"})
    assert main(["publish", "orders", "x"]) == 4
    assert capsys.readouterr().err == "linkd: log-full: no room\n"
    late = {"error": "timeout", "message": "hub did not have it", "offset": 7}
    daemon.answers["POST /v1/channels/orders"] = (504, late)
    assert main(["publish", "orders", "x", "--wait", "hub"]) == 5
    daemon.answers["POST /v1/channels/orders"] = (500, b"<html>")
    assert main(["publish", "orders", "x"]) == 4
    assert "500: <html>" in capsys.readouterr().err


def test_outages_and_availability(daemon: HttpDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    def outage(began: str, down: float, **more: Any) -> dict[str, Any]:
        return {
            "peer": "hub", "began": began, "reason": "ping-timeout",
            "noticed_after_seconds": 6.9, "down_seconds": down, "attempts": 3,
            "replayed_records": 1200, "drained_seconds": 0.5,
        } | more  # fmt: skip

    found = [
        outage("2026-11-27T20:22:44.000Z", 86_400.0),
        outage("2026-11-28T20:22:44.000Z", 9.0, drill=True),
        outage("2026-11-29T20:22:44.000Z", 62.0, ongoing=True, never_up=True),
    ]
    shares = {"hour": 0.0, "day": 0.99583, "week": 1.0, "month": None}
    known = {"peer": "hub", "measured_since": "2026-11-27T20:00:00.000Z"} | shares
    unknown = {"peer": "b", "measured_since": None} | dict.fromkeys(shares)
    answer = {"outages": found, "availability": [known, unknown]}
    daemon.answers["GET /v1/outages"] = (200, answer)
    assert main(["outages"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[2:] == ["hub", "ping-timeout", "6.9s", "1d00h", "3", "1200", "500ms"]
    assert lines[2].split()[3:7] == ["ping-timeout", "drill", "6.9s", "9.0s"]
    assert lines[3].split()[3:8] == ["ping-timeout", "never", "up", "6.9s", "1m02s+"]
    assert lines[-2].split() == ["hub", "0.000%", "99.583%", "100%", "–", "2026-11-27", "20:00"]
    assert lines[-1].split() == ["b", "–", "–", "–", "–", "–"]
    assert main(["outages", "--since", "1h", "--json", "--no-drills"]) == 0
    assert capsys.readouterr().out.count("\n") == 3
    assert daemon.asked[-1].target == "/v1/outages?since=3600.0&drills=0"
    found.append(outage("2026-11-29T21:22:44.000Z", 0.4, reason="stopped"))
    assert main(["outages"]) == 0
    assert "stopped planned" in capsys.readouterr().out
    assert main(["outages", "--no-planned"]) == 0
    printed = capsys.readouterr().out
    assert "planned" not in printed
    assert printed.count("ping-timeout") == 3


def test_events_prints_each_event_without_control_characters(
    daemon: HttpDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    event = {
        "number": 1, "time": "2026-11-21T03:00:00.000Z", "event": "link.waiting", "peer": "hub",
        "generation": "a:1", "old": "up", "new": "waiting", "reason": "silence",
        "detail": "nothing\x1b[2J heard",
    }  # fmt: skip
    daemon.answers["GET /v1/status"] = (200, status())
    daemon.answers["GET /v1/events"] = (200, {"events": [event]})
    assert main(["events"]) == 0
    said = capsys.readouterr().out
    assert "up -> waiting (silence): nothing�[2J heard" in said
    folded = event | {"count": 1200, "until": "2026-11-21T04:00:00.000Z"}
    daemon.answers["GET /v1/events"] = (200, {"events": [folded]})
    assert main(["events"]) == 0
    said = capsys.readouterr().out
    assert said.endswith("heard (1,200 times, the last at 2026-11-21T04:00:00.000Z)\n")
    assert main(["events", "--json"]) == 0
    assert msgspec.json.decode(capsys.readouterr().out)["event"] == "link.waiting"


def test_acting_commands(daemon: HttpDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    daemon.answers |= {
        "POST /v1/peers/hub/kick": (200, {"peer": "hub"}),
        "POST /v1/peers/hub/resync": (200, {"peer": "hub", "message": "12 again"}),
        "POST /v1/log/trim": (200, {"records": 12, "owed": 3, "done": False}),
        "POST /v1/token": (201, {"token": "t0ken", "expires_seconds": 30}),
        "GET /v1/consumers": (200, {"consumers": [status()["consumers"][0]]}),
        "DELETE /v1/consumers/billing": (204, b""),
        "POST /v1/consumers/billing/move": (200, {}),
        "GET /v1/status": (200, status(link("hub"))),
    }  # fmt: skip
    assert main(["kick", "hub"]) == 0
    assert main(["resync", "hub"]) == 1
    assert daemon.asked[-1].body == b'{"confirmed":false}'
    assert main(["resync", "hub", "--yes"]) == 0
    assert daemon.asked[-1].body == b'{"confirmed":true}'
    assert main(["log", "trim", "--before", "13"]) == 1
    assert "up to 12 records below 13 would go, 3 below it still owed" in capsys.readouterr().out
    assert main(["log", "trim", "--before", "13", "--yes"]) == 0
    assert "deleted 12 records below 13, 3 below it still owed" in capsys.readouterr().out
    daemon.answers["POST /v1/log/trim"] = (200, {"records": 0, "owed": 0, "done": True})
    assert main(["log", "trim", "--before", "13", "--yes"]) == 0
    assert (
        "nothing to delete: only whole files go, and none is entirely below 13"
        in capsys.readouterr().out
    )
    assert main(["token", "--channel", "orders"]) == 0
    assert capsys.readouterr().out == "t0ken\n"
    assert daemon.asked[-1].body == b'{"channel":"orders"}'
    assert main(["consumers"]) == 0
    assert "billing" in capsys.readouterr().out
    assert main(["consumers", "--delete", "billing"]) == 0
    assert daemon.asked[-1].method == "DELETE"
    assert daemon.asked[-1].target == "/v1/consumers/billing?owner=socket"
    assert main(["consumers", "--move", "socket/billing", "shop/bills"]) == 0
    assert daemon.asked[-1].target == "/v1/consumers/billing/move?owner=socket"
    assert daemon.asked[-1].body == b'{"owner":"shop","name":"bills"}'
    assert main(["log", "stat"]) == 0
    assert "12,345 offsets, 1 to 12,345" in capsys.readouterr().out
    assert main(["kick", "nobody"]) == 4
    daemon.answers["POST /v1/peers/hub/kick"] = (200, {"peer": "hub", "state": "up"})
    capsys.readouterr()
    assert main(["kick", "hub"]) == 0
    assert capsys.readouterr().out == "hub is up: left alone\n"


def test_peers_shows_the_hub_that_was_joined(
    daemon: HttpDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    known = status(link("hub"), link("other"))
    known["certificates"] = [
        {"role": "own", "peer": "hub", "expires_seconds": 86_400.0 * 300},
        {"role": "authority", "peer": "hub", "expires_seconds": 86_400.0 * 3000},
    ]
    daemon.answers["GET /v1/status"] = (200, known)
    assert main(["peers"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[1].split() == ["hub", "joined", "300d", "yes"]
    known["certificates"][0]["expires_seconds"] = -1.0
    assert main(["peers", "--json"]) == 0
    assert msgspec.json.decode(capsys.readouterr().out)["state"] == "expired"


def test_peers_that_are_missing(daemon: HttpDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    absent = {
        "peer": "hub", "next": 1, "owed_records": 10, "owed_bytes": 190, "absent_seconds": 5.0,
        "forgotten_seconds": 86395.0,
    }  # fmt: skip
    daemon.answers |= {
        "GET /v1/status": (200, status() | {"absent": [absent]}),
        "POST /v1/peers/hub/forget": (200, {"peer": "hub", "records": 10, "bytes": 190}),
    }
    assert main(["peers"]) == 0  # also where there is no pairing
    said = capsys.readouterr()
    assert "linkd peers --forget NAME" in said.err
    assert said.out.split("\n")[1].split()[:3] == ["hub", "10", "190"]
    assert main(["peers", "--json"]) == 0
    row = msgspec.json.decode(capsys.readouterr().out)
    assert (row["name"], row["state"], row["owed_records"]) == ("hub", "absent", 10)
    assert main(["peers", "--forget", "hub"]) == 1
    assert daemon.asked[-1].body == b'{"confirmed":false}'
    assert "hub is owed 10 records (190 bytes), which it would" in capsys.readouterr().out
    assert main(["peers", "--forget", "hub", "--yes"]) == 0
    assert daemon.asked[-1].body == b'{"confirmed":true}'
    assert main(["peers", "--forget", "nobody"]) == 4
    daemon.answers["GET /v1/pairing/peers"] = (500, {"error": "internal"})
    assert main(["peers"]) == 4


def test_the_dashboards_address_comes_from_the_configuration(
    daemon: HttpDaemon, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    daemon.answers["POST /v1/token"] = (201, {"token": "t0ken", "expires_seconds": 30})
    file = tmp_path / "linkd.toml"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        file.write_text(f'[node]\nname = "edge-1"\n[api]\nhttp = "{address}"\n')
        assert main(["-c", str(file), "token", "--dashboard"]) == 0
        assert capsys.readouterr().out == f"http://{address}/?token=t0ken\n"
    assert main(["-c", str(file), "token", "--dashboard"]) == 4
    assert f"nothing answers at {address}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said", "code"),
    [
        (["orders", "--consumer", "b b"], "'b b' is no consumer's name: expected 1 to 63", 2),
        (["orders", "--consumer", ""], "'' is no consumer's name", 2),
        (["or ders", "--consumer", "new"], "'or ders'", 4),
    ],
)
def test_what_is_refused_begins_nowhere(
    daemon: HttpDaemon, capsys: pytest.CaptureFixture[str], words: list[str], said: str, code: int
) -> None:
    assert main(["subscribe", *words]) == code
    printed = capsys.readouterr().err
    assert said in printed
    assert "begins now" not in printed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--consumer", "new"], "new consumer 'new' begins now, at offset 12,346; --from earliest"),
        (["--consumer", "new", "--from", "earliest"], None),
        (["--consumer", "new", "--from", "latest"], None),
        (["--consumer", "billing"], None),
        (["--consumer", "billing", "--from", "earliest"], "12,000; --from does not count"),
        (["--consumer", "old"], None),
        (["--consumer", "old", "--from", "earliest"], "11; --from does not count"),
        (["--from", "99999"], "offset 99,999 is not there yet"),
        (["--from", "12"], None),
        ([], None),
    ],
)
def test_subscribe_says_where_it_begins(
    daemon: HttpDaemon,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    said: str | None,
) -> None:
    answer = status()
    answer["consumers"] += [
        {"owner": "unowned", "name": "old", "next": 11, "lag_records": 1},
        {"owner": "unowned", "name": "billing", "next": 12, "lag_records": 1},
        {"owner": "shop", "name": "new", "next": 13, "lag_records": 1},
    ]
    daemon.answers["GET /v1/status"] = (200, answer)
    monkeypatch.setattr("linkd.cli.streaming.follow", lambda *_: None)
    assert main(["subscribe", "orders", *words]) == 0
    printed = capsys.readouterr().err
    assert printed == "" if said is None else said in printed
