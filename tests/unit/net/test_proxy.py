"""Tunnels through proxies: which proxy, its protocols byte by byte, and the attempt around them."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linkd.config.addresses import ProxyUrl, parse_proxy, parse_url
from linkd.core.liveness import dialer_limit
from linkd.errors import AttemptFailed, ConfigError
from linkd.net.proxy import (
    MAX_ANSWER_BYTES,
    Credentials,
    ProxyHandshake,
    ProxySettings,
    choose_proxy,
    is_exempt,
    load_credentials,
    make_handshake,
    open_tunnel,
)
from tests.support.hosts import Hosts, Temper, address

TARGET = parse_url("wss://hub.example.net:9443/link")
LOGIN = Credentials("edge", "pass:wörd")
HTTP, SOCKS = parse_proxy("http://proxy.test:3128"), parse_proxy("socks5://proxy.test:1080")
OPEN = b"HTTP/1.1 200 Connection established\r\n\r\n"


# -- which proxy ----------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def test_variables_count_only_where_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://one.test:1")
    monkeypatch.setenv("all_proxy", "socks5h://two.test:2")
    assert choose_proxy(None, TARGET) is None
    assert choose_proxy("http://three.test:3", TARGET) == ProxyUrl("http", "three.test", 3)
    assert choose_proxy("environment", TARGET) == ProxyUrl("http", "one.test", 1)
    plain = parse_url("ws://hub.example.net")
    assert choose_proxy("environment", plain) == ProxyUrl("socks5", "two.test", 2)
    monkeypatch.setenv("http_proxy", "[2001:db8::1]:4")
    assert str(choose_proxy("environment", plain)) == "http://[2001:db8::1]:4"
    monkeypatch.setenv("NO_PROXY", "example.net")
    assert choose_proxy("environment", plain) is None


def test_no_variable_is_no_proxy() -> None:
    assert choose_proxy("environment", TARGET) is None


@pytest.mark.parametrize(
    "text", ["http://user:hidden@proxy.test:1", "hidden:hidden", "https://hidden:1"]
)
def test_a_malformed_variable_is_refused_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", text)
    with pytest.raises(ConfigError, match="environment variable HTTPS_PROXY: expected") as error:
        choose_proxy("environment", TARGET)
    assert "hidden" not in str(error.value)


@pytest.mark.parametrize(
    ("no_proxy", "host", "covered"),
    [
        ("", "hub.example.net", False),
        ("*", "hub.example.net", True),
        ("example.net", "hub.Example.net.", True),
        (".example.net", "hub.example.net", True),
        ("*.example.net", "hub.example.net", True),
        ("other.net, hub.example.net", "hub.example.net", True),
        ("ample.net", "hub.example.net", False),
        ("hub.example.net:9443", "hub.example.net", True),
        ("hub.example.net:443", "hub.example.net", False),
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("10.0.0.0/8", "hub.example.net", False),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3:9443", "10.1.2.3", True),
        ("2001:db8::/32", "2001:db8::7", True),
        ("[2001:db8::7]", "2001:db8::7", True),
        ("[2001:db8::7]:9443", "2001:db8::7", True),
        ("::/0", "10.1.2.3", False),
        ("*:9443", "hub.example.net", True),
        ("*:9443", "2001:db8::7", True),
        ("*:443", "hub.example.net", False),
        ("fe80::/10", "fe80::1%eth0", True),
    ],
)
def test_no_proxy(no_proxy: str, host: str, covered: bool) -> None:
    assert is_exempt(host, 9443, no_proxy) is covered


@pytest.mark.parametrize("setting", ["http://proxy.test:1", "socks5://proxy.test:1", "environment"])
def test_a_link_local_address_is_not_sent_to_a_proxy(
    monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    """Its scope is an interface of this host."""
    monkeypatch.setenv("ALL_PROXY", "http://proxy.test:1")
    target = parse_url("wss://[fe80::1%eth0]:9443")
    with pytest.raises(ConfigError, match="a proxy can't use fe80::1%eth0, which is good on this"):
        choose_proxy(setting, target)
    monkeypatch.setenv("NO_PROXY", "fe80::/10")
    assert choose_proxy("environment", target) is None


def test_a_password_in_place_of_the_path_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the path of a file with `USER:PASSWORD`") as error:
        load_credentials(str(tmp_path / "edge:hidden"))
    assert "hid" not in str(error.value)
    path = tmp_path / "a:b"
    path.write_bytes(b"edge:word")
    path.chmod(0o600)
    assert load_credentials(str(path)).user == "edge"


def secret(directory: Path, content: bytes) -> str:
    path = directory / "proxy.secret"
    path.write_bytes(content)
    path.chmod(0o600)
    return str(path)


def test_credentials_are_the_first_line(tmp_path: Path) -> None:
    for content in (b"edge:pass:w\xc3\xb6rd", b"edge:pass:w\xc3\xb6rd\r\nmore\n"):
        found = load_credentials(secret(tmp_path, content))
        assert (found.user, found.password) == ("edge", "pass:wörd")
        assert "rd" not in repr(found)
    assert load_credentials(secret(tmp_path, b"edge:\n")).password == ""


@pytest.mark.parametrize(
    "content",
    [b"", b"hidden\n", b":hidden", b"user:hid\x01den", b"user:hidden\xff", b"u:" + b"hidden" * 50],
)
def test_a_bad_file_of_credentials_is_refused_and_not_shown(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ConfigError) as error:
        load_credentials(secret(tmp_path, content))
    assert "hid" not in str(error.value)


# -- the protocols --------------------------------------------------------------------------------


def shake(handshake: ProxyHandshake, *answers: bytes) -> list[bytes]:
    """Return what the client sends, given these answers; each comes byte by byte."""
    sent = [handshake.begin()]
    for answer in answers:
        assert handshake.rest is None
        sent.append(b"".join(handshake.receive(answer[at : at + 1]) for at in range(len(answer))))
    return sent


def failure(handshake: ProxyHandshake, *answers: bytes) -> tuple[str, str, str]:
    """Return kind, reason and detail of the failure, however the answers are cut."""
    with pytest.raises(AttemptFailed) as found:
        shake(handshake, *answers)
    return found.value.kind, found.value.reason, found.value.detail


def test_connect_without_credentials() -> None:
    handshake = make_handshake(HTTP, TARGET, None, False)
    assert shake(handshake, OPEN) == [
        b"CONNECT hub.example.net:9443 HTTP/1.1\r\nHost: hub.example.net:9443\r\n\r\n",
        b"",
    ]
    assert handshake.rest == b""


def test_connect_with_credentials_and_ipv6() -> None:
    handshake = make_handshake(HTTP, parse_url("ws://[2001:db8::7]:9443"), LOGIN, False)
    [request] = shake(handshake)
    lines = request.decode().split("\r\n")
    assert lines[0] == "CONNECT [2001:db8::7]:9443 HTTP/1.1"
    assert lines[2] == f"Proxy-Authorization: Basic {b64encode('edge:pass:wörd'.encode()).decode()}"


def test_bytes_behind_the_answer_are_kept() -> None:
    handshake = make_handshake(HTTP, TARGET, None, False)
    handshake.begin()
    assert handshake.receive(OPEN + b"\x16\x03peer") == b""
    assert handshake.rest == b"\x16\x03peer"
    handshake = make_handshake(SOCKS, TARGET, None, False)
    handshake.begin()
    handshake.receive(b"\x05\x00" + b"\x05\x00\x00\x01" + bytes(6) + b"peer")
    assert handshake.rest == b"peer"


NEEDS = b"HTTP/1.1 407 hidden\r\nProxy-Authenticate: "
BASIC = NEEDS + b'NTLM\r\nProxy-Authenticate: Basic realm="hidden"\r\n\r\n'
ASKED = "the proxy answered 407 Proxy Authentication Required to CONNECT: "


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (BASIC, ("rejected", "rejected", f"{ASKED}set `proxy_secret_file`")),
        (
            NEEDS + b"Negotiate\r\nproxy-authenticate: NTLM hidden\r\n\r\n",
            (
                "rejected",
                "rejected",
                f"{ASKED}it asks for negotiate or ntlm, and linkd knows only basic",
            ),
        ),
        (
            b"HTTP/1.1 403 hidden\r\n\r\n",
            ("rejected", "rejected", "the proxy answered 403 Forbidden to CONNECT"),
        ),
        (
            b"HTTP/1.0 503 hidden\r\n\r\n",
            (
                "refused",
                "refused",
                "the proxy answered 503 Service Unavailable to CONNECT: it does not reach the peer",
            ),
        ),
        (
            b"HTTP/1.1 504\r\n\r\n",
            (
                "unreachable",
                "unreachable",
                "the proxy answered 504 Gateway Timeout to CONNECT: it does not reach the peer",
            ),
        ),
        (
            b"HTTP/1.1 503 x\r\nRetry-After: 7\r\n\r\n",
            ("busy", "busy", "the proxy answered 503 Service Unavailable to CONNECT"),
        ),
        (b"HTTP/1.1 599 x\r\n\r\n", ("broken", "closed", "the proxy answered 599 to CONNECT")),
        (
            b"HTTP/1.1 429 x\r\n\r\n",
            ("broken", "closed", "the proxy answered 429 Too Many Requests to CONNECT"),
        ),
        (b"HTTP/1.1 20x\r\n\r\n", ("broken", "protocol", "the proxy's answer is malformed")),
        (b"HTTP/1.1\r\n\r\n", ("broken", "protocol", "the proxy's answer is malformed")),
        (
            b"\x05\xff",
            ("rejected", "rejected", "the proxy answered with something that is not HTTP"),
        ),
        (
            b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 4000,
            (
                "broken",
                "protocol",
                f"the head of the proxy's answer has more than {MAX_ANSWER_BYTES} bytes",
            ),
        ),
    ],
)
def test_answers_to_connect_that_open_no_tunnel(
    answer: bytes, expected: tuple[str, str, str]
) -> None:
    assert failure(make_handshake(HTTP, TARGET, None, False), answer) == expected
    with pytest.raises(AttemptFailed) as whole:
        make_handshake(HTTP, TARGET, None, False).receive(answer)
    assert (whole.value.kind, whole.value.reason, whole.value.detail) == expected


@pytest.mark.parametrize(
    ("challenges", "asked"),
    [
        (b'Negotiate, Basic realm="x"', "set `proxy_secret_file`"),
        (b'Digest realm="a, b", nonce = c,basic realm=x', "set `proxy_secret_file`"),
        (b"", "set `proxy_secret_file`"),
        (b'Digest realm="say \\", basic", qop="auth"', "it asks for digest"),
        (b"Negotiate abc==, basic = 1, Ntlm, NTLM", "it asks for negotiate or ntlm"),
        (b"hidden, Bearer", "it asks for bearer or another scheme"),
        (b"hidden\r\nProxy-Authenticate: hidden2", "it asks for another scheme"),
        (b'Digest realm="basic, basic', "it asks for digest"),
        (b"x" + b"\r\nProxy-Authenticate: abcdefghij" * 480, "it asks for another scheme"),
    ],
)
def test_only_known_schemes_are_named(challenges: bytes, asked: str) -> None:
    """Each once, wherever it is in the list; a scheme of the proxy's own may be our password."""
    detail = failure(make_handshake(HTTP, TARGET, None, False), NEEDS + challenges + b"\r\n\r\n")[2]
    ends = "" if asked.startswith("set") else ", and linkd knows only basic"
    assert detail == ASKED + asked + ends


@pytest.mark.parametrize("signs", [b'"\\', b'"', b",", b" ", b", a ", b"a,"])
def test_a_hostile_challenge_costs_little(signs: bytes) -> None:
    answer = NEEDS + (signs * MAX_ANSWER_BYTES)[:16_000] + b"\r\n\r\n"
    with pytest.raises(AttemptFailed) as found:
        make_handshake(HTTP, TARGET, None, False).receive(answer)
    assert len(found.value.detail) < 200


INTERIM = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"


def test_interim_answers_are_skipped() -> None:
    handshake = make_handshake(HTTP, TARGET, None, False)
    shake(handshake, b"HTTP/1.1 100 Continue\r\n\r\n" + INTERIM + OPEN)
    assert handshake.rest == b""
    handshake = make_handshake(HTTP, TARGET, None, False)
    assert handshake.receive(INTERIM + OPEN + b"peer") == b""
    assert handshake.rest == b"peer"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (INTERIM * (MAX_ANSWER_BYTES // len(INTERIM)) + OPEN, "more than 16384 bytes"),
        (b"HTTP/1.1 101 x\r\n\r\n" + OPEN, "the proxy answered 101 Switching Protocols"),
        (INTERIM + b"HTTP/1.1 403 x\r\n\r\n", "the proxy answered 403 Forbidden"),
        (INTERIM + b"\x05\xff", "something that is not HTTP"),
    ],
)
def test_interim_answers_that_lead_to_no_tunnel(answer: bytes, words: str) -> None:
    assert words in failure(make_handshake(HTTP, TARGET, None, False), answer)[2]
    with pytest.raises(AttemptFailed, match=words):
        make_handshake(HTTP, TARGET, None, False).receive(answer)


@pytest.mark.parametrize("more", [0, 1])
def test_the_bound_does_not_depend_on_how_an_answer_is_cut(more: int) -> None:
    begins = b"HTTP/1.1 200 OK\r\nA: "
    answer = begins + b"b" * (MAX_ANSWER_BYTES - len(begins) - 4 + more) + b"\r\n\r\n"
    for pieces in ([answer], [answer[:-1], answer[-1:]], [answer[:-4], answer[-4:]]):
        handshake = make_handshake(HTTP, TARGET, None, False)
        if more:
            with pytest.raises(AttemptFailed, match="more than 16384 bytes"):
                shake_whole(handshake, pieces)
        else:
            shake_whole(handshake, pieces)
            assert handshake.rest == b""


def shake_whole(handshake: ProxyHandshake, pieces: list[bytes]) -> None:
    """Give a handshake these pieces of an answer."""
    for piece in pieces:
        handshake.receive(piece)


def test_a_long_head_that_ends_is_too_long_too() -> None:
    handshake = make_handshake(HTTP, TARGET, None, False)
    with pytest.raises(AttemptFailed, match="more than 16384 bytes"):
        handshake.receive(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 4000 + b"\r\n")


def test_wrong_credentials_are_rejected_even_where_the_url_has_worked() -> None:
    """A retry every few seconds locks an account."""
    found = failure(make_handshake(HTTP, TARGET, LOGIN, True), BASIC)
    refused = "it does not accept the user and password in `proxy_secret_file`"
    assert found == ("rejected", "rejected", ASKED + refused)
    found = failure(make_handshake(SOCKS, TARGET, LOGIN, True), b"\x05\x02", b"\x01\x01")
    assert found == (
        "rejected",
        "rejected",
        f"the proxy answered: authentication failed: {refused}",
    )


def test_other_refusals_are_broken_where_the_url_has_worked() -> None:
    refusal = b"HTTP/1.1 403 No\r\n\r\n"
    assert failure(make_handshake(HTTP, TARGET, None, True), refusal)[:2] == ("broken", "closed")
    refusal = b"\x05\x02\x00"
    assert failure(make_handshake(SOCKS, TARGET, None, True), b"\x05\x00", refusal)[:2] == (
        "broken",
        "closed",
    )


@pytest.mark.parametrize(
    ("host", "sent"),
    [
        ("hub.example.net", b"\x03\x0fhub.example.net"),
        ("192.0.2.7", b"\x01\xc0\x00\x02\x07"),
        ("[2001:db8::7]", b"\x04\x20\x01\x0d\xb8" + bytes(11) + b"\x07"),
    ],
)
@pytest.mark.parametrize(
    "bound", [b"\x01" + bytes(6), b"\x03\x02ab" + bytes(2), b"\x04" + bytes(18)]
)
def test_socks(host: str, sent: bytes, bound: bytes) -> None:
    handshake = make_handshake(SOCKS, parse_url(f"wss://{host}:9443"), None, False)
    answers = b"\x05\x00", b"\x05\x00\x00" + bound
    assert shake(handshake, *answers) == [
        b"\x05\x01\x00",
        b"\x05\x01\x00" + sent + (9443).to_bytes(2, "big"),
        b"",
    ]
    assert handshake.rest == b""


def test_socks_with_credentials() -> None:
    handshake = make_handshake(SOCKS, TARGET, LOGIN, False)
    sent = shake(handshake, b"\x05\x02", b"\x01\x00", b"\x05\x00\x00\x01" + bytes(6))
    assert sent[:2] == [b"\x05\x02\x00\x02", b"\x01\x04edge\x0apass:w\xc3\xb6rd"]
    assert handshake.rest == b""
    handshake = make_handshake(SOCKS, TARGET, LOGIN, False)  # it does not want them
    shake(handshake, b"\x05\x00", b"\x05\x00\x00\x01" + bytes(6))
    assert handshake.rest == b""


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ((b"\x05\x00", b"\x05\x01"), ("refused", "refused", "general SOCKS server failure")),
        ((b"\x05\x00", b"\x05\x02"), ("rejected", "rejected", "connection not allowed by ruleset")),
        ((b"\x05\x00", b"\x05\x03"), ("unreachable", "unreachable", "network unreachable")),
        ((b"\x05\x00", b"\x05\x04"), ("unreachable", "unreachable", "host unreachable")),
        ((b"\x05\x00", b"\x05\x05"), ("refused", "refused", "connection refused")),
        ((b"\x05\x00", b"\x05\x06"), ("unreachable", "unreachable", "TTL expired")),
        ((b"\x05\x00", b"\x05\x07"), ("rejected", "rejected", "command not supported")),
        ((b"\x05\x00", b"\x05\x08"), ("rejected", "rejected", "address type not supported")),
        ((b"\x05\x00", b"\x05\x99"), ("broken", "closed", "unknown reply 153")),
        ((b"\x05\x00", b"\x05\x00\x00\x02\x00"), ("broken", "protocol", "malformed")),
        ((b"\x05\x02",), ("broken", "protocol", "a method that was not offered")),
        ((b"\x05\xff",), ("rejected", "rejected", "no authentication method: set `proxy_secret")),
        ((b"HTTP/1.1 400",), ("rejected", "rejected", "not SOCKS5")),
        ((b"\x05\x00", b"\x04\x5a"), ("rejected", "rejected", "not SOCKS5")),
    ],
)
def test_answers_of_socks_that_open_no_tunnel(
    answers: tuple[bytes, ...], expected: tuple[str, str, str]
) -> None:
    kind, reason, detail = failure(make_handshake(SOCKS, TARGET, None, False), *answers)
    assert (kind, reason) == expected[:2]
    assert expected[2] in detail
    assert detail.startswith("the proxy")


@given(
    scheme=st.sampled_from([HTTP, SOCKS]),
    login=st.sampled_from([None, LOGIN]),
    begins=st.sampled_from([b"", OPEN[:12], OPEN, INTERIM, b"\x05\x00\x05\x00\x00\x01"]),
    ends=st.binary(max_size=80),
    cuts=st.lists(st.integers(1, 20)),
)
def test_any_answer_opens_a_tunnel_or_fails(
    scheme: ProxyUrl, login: Credentials | None, begins: bytes, ends: bytes, cuts: list[int]
) -> None:
    """However it is cut; and all that follows an answer that opens the tunnel is passed on."""
    answer = begins + ends
    outcomes = []
    for sizes in ([len(answer)], cuts):
        handshake = make_handshake(scheme, TARGET, login, False)
        handshake.begin()
        left, rest = answer, b""
        try:
            for size in [*sizes, len(answer)]:
                if handshake.rest is None:
                    handshake.receive(left[:size])
                else:
                    rest += left[:size]
                left = left[size:]
            outcomes.append(None if handshake.rest is None else handshake.rest + rest)
        except AttemptFailed as error:
            outcomes.append(error.detail)
    assert outcomes[0] == outcomes[1]


# -- the attempt ----------------------------------------------------------------------------------


def through(
    directory: Path, *answers: tuple[bytes, bool], tempers: tuple[Temper, ...] = ("proxy",)
) -> Hosts:
    """Return a dialer behind a proxy with these answers, at one address if nothing else is said."""
    hosts = Hosts(directory, tempers, proxy="http://proxy.test:3128")
    hosts.answers = list(answers)
    return hosts


def fail(hosts: Hosts) -> AttemptFailed:
    """Let an attempt fail."""
    hosts.dialer.dial(0.0)
    hosts.run(7.0, until="failed")
    return hosts.link.failures[-1]


def test_the_link_is_up_through_the_proxy(tmp_path: Path) -> None:
    hosts = through(tmp_path, (OPEN, True))
    hosts.dialer.dial(0.0)
    assert hosts.run(5.0, until="greeted") < 0.1
    assert hosts.looked_up == ["proxy.test"]
    assert hosts.asked == [b"CONNECT hub.test:9443 HTTP/1.1\r\nHost: hub.test:9443\r\n\r\n"]
    [connection] = hosts.link.connections
    assert connection.life.limit == dialer_limit(5.0)
    assert connection.transport is hosts.pipes[0].near  # nothing of the tunnel is left
    hosts.run(30.0)
    assert hosts.link.losses == []
    hosts.pipes[0].cut = True
    began = hosts.seconds()
    heard = connection.life.heard_at
    hosts.run(20.0, until="lost")
    assert hosts.link.losses[0][0] == "silence"
    assert hosts.seconds() - heard == pytest.approx(10.0, abs=0.02)
    assert hosts.seconds() - began <= 10.0


def test_a_failure_names_the_peer_the_proxy_and_its_answer(tmp_path: Path) -> None:
    hosts = through(tmp_path, (b"HTTP/1.1 403 No\r\n\r\n", False))
    found = fail(hosts)
    assert (found.kind, found.reason) == ("rejected", "rejected")
    assert found.detail == (
        "ws://hub.test:9443/link through http://proxy.test:3128: [2001:db8::a]:3128:"
        " the proxy answered 403 Forbidden to CONNECT"
    )


@pytest.mark.parametrize(
    ("temper", "kind", "reason", "words"),
    [
        ("silent", "unreachable", "unreachable", "the proxy: no answer"),
        ("refusing", "refused", "refused", "the proxy: refused"),
        ("mute", "unreachable", "unreachable", "the proxy opened no tunnel within 2.0 s"),
        ("closing", "broken", "closed", "the connection was cut or reset before the proxy opened"),
        ("bad-gateway", "refused", "refused", "the proxy answered 502 Bad Gateway to CONNECT: it"),
    ],
)
def test_what_a_proxy_counts_as(
    tmp_path: Path, temper: Temper, kind: str, reason: str, words: str
) -> None:
    hosts = through(tmp_path, tempers=(temper,))
    found = fail(hosts)
    assert (found.kind, found.reason) == (kind, reason)
    assert words in found.detail
    assert "through http://proxy.test:3128: " in found.detail


def test_a_slow_proxy_gets_the_whole_attempt_every_fourth_time(tmp_path: Path) -> None:
    hosts = through(tmp_path, tempers=("mute",))
    took = []
    for _ in range(4):
        began = hosts.seconds()
        assert fail(hosts).kind == "unreachable"
        took.append(round(hosts.seconds() - began, 1))
    assert took == [2.0, 2.0, 2.0, 5.0]
    assert "the proxy opened no tunnel within 5.0 s" in hosts.link.failures[-1].detail


def test_a_mute_address_of_the_proxy_costs_its_turn(tmp_path: Path) -> None:
    hosts = through(
        tmp_path,
        (OPEN, True),
        tempers=(
            "mute",
            "proxy",
        ),
    )
    hosts.dialer.dial(0.0)
    assert hosts.run(5.0, until="greeted") == pytest.approx(5.0 / 3, abs=0.1)
    assert hosts.dialed == [address(0), address(1)]
    hosts.run(1.0)
    assert [pipe.near.gone for pipe in hosts.pipes] == [True, False]


def test_a_failure_of_the_peer_is_the_peers(tmp_path: Path) -> None:
    hosts = through(
        tmp_path, (OPEN, False), (b"HTTP/1.1 502 x\r\nContent-Length: 0\r\n\r\n", False)
    )
    found = fail(hosts)
    assert (found.kind, found.reason) == ("broken", "closed")
    assert found.detail.endswith(": it answered 502 to POST /token")


def test_a_peer_that_is_mute_behind_an_open_tunnel_is_broken(tmp_path: Path) -> None:
    hosts = through(tmp_path, (OPEN, False), (b"", False))
    found = fail(hosts)
    assert (found.kind, found.reason) == ("broken", "unreachable")
    assert found.detail.endswith(": the handshake was not done within 5.0 s")


def test_an_attempt_that_is_dropped_leaves_nothing(tmp_path: Path) -> None:
    hosts = through(tmp_path, tempers=("mute",))
    hosts.dialer.dial(0.0)
    hosts.run(1.0)
    hosts.dialer.stop()
    hosts.run(1.0)
    assert hosts.pipes[0].near.gone
    assert hosts.getDelayedCalls() == []
    assert hosts.link.failures == []


def test_a_tunnel_that_opens_for_nobody_is_closed(tmp_path: Path) -> None:
    hosts = through(tmp_path, tempers=("mute",))
    hosts.dialer.dial(0.0)
    hosts.run(0.5)
    attempt = hosts.dialer.connector
    hosts.dialer.connector = None
    hosts.pipes[0].near.protocol.dataReceived(OPEN)
    hosts.run(0.1)
    assert hosts.pipes[0].near.gone
    assert attempt is not None
    attempt.abandon()


def test_credentials_that_can_not_be_used_fail_the_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = secret(tmp_path, b"hidden")
    hosts = Hosts(tmp_path, ["proxy"], proxy="socks5://proxy.test:1", proxy_secret_file=path)
    found = fail(hosts)
    assert found.kind == "rejected"
    assert found.detail == f"{path}: expected `USER:PASSWORD` in its first line"
    assert hosts.asked == []
    monkeypatch.setenv("ALL_PROXY", "hidden")
    hosts = Hosts(tmp_path, ["proxy"], proxy="environment")
    found = fail(hosts)
    assert found.kind == "rejected"
    assert "environment variable ALL_PROXY: expected" in found.detail
    assert "hidden" not in found.detail


def test_through_socks(tmp_path: Path) -> None:
    path = secret(tmp_path, b"edge:hidden-password")
    hosts = Hosts(tmp_path, ["proxy"], proxy="socks5://proxy.test:1", proxy_secret_file=path)
    hosts.answers = [
        (b"\x05\x02", False),
        (b"\x01\x00", False),
        (b"\x05\x00\x00\x01" + bytes(6), True),
    ]
    hosts.dialer.dial(0.0)
    assert hosts.run(5.0, until="greeted") < 0.1
    assert hosts.asked[2].startswith(b"\x05\x01\x00\x03\x08hub.test")


# -- the blocking way -----------------------------------------------------------------------------


class Sockets:
    """Stands in for the modules socket and time; its clock moves as its sockets wait.

    Args:
        addresses: What each address of the proxy does: `silent` (TCP), `refused`, `mute`, or sends
            these bytes, one after 0.1 s.
    """

    SOCK_STREAM = 1

    def __init__(self, *addresses: bytes | str) -> None:
        self.now = 0.0
        self.addresses = addresses
        self.closed: list[int] = []
        self.dialed: list[int] = []

    def monotonic(self) -> float:
        return self.now

    def getaddrinfo(self, host: str, port: int, type: int) -> list[tuple[object, ...]]:
        return [(0, type, 0, "", number) for number in range(len(self.addresses))]

    def socket(self, family: int, kind: int, number: int) -> FakeSocket:
        return FakeSocket(self)


class FakeSocket:
    """A socket of `Sockets`."""

    def __init__(self, sockets: Sockets) -> None:
        self.sockets = sockets
        self.timeout = 0.0
        self.number = -1
        self.coming = b""

    def settimeout(self, seconds: float) -> None:
        assert seconds > 0
        self.timeout = seconds

    def wait(self) -> None:
        self.sockets.now += self.timeout
        raise TimeoutError("timed out")

    def connect(self, where: int) -> None:
        self.number = where
        self.sockets.dialed.append(where)
        does = self.sockets.addresses[where]
        if does == "refused":
            raise ConnectionRefusedError(111, "Connection refused")
        if does == "silent":
            self.wait()
        self.coming = does if isinstance(does, bytes) else b""

    def sendall(self, data: bytes) -> None:
        pass

    def recv(self, most: int) -> bytes:
        if not self.coming or self.timeout < 0.1:
            self.wait()
        self.sockets.now += 0.1
        data, self.coming = self.coming[:1], self.coming[1:]
        return data

    def close(self) -> None:
        self.sockets.closed.append(self.number)


def blocking(monkeypatch: pytest.MonkeyPatch, *addresses: bytes | str) -> Sockets:
    """Put stand-ins in place of the sockets and the clock of `open_tunnel`."""
    sockets = Sockets(*addresses)
    for name in ("socket", "time"):
        monkeypatch.setattr(f"linkd.net.proxy.{name}", sockets)
    return sockets


THROUGH = ProxySettings("http://proxy.test:3128")


@pytest.mark.parametrize("first", ["silent", "refused", "mute"])
def test_addresses_of_a_proxy_share_the_time(monkeypatch: pytest.MonkeyPatch, first: str) -> None:
    sockets = blocking(monkeypatch, first, "silent", b"HTTP/1.1 200 \r\n\r\n", "mute")
    found: Any = open_tunnel(THROUGH, TARGET, 12.0)
    assert found.number == 2
    assert sockets.closed == [0, 1]
    assert found.timeout == 12.0
    passed = {"refused": 4.0, "silent": 6.0, "mute": 6.0}[first]
    assert sockets.now == pytest.approx(passed + 1.7)


@pytest.mark.parametrize(
    "addresses",
    [
        (b"HTTP/1.1 200 OK\r\n" + b"a" * 900,),
        ("silent",) * 3,
        ("mute", OPEN[:-2] + b"a" * 900, "refused"),
    ],
)
def test_an_answer_that_drips_does_not_exceed_the_time(
    monkeypatch: pytest.MonkeyPatch, addresses: tuple[bytes | str, ...]
) -> None:
    sockets = blocking(monkeypatch, *addresses)
    with pytest.raises(AttemptFailed) as found:
        open_tunnel(THROUGH, TARGET, 5.0)
    assert sockets.now <= 5.0 + 1e-6
    assert "through http://proxy.test:3128: " in found.value.detail
    assert sockets.closed == sockets.dialed == list(range(len(addresses)))


def test_a_rejection_is_final_and_any_other_answer_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    sockets = blocking(monkeypatch, NEEDS + b"Basic\r\n\r\n", OPEN)
    with pytest.raises(AttemptFailed, match="set `proxy_secret_file`"):
        open_tunnel(THROUGH, TARGET, 60.0)
    assert sockets.dialed == sockets.closed == [0]
    sockets = blocking(monkeypatch, b"HTTP/1.1 502 x\r\n\r\n", OPEN)
    assert open_tunnel(THROUGH, TARGET, 60.0) is not None
    assert sockets.closed == [0]
