"""The bus over a real Redis: who may use it, what passes, what happens while it is away."""

from __future__ import annotations

import json
import queue
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trustme
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import unix_connect

from linkd.config.settings import ClusterSettings
from linkd.drill.testbed import free_port
from linkd.errors import ConfigError, LinkdError, Unavailable
from linkd.node.bus import inspect_bus, open_connector
from tests.integration.test_postgresql import init, log_of
from tests.support.daemon import COMMAND, Daemon, listen, peer
from tests.support.duo import ALL, numbers, publish, run, until
from tests.support.lab import python
from tests.support.postgresql import Server, needs_postgresql
from tests.support.redis import Redis, needs_redis, redis
from tests.support.tls_lab import Files

pytestmark = needs_redis

PASSWORD = "a password of the tests"


@pytest.fixture
def server() -> Iterator[Redis]:
    one = Redis("--requirepass", PASSWORD)
    yield one
    one.remove()


def password_file(folder: Path, password: str = PASSWORD) -> str:
    path = folder / "redis.password"
    path.touch(0o600)
    path.write_text(f"{password}\n")
    return str(path)


class End:
    """One end of a bus, without an instance."""

    def __init__(self, settings: ClusterSettings) -> None:
        self.got: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.failures: list[str] = []
        self.connector: Any = open_connector(
            settings, "log", lambda body: b"+" + body, self.got.put, self.failures.append
        )
        self.connector.start()

    def send(self, body: bytes) -> bool:
        """Send until it comes back; return whether it did within some seconds."""
        deadline = time.monotonic() + 10.0
        while time.monotonic() < deadline:
            self.connector.send(body)
            try:
                while self.got.get(timeout=0.3) != b"+" + body:
                    pass
            except queue.Empty:
                continue
            return True
        return False


def test_what_is_sent_comes_to_all_in_order_and_again_after_a_restart(
    server: Redis, tmp_path: Path
) -> None:
    settings = ClusterSettings(
        instance="a", bus=server.url, bus_password_file=password_file(tmp_path)
    )
    a, b = End(settings), End(settings)
    assert a.send(b"first")
    assert b.send(b"second")
    for number in range(2000):
        assert a.connector.send(b"%d" % number)
    found: list[int] = []
    while len(found) < 2000:
        body = b.got.get(timeout=5.0)
        if body[1:].isdigit():
            found.append(int(body[1:]))
    assert found == list(range(2000))
    server.kill()
    until(lambda: a.failures and b.failures)
    server.start()
    assert a.send(b"again")
    assert b.send(b"too")
    for end in (a, b):
        end.connector.send(b"goodbye")
        end.connector.stop()
    until(lambda: not [one for one in threading.enumerate() if one.name.startswith("linkd-bus")])


def test_the_password_is_read_at_each_connection(server: Redis, tmp_path: Path) -> None:
    file = password_file(tmp_path, "wrong")
    end = End(ClusterSettings(instance="a", bus=server.url, bus_password_file=file))
    until(lambda: end.failures)
    assert "invalid" in end.failures[0]
    assert "wrong" not in end.failures[0].replace("WRONGPASS", "")
    password_file(tmp_path)
    assert end.send(b"x")
    Path(file).unlink()
    server.kill()
    server.start()
    until(lambda: "cannot read the secret" in end.failures[-1])
    password_file(tmp_path)
    assert end.send(b"y")
    end.connector.stop()


def test_a_frozen_server_is_noticed(server: Redis, tmp_path: Path) -> None:
    settings = ClusterSettings(
        instance="a", bus=server.url, bus_password_file=password_file(tmp_path)
    )
    end = End(settings)
    assert end.send(b"x")
    server.signal(signal.SIGSTOP)
    began = time.monotonic()
    try:
        until(lambda: end.failures)
        assert 2.0 < time.monotonic() - began < 8.0
    finally:
        server.signal(signal.SIGCONT)
    assert end.send(b"y")
    end.connector.stop()


def test_what_waits_to_be_sent_is_bounded(tmp_path: Path) -> None:
    settings = ClusterSettings(instance="a", bus=f"redis://127.0.0.1:{free_port()}")
    connector: Any = open_connector(settings, "log", bytes, print, print)
    assert all(connector.send(b"x") for _ in range(10_000))
    assert not connector.send(b"x")
    large: Any = open_connector(settings, "log", bytes, print, print)
    assert sum([large.send(bytes(1 << 20)) for _ in range(20)]) == 9


def test_check_says_what_it_finds(server: Redis, tmp_path: Path) -> None:
    file = password_file(tmp_path)
    found = inspect_bus(ClusterSettings(instance="a", bus=server.url, bus_password_file=file))
    assert found.startswith("cluster.bus: Redis ")
    assert found.endswith(f" at {server.url}, without TLS, with a password")

    def refusal(kind: type[LinkdError], **settings: Any) -> str:
        with pytest.raises(kind) as error:
            inspect_bus(ClusterSettings(instance="a", **settings))
        return str(error.value)

    assert "set cluster.bus_password_file" in refusal(ConfigError, bus=server.url)
    wrong = password_file(tmp_path, "wrong")
    assert "invalid" in refusal(ConfigError, bus=server.url, bus_password_file=wrong)
    nobody = f"redis://127.0.0.1:{free_port()}"
    assert "refused" in refusal(Unavailable, bus=nobody)
    sentinels = f"redis+sentinel://127.0.0.1:{free_port()}/linkd"
    assert "linkd" in refusal(Unavailable, bus=sentinels, insecure=True)
    open_server = Redis()
    try:
        words = refusal(ConfigError, bus=open_server.url, bus_password_file=file)
        assert "without any password configured" in words
        assert inspect_bus(ClusterSettings(instance="a", bus=open_server.url)).endswith(
            "without a password"
        )
    finally:
        open_server.remove()


def test_a_user_needs_the_rights_of_one_channel_and_no_more(tmp_path: Path) -> None:
    rules = tmp_path / "users.acl"
    rules.write_text(
        f"user default on >{PASSWORD.replace(' ', '-')} ~* &* +@all\n"
        "user linkd on >secret resetchannels &linkd:* -@all +publish +subscribe +unsubscribe\n"
        "user poor on >secret resetchannels -@all +publish +subscribe\n"
    )
    server = Redis("--aclfile", str(rules))
    try:
        file = password_file(tmp_path, "secret")
        url = f"redis://linkd@127.0.0.1:{server.port}"
        settings = ClusterSettings(instance="a", bus=url, bus_password_file=file)
        assert inspect_bus(settings).startswith("cluster.bus: Redis at")
        end = End(settings)
        assert end.send(b"x")
        end.connector.stop()
        poor = ClusterSettings(
            instance="a", bus=url.replace("linkd@", "poor@"), bus_password_file=file
        )
        with pytest.raises(ConfigError, match="channel"):
            inspect_bus(poor)
    finally:
        server.remove()


def test_a_server_with_tls_is_taken_if_its_certificate_is_good(tmp_path: Path) -> None:
    authority, files = trustme.CA(), Files(tmp_path)
    certificate, key = files.write("redis", authority.issue_cert("localhost"))
    ca = files.authority("ca", authority)
    stranger = files.authority("stranger", trustme.CA())
    tls = (Path(certificate), Path(key), Path(ca))
    server = Redis("--requirepass", PASSWORD, tls=tls)
    try:
        file = password_file(tmp_path)
        good = ClusterSettings(
            instance="a", bus=f"rediss://localhost:{server.port}", bus_password_file=file, bus_ca=ca
        )
        assert inspect_bus(good).endswith("with TLS, with a password")
        end = End(good)
        assert end.send(b"x")
        end.connector.stop()
        for bus, trusted in (
            (f"rediss://127.0.0.1:{server.port}", ca),
            (f"rediss://localhost:{server.port}", stranger),
        ):
            bad = ClusterSettings(instance="a", bus=bus, bus_password_file=file, bus_ca=trusted)
            with pytest.raises(Unavailable, match="CERTIFICATE_VERIFY_FAILED"):
                inspect_bus(bad)
    finally:
        server.remove()


def test_sentinels_name_the_server_and_the_next_one(tmp_path: Path) -> None:
    first = Redis()
    second = Redis("--replicaof", f"127.0.0.1 {first.port}")
    port, conf = free_port(), tmp_path / "sentinel.conf"
    conf.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {tmp_path}\n"
        f"sentinel monitor linkd 127.0.0.1 {first.port} 1\n"
        "sentinel down-after-milliseconds linkd 1000\nsentinel failover-timeout linkd 3000\n"
    )
    sentinel = subprocess.Popen(
        ["redis-server", str(conf), "--sentinel"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"redis+sentinel://127.0.0.1:{port}/linkd"
    settings = ClusterSettings(instance="a", bus=url, insecure=True)
    try:

        def works() -> bool:
            try:
                return "Redis" in inspect_bus(settings)
            except Unavailable:
                return False

        until(works)
        end = End(settings)
        assert end.send(b"x")
        time.sleep(2.0)  # the sentinel learns of the replica
        first.kill()
        until(lambda: end.failures)
        deadline = time.monotonic() + 40.0
        while not end.send(b"y"):
            assert time.monotonic() < deadline
        end.connector.stop()
    finally:
        sentinel.kill()
        sentinel.wait()
        first.remove()
        second.remove()


class Cluster:
    """Two hubs of the node `hub` with a bus, and an edge at each."""

    def __init__(self, folder: Path) -> None:
        self.redis = Redis("--requirepass", PASSWORD)
        self.server = Server()
        name = self.server.database("hub")
        bus = f'bus = "{self.redis.url}"\nbus_password_file = "{password_file(folder)}"\n'
        rule = '[[channel]]\nname = "now"\ndelivery = "volatile"\n'
        ports = [free_port() for _ in range(2)]
        peers = peer("left", extra=ALL) + peer("right", extra=ALL)
        self.hubs = [
            Daemon(
                "hub",
                f'[cluster]\ninstance = "hub-{letter}"\n{bus}'
                + log_of(self.server.dsn(name), engine_timeout=2.0)
                + listen(port)
                + rule
                + peers,
            )
            for letter, port in zip("ab", ports, strict=True)
        ]
        self.edges = [
            Daemon(edge, rule + peer("hub", f"ws://127.0.0.1:{port}/link", extra=ALL))
            for edge, port in zip(("left", "right"), ports, strict=True)
        ]
        init(self.server, self.hubs[0], name)

    def start(self) -> None:
        """Start all, and wait until each edge and the bus are up."""
        for daemon in (*self.hubs, *self.edges):
            daemon.start()
        for edge in self.edges:
            edge.wait_up("hub", 20.0)
        for hub in self.hubs:
            hub.wait_line(20.0, event="bus.connected")

    def close(self) -> None:
        """End all."""
        for daemon in (*self.edges, *self.hubs):
            daemon.close()
        self.server.remove()
        self.redis.remove()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    one = Cluster(tmp_path)
    yield one
    one.close()


class Client:
    """A client of `/ws` that notes all that it hears.

    Args:
        daemon: At which node.
        query: Of its URL.
    """

    def __init__(self, daemon: Daemon, query: str) -> None:
        self.heard: list[str] = []
        path, url = str(daemon.socket), f"ws://localhost/ws?{query}"
        threading.Thread(target=self._read, args=(path, url), daemon=True).start()

    def _read(self, path: str, url: str) -> None:
        with suppress(ConnectionClosed), unix_connect(path, url) as wire:
            for message in wire:
                self.heard.append(str(message))


def metric(daemon: Daemon, name: str) -> float:
    """Return the value of a metric, with its labels."""
    found = re.search(
        rf"^{re.escape(name)} (\S+)$", str(daemon.call("GET", "/metrics")), re.MULTILINE
    )
    assert found is not None, name
    return float(found[1])


@needs_postgresql
def test_volatile_messages_and_presence_reach_all_and_end_with_a_hub(cluster: Cluster) -> None:
    cluster.start()
    a, b = cluster.hubs
    everybody = [*cluster.hubs, *cluster.edges]
    clients = [
        Client(daemon, f"channel=now&presence=text&name=c{n}") for n, daemon in enumerate(everybody)
    ]
    until(lambda: all(one.call("GET", "/v1/presence/now")["count"] == 4 for one in everybody))
    ids = [
        {member["id"] for member in one.call("GET", "/v1/presence/now")["members"]}
        for one in everybody
    ]
    assert len(ids[0]) == 4
    assert ids[0] == ids[1]
    for number, daemon in enumerate(everybody):
        daemon.call("POST", "/v1/channels/now", json.dumps(f"m{number}").encode())
    expected = [json.dumps(f"m{number}") for number in range(4)]

    def messages(client: Client) -> list[str]:
        return sorted(one for one in client.heard if one.startswith('"m'))

    until(lambda: all(messages(client) == expected for client in clients))
    assert metric(a, 'linkd_records_dropped_total{peer="right",reason="dropped"}') == 0
    b.kill()
    began = time.monotonic()
    until(lambda: a.call("GET", "/v1/presence/now")["count"] == 2)
    print(f"the dead hub's clients were gone after {time.monotonic() - began:.1f} s")
    until(lambda: cluster.edges[0].call("GET", "/v1/presence/now")["count"] == 2)
    b.start()
    cluster.edges[1].wait_up("hub", 20.0)
    until(lambda: a.call("GET", "/v1/presence/now")["count"] == 3)
    time.sleep(0.5)
    assert all(messages(client) == expected for client in (clients[0], *clients[2:]))


@needs_postgresql
def test_without_redis_records_go_on_and_it_is_said_once(cluster: Cluster) -> None:
    cluster.start()
    a, b = cluster.hubs
    until(lambda: metric(a, "linkd_bus_connected") == 1)  # a page is kept for a second
    cluster.redis.kill()
    for hub in cluster.hubs:
        hub.wait_line(10.0, event="bus.away")
        assert any("the bus is away" in one for one in hub.status()["warnings"])
    until(lambda: metric(a, "linkd_bus_connected") == 0)
    a.call("POST", "/v1/channels/now", b'"lost"')
    publish(cluster.edges[0], "up", range(10))
    publish(a, "down", range(10))
    for hub in cluster.hubs:
        until(lambda hub=hub: numbers(hub, "up") == list(range(10)))
    until(lambda: numbers(cluster.edges[1], "down") == list(range(10)))
    b.stop()
    b.start()  # it needs no bus for that
    here = Client(b, "channel=now")
    b.wait_line(10.0, event="bus.away")
    time.sleep(3.0)
    for hub in cluster.hubs:
        assert len(list(hub.matching(event="bus.away"))) == 1 + (hub is b)  # it has two runs
    until(lambda: metric(a, 'linkd_bus_dropped_total{reason="away"}') == 1)
    cluster.redis.start()
    for hub in cluster.hubs:
        until(lambda hub=hub: len(list(hub.matching(event="bus.connected"))) == 2)
        assert not any("the bus" in one for one in hub.status()["warnings"])

    def came() -> bool:
        a.call("POST", "/v1/channels/now", b'"back"')
        return '"back"' in here.heard

    until(came)
    assert '"lost"' not in here.heard


@needs_postgresql
def test_nobody_else_is_heard_on_the_bus(cluster: Cluster) -> None:
    cluster.start()
    a, b = cluster.hubs
    here = Client(b, "channel=now")
    redis = redis_of(cluster)
    listener = redis.pubsub()
    channel = f"linkd:{a.status()['log']['id']}"
    listener.subscribe(channel)
    assert listener.get_message(timeout=5.0)

    def came() -> bool:
        a.call("POST", "/v1/channels/now", b'"once"')
        return '"once"' in here.heard

    until(came)
    time.sleep(1.5)
    heard = len(here.heard)
    recorded = []
    while found := listener.get_message(timeout=0.1):
        recorded.append(found["data"])
    for message in recorded:
        redis.publish(channel, message)
        redis.publish(channel, bytes(32) + message[32:])
    redis.publish(channel, b"hello")
    until(lambda: metric(b, 'linkd_bus_dropped_total{reason="forged"}') >= len(recorded) + 1)
    until(lambda: metric(b, 'linkd_bus_dropped_total{reason="replayed"}') >= 1)
    assert b.wait_line(5.0, event="bus.refused", reason="forged")
    assert len(list(b.matching(event="bus.refused"))) == 2
    assert len(here.heard) == heard
    found = run(a, "status")
    assert found.returncode == 0, found.stdout


@needs_postgresql
def test_check_looks_at_the_bus(cluster: Cluster) -> None:
    hub = cluster.hubs[0]
    command = python(*COMMAND, "check", "-c", str(hub.directory / "linkd.toml"))

    def check() -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, capture_output=True, text=True, timeout=30)

    found = check()
    assert found.returncode == 0, found.stderr
    assert re.search(
        r"^# cluster\.bus: Redis \S+ at redis://.*, with a password$", found.stdout, re.MULTILINE
    )
    redis_of(cluster).config_set("requirepass", "another")
    found = check()
    assert found.returncode == 2
    assert "cluster.bus: redis://127.0.0.1" in found.stderr
    cluster.redis.kill()
    found = check()
    assert found.returncode == 0  # the unit reloads after it, also while Redis is away
    assert "linkd: warning: cluster.bus: redis://127.0.0.1" in found.stderr


def redis_of(cluster: Cluster) -> Any:
    """Return a client of the bus's Redis."""
    return redis.Redis(port=cluster.redis.port, password=PASSWORD)
