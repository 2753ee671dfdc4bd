"""Links through proxies, HTTP CONNECT and SOCKS5: up, refused, cut and back, watched, paired."""

from __future__ import annotations

import json
import socket
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as global_reactor
from twisted.internet.threads import deferToThread

from linkd.cli import main
from linkd.config import load
from linkd.config.addresses import parse_url
from linkd.drill.testbed import free_port
from linkd.errors import AttemptFailed
from linkd.net.linux import BACKSTOP_SECONDS, TCP_USER_TIMEOUT
from linkd.net.proxy import ProxySettings, open_tunnel
from linkd.pairing.client import HubUnreachable, join, renew
from linkd.pairing.messages import PairingRefused
from tests.integration.test_tls_link import Ends
from tests.support.daemon import Daemon, listen, peer
from tests.support.pairing_lab import Hub, edge_config
from tests.support.proxy import SLOW, Mood, Proxy
from tests.support.tls_lab import Pair

reactor: Any = global_reactor
LOGIN = "edge-user:hidden-pass:word"
SCHEMES = ("http", "socks5")


@pytest_twisted.async_yield_fixture
async def ends(tmp_path: Path) -> AsyncIterator[Ends]:
    both = Ends(Pair(tmp_path))
    yield both
    await both.close()


@pytest.fixture
def proxy(ends: Ends) -> Iterator[Proxy]:
    """Return a proxy that alone knows where `hub.test` is."""
    with Proxy(route=lambda *_: ("127.0.0.1", ends.listener.port_number)) as made:
        yield made


def login_file(directory: Path, login: str = LOGIN) -> str:
    path = directory / "proxy.secret"
    path.write_text(f"{login}\n")
    path.chmod(0o600)
    return str(path)


def through(proxy: Proxy, scheme: str) -> dict[str, Any]:
    """Return settings of a peer that only the proxy can reach; `hub` is in its certificate."""
    url = "wss://hub:9443/link"
    return {"dial": (url,), "proxy": f"{scheme}://127.0.0.1:{proxy.port}"}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("mood", ["good", "slow"])
@pytest_twisted.ensureDeferred
async def test_up_without_credentials(ends: Ends, proxy: Proxy, scheme: str, mood: Mood) -> None:
    proxy.mood = mood
    began = time.monotonic()
    connection = await ends.up(ends.dialer(**through(proxy, scheme)))
    assert (time.monotonic() - began >= SLOW) is (mood == "slow")
    assert proxy.asked == [("hub", 9443)]
    handle = connection.transport.transport.getHandle()
    limit = connection.life.limit + BACKSTOP_SECONDS
    assert handle.getsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT) == limit * 1000
    assert handle.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest_twisted.ensureDeferred
async def test_up_with_credentials(ends: Ends, proxy: Proxy, scheme: str, tmp_path: Path) -> None:
    proxy.login = LOGIN
    dialer = ends.dialer(**through(proxy, scheme), proxy_secret_file=login_file(tmp_path))
    await ends.up(dialer)


@pytest.mark.parametrize(
    ("scheme", "host", "asked"),
    [("http", "[::1]", "::1"), ("socks5", "[::1]", "::1"), ("socks5", "127.0.0.1", "127.0.0.1")],
)
@pytest_twisted.ensureDeferred
async def test_addresses(ends: Ends, proxy: Proxy, scheme: str, host: str, asked: str) -> None:
    changes = {**through(proxy, scheme), "dial": (f"wss://{host}:9443/link",)}
    if asked == "::1":  # it is not in the certificate
        failure = await ends.refused(ends.dialer(**changes))
        assert failure.reason == "tls"
    else:
        await ends.up(ends.dialer(**changes))
    assert proxy.asked == [(asked, 9443)]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest_twisted.ensureDeferred
async def test_the_peers_certificate_is_verified_inside_the_tunnel(
    ends: Ends, proxy: Proxy, scheme: str
) -> None:
    changes = {**through(proxy, scheme), "dial": ("wss://other.example.net/link",)}
    failure = await ends.refused(ends.dialer(**changes))
    assert (failure.kind, failure.reason) == ("rejected", "tls")
    assert "the certificate of other.example.net is not for the name" in failure.detail


REFUSED = {
    # mood: HTTP's kind, reason and words; SOCKS'
    "refusing": (
        ("rejected", "rejected", "the proxy answered 403 Forbidden to CONNECT"),
        ("rejected", "rejected", "the proxy answered: connection not allowed by ruleset"),
    ),
    "unable": (
        ("refused", "refused", "answered 503 Service Unavailable to CONNECT: it does not reach"),
        ("unreachable", "unreachable", "the proxy answered: host unreachable"),
    ),
    "mute": (
        ("unreachable", "unreachable", "the proxy opened no tunnel within "),
        ("unreachable", "unreachable", "the proxy opened no tunnel within "),
    ),
    "closing": (
        ("broken", "closed", "the other end closed the connection before the proxy opened"),
        ("broken", "closed", "the other end closed the connection before the proxy opened"),
    ),
    "headers": (
        ("broken", "protocol", "the head of the proxy's answer has more than 16384 bytes"),
        ("rejected", "rejected", "the proxy answered with something that is not SOCKS5"),
    ),
    "garbage": (
        ("rejected", "rejected", "the proxy answered with something that is not HTTP"),
        ("rejected", "rejected", "the proxy answered with something that is not SOCKS5"),
    ),
}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("mood", list(REFUSED))
@pytest_twisted.ensureDeferred
async def test_each_error_is_named(ends: Ends, proxy: Proxy, scheme: str, mood: Mood) -> None:
    proxy.mood = mood
    dialer = ends.dialer(**through(proxy, scheme))
    if mood == "mute":
        dialer.configure(dialer.settings, 0.6)
    kind, reason, words = REFUSED[mood][SCHEMES.index(scheme)]
    failure = await ends.refused(dialer)
    assert (failure.kind, failure.reason) == (kind, reason)
    assert words in failure.detail
    assert failure.detail.startswith(f"wss://hub:9443/link through {scheme}://127.0.0.1:")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("given", [None, "edge-user:hidden-other"])
@pytest_twisted.ensureDeferred
async def test_wrong_credentials_are_rejected_and_not_shown(
    ends: Ends, proxy: Proxy, scheme: str, given: str | None, tmp_path: Path
) -> None:
    proxy.login = LOGIN
    file = None if given is None else login_file(tmp_path, given)
    failure = await ends.refused(ends.dialer(**through(proxy, scheme), proxy_secret_file=file))
    assert (failure.kind, failure.reason) == ("rejected", "rejected")
    assert "`proxy_secret_file`" in failure.detail
    assert "hidden" not in failure.detail


@pytest_twisted.ensureDeferred
async def test_a_proxy_that_is_down_is_refused(ends: Ends, proxy: Proxy) -> None:
    proxy.stop()
    failure: AttemptFailed = await ends.refused(ends.dialer(**through(proxy, "http")))
    assert (failure.kind, failure.reason) == ("refused", "refused")
    assert failure.detail.endswith(": the proxy: refused")
    proxy.start()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest_twisted.ensureDeferred
async def test_a_node_joins_and_renews_through_a_proxy(scheme: str, tmp_path: Path) -> None:
    hub = Hub(tmp_path / "hub")
    edge = edge_config(tmp_path / "edge", "edge-1")
    folder = Path(edge.node.state_dir).parent / "linkd.d"
    code = hub.pairing.invite("edge-1", "127.0.0.1")
    try:
        with Proxy(LOGIN) as proxy:
            url = f"{scheme}://127.0.0.1:{proxy.port}"
            bare = partial(join, code, edge, folder, lambda _: None)
            with pytest.raises(HubUnreachable, match=f"through {url}: .*`proxy_secret_file`"):
                await deferToThread(bare, ProxySettings(url))
            way = ProxySettings(url, login_file(tmp_path))
            done = await deferToThread(bare, way)
            asked = len(proxy.asked)
            assert asked >= 2
            text = done.file.read_text()
            assert f'proxy = "{url}"\nproxy_secret_file = "{way.secret_file}"\n' in text
            assert "hidden" not in text
            file = folder.parent / "linkd.toml"
            file.write_text(f'[node]\nname = "edge-1"\nstate_dir = "{edge.node.state_dir}"\n')
            [peer_settings] = load([file, done.file]).peers
            with pytest.raises(PairingRefused, match="it is too early"):  # the hub says that
                await deferToThread(renew, peer_settings)
            assert len(proxy.asked) > asked
    finally:
        await hub.close()


@pytest.mark.parametrize(
    ("mood", "words"),
    [
        ("closing", "the proxy closed the connection before it opened a tunnel"),
        ("mute", "timed out"),
        ("garbage", "the proxy answered with something that is not HTTP"),
        ("talking", "bytes arrived before TLS began"),
        (None, "Connection refused"),
    ],
)
def test_a_tunnel_for_pairing_that_does_not_open(mood: Mood | None, words: str) -> None:
    target = parse_url("wss://127.0.0.1:9443")
    with Proxy(mood=mood or "good") as proxy:
        if mood is None:
            proxy.stop()
        settings = ProxySettings(f"http://127.0.0.1:{proxy.port}")
        with pytest.raises(AttemptFailed, match=f"^through {settings.proxy}: .*{words}"):
            open_tunnel(settings, target, 0.3 if mood == "mute" else 5.0)
        if mood is None:
            proxy.start()
    assert open_tunnel(ProxySettings(), target, 0.3) is None


# -- daemons --------------------------------------------------------------------------------------


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def hub(port: int) -> Iterator[Daemon]:
    with Daemon("hub", listen(port, "127.0.0.1") + peer("edge")) as daemon:
        yield daemon


def edge_through(proxy: Proxy, scheme: str, directory: Path, port: int) -> str:
    extra = (
        f'proxy = "{scheme}://127.0.0.1:{proxy.port}"\n'
        f'proxy_secret_file = "{login_file(directory)}"\n'
    )
    return peer("hub", f"ws://hub.test:{port}/link", extra=extra)


def attempt(edge: Daemon, words: str, within: float = 5.0) -> dict[str, Any]:
    """Return the link once its last failed attempt says so."""
    end = time.monotonic() + within
    while words not in str((link := edge.link("hub"))["attempt_detail"]):
        assert time.monotonic() < end, link
        time.sleep(0.05)
    return link


@pytest.mark.timing
def test_a_proxy_that_restarts_under_a_link(
    hub: Daemon,
    port: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Up and back as without a proxy; the credentials are nowhere to be seen."""
    with (
        Proxy(LOGIN, lambda *_: ("127.0.0.1", port)) as proxy,
        Daemon("edge", edge_through(proxy, "http", tmp_path, port)) as edge,
    ):
        edge.wait_up("hub")
        assert proxy.asked == [("hub.test", port)]  # token and upgrade in one tunnel
        proxy.stop()
        link = attempt(edge, ": the proxy: refused")
        assert link["reason"] == "closed"
        assert link["attempt_reason"] == "refused"
        assert f"through http://127.0.0.1:{proxy.port}" in link["attempt_detail"]
        proxy.start()
        began = time.monotonic()
        assert edge.wait_up("hub", 5) - began < 2.0
        proxy.login = "another:login"
        proxy.stop()
        proxy.start()
        link = attempt(edge, "it does not accept the user and password in `proxy_secret_file`")
        assert link["state"] == "rejected"
        monkeypatch.setenv("LINKD_CONFIG", str(edge.config_file))
        capsys.readouterr()
        for words in (("check",), ("check", "--json"), ("status", "hub"), ("report", "-o", "-")):
            main(list(words))
        printed = capsys.readouterr()
        text = "\n".join((printed.out, printed.err, json.dumps(edge.status()), edge.tail(10_000)))
    assert "== configuration" in text
    assert "== outages\n{" in text
    assert f'proxy = "http://127.0.0.1:{proxy.port}"' in text
    for secret in ("hidden", "edge-user", b64encode(LOGIN.encode()).decode()):
        assert secret not in text


@pytest.mark.timing
def test_a_tunnel_that_falls_silent_is_noticed_in_time(
    hub: Daemon, port: int, tmp_path: Path
) -> None:
    """By the listener within 7 s, by the dialer within 10 s of the last byte; and it is back."""
    with (
        Proxy(LOGIN, lambda *_: ("127.0.0.1", port)) as proxy,
        Daemon("edge", edge_through(proxy, "socks5", tmp_path, port)) as edge,
    ):
        edge.wait_up("hub")
        began = time.monotonic()
        proxy.flowing.clear()
        at_hub = hub.wait_line(9, after=began, event="link.waiting")
        at_edge = edge.wait_line(12, after=began, event="link.waiting")
        assert at_hub.fields["reason"] == "ping-timeout"
        assert at_hub.at - began < 7.2 + at_hub.queued
        assert at_edge.fields["reason"] == "silence"
        assert at_edge.at - began < 10.2 + at_edge.queued
        proxy.stop()
        proxy.flowing.set()
        proxy.start()
        began = time.monotonic()
        assert edge.wait_up("hub", 5) - began < 2.0
