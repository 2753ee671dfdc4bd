"""Hubs behind real proxies, with the files that conf/proxies ships; forged PROXY headers."""

from __future__ import annotations

import csv
import json
import re
import signal
import socket
import ssl
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import trustme

from linkd.drill.testbed import free_port
from linkd.net.auth import prove
from linkd.net.proxy_header import SIGNATURE
from tests.support import figures
from tests.support.balancers import Caller, Proxy, caddy, haproxy, nginx, shipped
from tests.support.daemon import SECRET, Daemon, listen, peer
from tests.support.pairing_hosts import command, invite
from tests.support.tls_lab import Files

pytestmark = pytest.mark.slow

Start = Callable[..., Daemon]
BALANCER = "127.0.0.1"
ALL = 'send = [">"]\nreceive = [">"]\n'
TOKEN = b"POST /token HTTP/1.1\r\nHost: hub\r\nLinkd-Node: edge\r\nContent-Length: 0\r\n\r\n"


class Site:
    """A name with a certificate, and ports for what is behind and in front of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = trustme.CA()
        files = Files(directory)
        self.certificate, self.key = files.write("site", self.authority.issue_cert("localhost"))
        self.hub_certificate, self.hub_key = files.write(
            "hub", self.authority.issue_cert("localhost")
        )
        self.edge_certificate, self.edge_key = files.write(
            "edge", self.authority.issue_cert("edge")
        )
        self.ca = files.authority("ca", self.authority)
        both = directory / "site.pem"
        both.write_text(Path(self.certificate).read_text() + Path(self.key).read_text())
        self.both = str(both)
        self.front, self.hub, self.api, self.web = (free_port() for _ in range(4))
        self.origin = f"https://localhost:{self.front}"

    def wrap(self, name: str = "localhost") -> Callable[[socket.socket], ssl.SSLSocket]:
        """Return a function that begins TLS with the name in SNI."""
        context = ssl.create_default_context(cafile=self.ca)
        context.check_hostname = False
        return lambda raw: context.wrap_socket(raw, server_hostname=name)

    def get(self, path: str, head: str = "", name: str = "localhost") -> tuple[int, bytes]:
        """Return the answer to a GET through the proxy."""
        request = f"GET {path} HTTP/1.1\r\nHost: localhost:{self.front}\r\n{head}\r\n"
        with Caller(self.front, wrap=self.wrap(name)) as caller:
            return caller.ask(request.encode())

    def api_config(self) -> str:
        """Return the hub's `[api]`, behind the proxy's name."""
        return (
            f'http = "127.0.0.1:{self.api}"\nrequire_key = false\n'
            f'hosts = ["localhost"]\norigins = ["{self.origin}"]\n'
        )

    def plain_hub(self, *balancers: str, more: str = "") -> str:
        """Return the configuration of a hub without TLS."""
        listed = f"proxy_protocol = {json.dumps(balancers)}\n"
        return (
            self.api_config() + listen(self.hub, "127.0.0.1") + listed + peer("edge", extra=ALL)
        ) + more

    def tls_hub(self, *balancers: str) -> str:
        """Return the configuration of a hub that ends TLS itself; peers show certificates."""
        return self.api_config() + (
            f'[listen]\naddress = "127.0.0.1:{self.hub}"\ncertificate = "{self.hub_certificate}"\n'
            f'key = "{self.hub_key}"\nclient_ca = "{self.ca}"\n'
            f"proxy_protocol = {json.dumps(balancers)}\n"
            f'[[peer]]\nname = "edge"\nrequired = true\n{ALL}'
        )

    def edge(self, path: str = "/link", by: str = "secret", name: str = "localhost") -> str:
        """Return the configuration of an edge that dials the proxy."""
        how = 'secret_file = "{secret}"\n'
        if by == "certificate":
            how = f'certificate = "{self.edge_certificate}"\nkey = "{self.edge_key}"\n'
        return (
            f'[[peer]]\nname = "hub"\ndial = ["wss://{name}:{self.front}{path}"]\n'
            f'ca = "{self.ca}"\n{how}{ALL}'
        )


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Return a site."""
    return Site(tmp_path)


def has_session(site: Site, hub: Daemon) -> None:
    """Check that the cookie of a page below a path is for that path and for TLS alone."""
    token = hub.call("POST", "/v1/token", b"{}")["token"]
    request = (
        f"POST /linkd-api/v1/session HTTP/1.1\r\nHost: localhost:{site.front}\r\n"
        f"Origin: {site.origin}\r\nAuthorization: Bearer {token}\r\n"
        "Content-Length: 0\r\nConnection: close\r\n\r\n"
    )
    with Caller(site.front, wrap=site.wrap()) as caller:
        caller.line.sendall(request.encode())
        heard = b""
        while piece := caller.line.recv(65_536):
            heard += piece
    found = re.search(rb"(?i)\r\nset-cookie: (.*)\r\n", heard)
    assert found is not None, heard
    said = [word.strip() for word in found[1].decode().split(";")]
    assert {"Path=/linkd-api/", "Secure", "HttpOnly", "SameSite=Strict"} <= set(said)


def carries(edge: Daemon, hub: Daemon, proxy: Proxy) -> None:
    """Check that a link is up, carries, and comes back with what it owed after a cut."""
    edge.wait_up("hub")
    edge.call("POST", "/v1/channels/orders?wait=hub", b"1")
    cut = time.monotonic()
    proxy.stop()
    edge.wait_line(5.0, cut, peer="hub", old="up")
    edge.call("POST", "/v1/channels/orders", b"2")
    began = time.monotonic()
    proxy.start()
    edge.wait_up("hub")
    figures.tell(f"through {proxy.name}: up {time.monotonic() - began:.1f} s after its return")
    edge.call("POST", "/v1/channels/orders?wait=hub", b"3")
    records = hub.call("GET", "/v1/channels/orders?from=earliest")["records"]
    assert [record["data"] for record in records] == [1, 2, 3]


def has_api(site: Site) -> None:
    """Check the API below a path: the page, its files, a call, an event stream, a WebSocket."""
    below, known = "/linkd-api", f"Origin: {site.origin}\r\n"
    assert b'src="dashboard/main.js"' in site.get(f"{below}/")[1]
    assert site.get(f"{below}/dashboard/main.js")[0] == 200
    assert site.get(f"{below}/dashboard/linkd.js")[0] == 200
    assert json.loads(site.get(f"{below}/v1/status", known)[1])["node"] == "hub"
    events = "Accept: text/event-stream\r\n"
    assert site.get(f"{below}/v1/channels/orders?from=earliest", events + known)[0] == 200
    upgrade = (
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    )
    assert site.get(f"{below}/ws?channel=orders", upgrade + known)[0] == 101
    assert site.get(f"{below}/v1/status", "Origin: https://evil.example\r\n")[0] == 403


def nginx_site(site: Site) -> Proxy:
    """Return nginx with conf/proxies/nginx-http.conf."""
    changes = {
        "listen 443": f"listen 127.0.0.1:{site.front}",
        "server_name www.example.net": "server_name localhost",
        "/etc/ssl/www.example.net.crt": site.certificate,
        "/etc/ssl/www.example.net.key": site.key,
        "$host": "$http_host",
        "127.0.0.1:9443;": f"127.0.0.1:{site.hub};",
        "127.0.0.1:9480/": f"127.0.0.1:{site.api}/",
    }
    return nginx(site.directory / "proxy", site.front, shipped("nginx-http.conf", changes))


def caddy_site(site: Site) -> Proxy:
    """Return Caddy with conf/proxies/Caddyfile."""
    changes = {
        "www.example.net {": f"https://localhost:{site.front} {{\n"
        f"\tbind 127.0.0.1\n\ttls {site.certificate} {site.key}",
        "127.0.0.1:9443 {": f"127.0.0.1:{site.hub} {{",
        "reverse_proxy 127.0.0.1:9480": f"reverse_proxy 127.0.0.1:{site.api}",
    }
    return caddy(site.directory / "proxy", site.front, shipped("Caddyfile", changes))


@pytest.mark.parametrize("build", [nginx_site, caddy_site])
def test_hub_and_api_below_paths_of_a_web_server(
    site: Site, daemons: Start, build: Callable[[Site], Proxy]
) -> None:
    with build(site) as proxy:
        hub = daemons("hub", site.plain_hub())
        edge = daemons("edge", site.edge("/linkd/link"))
        carries(edge, hub, proxy)
        has_api(site)
        has_session(site, hub)


def test_nginx_passes_tls_by_name_beside_a_web_server(site: Site, daemons: Start) -> None:
    web = (
        f"server {{ listen 127.0.0.1:{site.web} ssl proxy_protocol;"
        f" ssl_certificate {site.certificate}; ssl_certificate_key {site.key};"
        " return 200 $proxy_protocol_addr; }"
    )
    changes = {
        "listen 443": f"listen 127.0.0.1:{site.front}",
        "hub.example.net 10.0.0.1:9443;": f"localhost 127.0.0.1:{site.hub};",
        "127.0.0.1:8443;\n    }": f"127.0.0.1:{site.web};\n    }}",
    }
    stream = shipped("nginx-stream.conf", changes)
    with nginx(site.directory / "proxy", site.front, web, stream) as proxy:
        hub = daemons("hub", site.tls_hub(BALANCER))
        crowd_by_address(site.front, site.wrap())
        edge = daemons("edge", site.edge(by="certificate"))
        carries(edge, hub, proxy)
        assert site.get("/", name="www.example.net") == (200, b"127.0.0.1")


def haproxy_config(site: Site, version: str = "send-proxy-v2") -> str:
    """Return conf/proxies/haproxy.cfg."""
    plain = free_port()
    changes = {
        "bind :443": f"bind 127.0.0.1:{site.front}",
        "req.ssl_sni -i hub.example.net": "req.ssl_sni -i localhost",
        "server hub 10.0.0.1:9443 check port 9480": f"server hub 127.0.0.1:{site.hub}"
        f" check port {site.api}",
        "inter 2s": "inter 200ms",
        "server web 127.0.0.1:8080": f"server web 127.0.0.1:{site.web}",
        "bind :8443 ssl crt /etc/ssl/www.example.net.pem": f"bind 127.0.0.1:{plain}"
        f" ssl crt {site.both}",
        "server hub 10.0.0.2:9443 check": f"server hub 127.0.0.1:{site.hub} check inter 200ms",
        "send-proxy-v2": version,
        "maxconn 20000": "maxconn 500",
    }
    config = shipped("haproxy.cfg", changes)
    return config.replace("global\n", f"global\n    stats socket {site.directory}/stats\n")


@pytest.mark.parametrize("version", ["send-proxy", "send-proxy-v2"])
def test_haproxy_passes_tls_by_name_and_checks_health(
    site: Site, daemons: Start, version: str
) -> None:
    with haproxy(site.directory / "proxy", site.front, haproxy_config(site, version)) as proxy:
        hub = daemons("hub", site.tls_hub(BALANCER))
        wait_state(site, "linkd", "UP")
        crowd_by_address(site.front, site.wrap())
        edge = daemons("edge", site.edge(by="certificate"))
        carries(edge, hub, proxy)
        wait_state(site, "linkd", "UP")
        hub.call("POST", "/v1/drain", b"{}")
        wait_state(site, "linkd", "DOWN")
        hub.call("DELETE", "/v1/drain")
        wait_state(site, "linkd", "UP")
        edge.wait_up("hub", 20.0)
        told = [line.fields["detail"] for line in hub.matching(event="connection.refused")]
        assert not [detail for detail in told if "PROXY" in detail]


@pytest.mark.timing
def test_a_node_joins_through_a_balancer_whose_silence_both_ends_notice(
    site: Site, daemons: Start
) -> None:
    with haproxy(site.directory / "proxy", site.front, haproxy_config(site)) as proxy:
        # Not on loopback alone, so that it has TLS by its own authority.
        own = f'[listen]\naddress = "0.0.0.0:{site.hub}"\nproxy_protocol = ["{BALANCER}"]\n'
        hub = daemons("hub", site.api_config() + own)
        wait_state(site, "linkd", "UP")
        edge = daemons("edge", "")
        code = invite(hub, "edge", "--address", f"localhost:{site.front}")
        joined = command(edge, "join", code)
        assert joined.returncode == 0, joined.stderr
        edge.wait_up("hub")
        frozen = time.monotonic()
        proxy.signal(signal.SIGSTOP)
        at_hub = hub.wait_line(12.0, frozen, peer="edge", old="up")
        at_edge = edge.wait_line(12.0, frozen, peer="hub", old="up")
        noticed = [line.at - line.queued - frozen for line in (at_hub, at_edge)]
        figures.tell(f"a balancer froze: noticed after {noticed[0]:.1f} and {noticed[1]:.1f} s")
        assert noticed[0] < 7.5
        assert noticed[1] < 10.5
        proxy.signal(signal.SIGCONT)
        edge.wait_up("hub")


def wait_state(site: Site, backend: str, state: str) -> None:
    """Wait until HAProxy's health checks have found a server to be UP or DOWN."""
    end, found = time.monotonic() + 10.0, ""
    while not found.startswith(state):
        assert time.monotonic() < end, f"{backend} is {found}, expected {state}"
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(f"{site.directory}/stats")
            line.sendall(b"show stat\n")
            table = b"".join(iter(lambda: line.recv(65_536), b"")).decode()
        found = next(
            row["status"]
            for row in csv.DictReader(table.removeprefix("# ").splitlines())
            if (row["pxname"], row["svname"]) == (backend, "hub")
        )


def crowd_by_address(port: int, wrap: Any = None, path: str = "/token") -> None:
    """Check that limits count the real addresses of 100 dialers behind one address."""

    def one(source: str) -> tuple[int, bytes]:
        with Caller(port, source, wrap) as caller:
            return caller.ask(TOKEN.replace(b"/token", path.encode()))

    with ThreadPoolExecutor(50) as pool:
        many = list(pool.map(one, [f"127.0.1.{number}" for number in range(1, 101)]))
        alone = list(pool.map(one, ["127.0.2.1"] * 60))
    assert not [body for _, body in many if b"a second from" in body]
    assert sum(status == 200 for status, _ in many) > 60
    held = [body for _, body in alone if b"connections a second from 127.0.2.1" in body]
    figures.tell(
        f"100 addresses behind a balancer: {sum(each[0] == 200 for each in many)} tokens;"
        f" 60 dialers of one: {sum(each[0] == 200 for each in alone)}"
    )
    assert len(held) >= 5  # a slow machine takes more than a second for them


def dial(port: int, name: str, wrap: Any = None, path: str = "/linkd") -> tuple[int, bytes, bytes]:
    """Return status and body of an upgrade with a fresh nonce, and that request."""
    token = TOKEN.replace(b"/token", f"{path}/token".encode()).replace(b"edge", name.encode())
    with Caller(port, wrap=wrap) as caller:
        status, body = caller.ask(token)
        assert status == 200, body
        nonce = json.loads(body)["nonce"]
        proof = prove(SECRET.encode(), "dialer", name, "hub", nonce)
        upgrade = (
            f"GET {path}/link HTTP/1.1\r\nHost: hub\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: linkd.1\r\n"
            f"Linkd-Node: {name}\r\nLinkd-Nonce: {nonce}\r\nLinkd-Proof: {proof}\r\n\r\n"
        ).encode()
        return *caller.ask(upgrade), upgrade


NAMES = [f"e{number}" for number in range(12)]


def test_haproxy_keeps_the_requests_of_a_node_at_one_of_several_hubs(
    site: Site, daemons: Start
) -> None:
    second = free_port()
    peers = "".join(peer(name) for name in NAMES)
    config = haproxy_config(site)
    front = int(re.search(r"bind 127.0.0.1:(\d+) ssl", config)[1])  # type: ignore[index]
    config += f"    server second 127.0.0.1:{second} check inter 200ms send-proxy-v2\n"
    site.front = front
    with haproxy(site.directory / "proxy", front, config) as proxy:
        hub = daemons("hub", site.plain_hub(BALANCER, more=peers))
        other = listen(second, "127.0.0.1") + f'proxy_protocol = ["{BALANCER}"]\n'
        other += peers + peer("edge", extra=ALL)
        daemons("hub", other)
        crowd_by_address(front, site.wrap(), "/linkd/token")
        edge = daemons("edge", site.edge("/linkd/link"))
        edge.wait_up("hub")
        assert [dial(front, name, site.wrap())[0] for name in NAMES] == [101] * len(NAMES)
        cut = time.monotonic()
        proxy.stop()
        edge.wait_line(5.0, cut, peer="hub", old="up")
        hub.kill()  # it may have been either
        proxy.start()
        edge.wait_up("hub")


def test_a_captured_proof_is_good_at_no_hub(site: Site, daemons: Start) -> None:
    """The issuer of its nonce has spent it, others have never given it."""
    second = free_port()
    daemons("hub", site.plain_hub())
    daemons("hub", listen(second, "127.0.0.1") + peer("edge"))
    status, _, upgrade = dial(site.hub, "edge")
    assert status == 101
    for port, expected, words in ((site.hub, 401, b"used before"), (second, 503, b"another hub")):
        with Caller(port) as caller:
            status, body = caller.ask(upgrade)
        assert (status, words in body) == (expected, True)


V2 = (
    SIGNATURE + b"\x21\x11\x00\x0c" + bytes([203, 0, 113, 7, 198, 51, 100, 1]) + b"\x9c\x40\x24\xe3"
)
V1 = b"PROXY TCP4 203.0.113.7 198.51.100.1 40000 9443\r\n"
FORGED = {
    "v1 from elsewhere": ("127.0.0.8", V1 + TOKEN),
    "v2 from elsewhere": ("127.0.0.8", V2 + TOKEN),
    "none": ("127.0.0.9", TOKEN),
    "garbage": ("127.0.0.9", bytes(range(256)) * 4),
    "malformed": ("127.0.0.9", b"PROXY TCP4 a b c d\r\n"),
    "too long": ("127.0.0.9", SIGNATURE + b"\x21\x11\xff\xff" + bytes(2000)),
    "half of v1": ("127.0.0.9", V1[:30]),
    "half of v2": ("127.0.0.9", V2[:20]),
    "nothing": ("127.0.0.9", b""),
}


def test_forged_headers_are_refused_with_a_reason(site: Site, daemons: Start) -> None:
    hub = daemons("hub", site.plain_hub("127.0.0.9"))
    edge_config = f'[[peer]]\nname = "hub"\ndial = ["ws://127.0.0.1:{site.hub}"]\n'
    edge = daemons("edge", edge_config + 'secret_file = "{secret}"\n' + ALL)
    edge.wait_up("hub")
    before = hub.link("edge")["since_seconds"]
    folder = Path(f"/proc/{hub.pid}/fd")
    descriptors = len(list(folder.iterdir()))

    def one(source: str, sent: bytes) -> None:
        with Caller(site.hub, source) as caller:
            assert caller.ask(sent) == (0, b"")

    with ThreadPoolExecutor(len(FORGED)) as pool:
        for outcome in [pool.submit(one, *each) for each in FORGED.values()]:
            outcome.result()
    page = hub.call("GET", "/metrics")
    assert f'linkd_listener_refused_total{{reason="protocol"}} {len(FORGED)}' in page
    # All of one reason within a second are one line; tests/unit/net has the sentence of each.
    details = [line.fields["detail"] for line in hub.matching(event="connection.refused")]
    assert details
    assert all("header" in detail for detail in details)
    with Caller(site.hub, "127.0.0.9") as caller:
        assert caller.ask(V2 + TOKEN)[0] == 200
    with Caller(site.hub, "127.0.0.9") as caller:
        assert caller.ask(b"PROXY UNKNOWN\r\n" + TOKEN)[0] == 200
    edge.call("POST", "/v1/channels/orders?wait=hub", b"1")
    assert hub.link("edge")["since_seconds"] > before
    end = time.monotonic() + 5.0
    while len(list(folder.iterdir())) > descriptors:
        assert time.monotonic() < end
        time.sleep(0.05)
