"""Several hubs of one node that share a log in PostgreSQL: real daemons, moves, crashes."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from linkd.drill.testbed import free_port
from tests.chaos.cluster import Relay
from tests.integration.test_postgresql import init, log_of, post
from tests.support.daemon import Daemon, listen, peer
from tests.support.duo import ALL, numbers, publish, run, until
from tests.support.postgresql import Server, needs_postgresql

pytestmark = needs_postgresql

EDGES = 3


class Cluster:
    """Three hubs of the node `hub`, and edges that dial any of them."""

    def __init__(self) -> None:
        self.server = Server()
        name = self.server.database("hub")
        ports = [free_port() for _ in range(3)]
        peers = "".join(peer(f"edge-{n}", extra=ALL) for n in range(EDGES))
        self.hubs = [
            Daemon(
                "hub",
                f'[cluster]\ninstance = "hub-{letter}"\n'
                + log_of(self.server.dsn(name), engine_timeout=2.0)
                + listen(port)
                + peers,
            )
            for letter, port in zip("abc", ports, strict=True)
        ]
        urls = [f"ws://127.0.0.1:{port}/link" for port in ports]
        self.edges = []
        for n in range(EDGES):
            dial = urls[n:] + urls[:n]
            one = peer("hub", dial[0], extra=ALL).replace(json.dumps([dial[0]]), json.dumps(dial))
            assert dial[1] in one
            self.edges.append(Daemon(f"edge-{n}", one))
        init(self.server, self.hubs[0], name)

    def start(self) -> None:
        """Start all, and wait until each edge is up."""
        for daemon in (*self.hubs, *self.edges):
            daemon.start()
        for edge in self.edges:
            edge.wait_up("hub", 20.0)

    def close(self) -> None:
        """End all."""
        for daemon in (*self.edges, *self.hubs):
            daemon.close()
        self.server.remove()

    def hub_of(self, edge: Daemon) -> Daemon:
        """Return the hub to which an edge is connected."""
        found: list[Daemon] = []
        until(lambda: found.extend(self._with(edge)) or found)
        return found[0]

    def _with(self, edge: Daemon) -> list[Daemon]:
        def has_it(hub: Daemon) -> bool:
            status, link = hub.status(), hub.link(edge.name)
            return link["state"] == "up" and link["instance"] == status["instance"]

        return [hub for hub in self.hubs if hub.running and has_it(hub)]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    one = Cluster()
    yield one
    one.close()


def test_all_hubs_show_one_log_and_an_edge_moves_between_them(cluster: Cluster) -> None:
    cluster.start()
    a, b, c = cluster.hubs
    edge = cluster.edges[0]
    assert {hub.status()["log"]["id"] for hub in cluster.hubs} == {a.status()["log"]["id"]}
    publish(edge, "up", range(10))
    publish(b, "down", range(10))
    for hub in cluster.hubs:
        until(lambda hub=hub: numbers(hub, "up") == list(range(10)))
    for other in cluster.edges:
        until(lambda other=other: numbers(other, "down") == list(range(10)))
    held = cluster.hub_of(edge)
    held.kill()
    began = time.monotonic()
    edge.wait_up("hub", 10.0)
    print(f"up at another hub after {time.monotonic() - began:.2f} s")
    publish(edge, "up", range(10, 20))
    alive = [hub for hub in cluster.hubs if hub is not held]
    publish(alive[0], "down", range(10, 20))
    for hub in alive:
        until(lambda hub=hub: numbers(hub, "up") == list(range(20)))
    held.start()
    until(lambda: numbers(held, "up") == list(range(20)))
    until(lambda: numbers(edge, "down") == list(range(20)))
    assert not list(edge.matching(event="link.gap"))
    assert c.status()["log"]["next"] == b.status()["log"]["next"]


def test_a_consumer_goes_on_at_another_hub_where_it_was(cluster: Cluster) -> None:
    a, b, _ = cluster.hubs
    for hub in cluster.hubs:
        hub.start()
    publish(a, "orders", range(20))
    path = "/v1/channels/orders?consumer=billing&limit=5"
    page = a.call("GET", f"{path}&from=1")
    assert [record["data"]["n"] for record in page["records"]] == list(range(5))
    a.call("POST", "/v1/consumers/billing/ack", json.dumps({"next": page["next"]}).encode())
    page = b.call("GET", path)
    assert [record["data"]["n"] for record in page["records"]] == list(range(5, 10))
    b.call("POST", "/v1/consumers/billing/ack", json.dumps({"next": page["next"]}).encode())
    page = a.call("GET", path)
    assert [record["data"]["n"] for record in page["records"]] == list(range(10, 15))


def test_a_command_reaches_the_link_at_whichever_hub_it_is(cluster: Cluster) -> None:
    cluster.start()
    edge = cluster.edges[0]
    publish(edge, "up", range(5))
    held = cluster.hub_of(edge)
    other = next(hub for hub in cluster.hubs if hub is not held)
    until(lambda: numbers(other, "up") == list(range(5)))
    assert run(other, "resync", edge.name, "--yes").returncode == 0
    held.wait_line(5.0, event="link.waiting", peer=edge.name, old="up")
    edge.wait_up("hub", 10.0)
    publish(edge, "up", range(5, 8))
    for hub in cluster.hubs:
        until(lambda hub=hub: numbers(hub, "up") == list(range(8)))
    assert run(other, "publish", "down", "x", "--wait", edge.name).returncode == 0


def test_the_edges_of_a_hub_without_its_database_move_to_another() -> None:
    cluster = Cluster()
    relay = Relay(cluster.server.port)
    try:
        cut = cluster.hubs[0]
        dsn = cluster.server.dsn("hub")
        there = f"host=127.0.0.1 port={relay.port} dbname=hub user=linkd"
        cut.config_file.write_text(cut.config_file.read_text().replace(dsn, there))
        cluster.start()
        publish(cluster.edges[0], "up", range(3))
        assert cluster.hub_of(cluster.edges[0]) is cut
        relay.cut()
        edge = cluster.edges[0]
        until(lambda: cluster.hubs[1].link(edge.name)["instance"] in ("hub-b", "hub-c"))
        publish(edge, "up", range(3, 6))
        for hub in cluster.hubs[1:]:
            until(lambda hub=hub: numbers(hub, "up") == list(range(6)))
        relay.mend()
        until(lambda: numbers(cut, "up") == list(range(6)))
    finally:
        relay.close()
        cluster.close()


def test_a_peer_is_forgotten_once_no_hub_has_it(cluster: Cluster) -> None:
    a, b, c = cluster.hubs
    for hub in cluster.hubs:
        hub.start()
    publish(a, "down", range(10))

    def remove(hub: Daemon) -> None:
        text = hub.config_file.read_text()
        hub.config_file.write_text(text[: text.rindex("[[peer]]")])
        hub.signal(signal.SIGHUP)

    def forget() -> Any:
        body = json.dumps({"confirmed": True}).encode()
        return a.call("POST", "/v1/peers/edge-2/forget", body)

    for hub in (a, b):
        remove(hub)
        until(lambda hub=hub: [one["peer"] for one in hub.status()["absent"]] == ["edge-2"])
    time.sleep(0.5)
    with pytest.raises(RuntimeError, match=r"409 .*another instance has other"):
        forget()
    assert c.link("edge-2")["backlog_records"] == 10
    remove(c)
    until(lambda: c.status()["absent"])

    def is_forgotten() -> bool:
        with suppress(RuntimeError):  # that hub has not written yet that it has it no more
            return bool(forget()["done"])
        return False

    until(is_forgotten)
    for hub in cluster.hubs:
        until(lambda hub=hub: not hub.status()["absent"])


class Wandering:
    """A consumer that reads and acknowledges at any hub, whatever happens to that."""

    def __init__(self, hubs: list[Daemon], rng: random.Random) -> None:
        self.hubs = hubs
        self.rng = rng
        self.seen: list[int] = []
        self.acked = 1

    def step(self) -> None:
        """Read a page, and acknowledge it at another hub."""
        path = "/v1/channels/down?consumer=billing&limit=20&from=1"
        with suppress(OSError, RuntimeError):
            page = self.rng.choice(self.hubs).call("GET", path)
            found = [record["data"]["n"] for record in page["records"]]
            first = min((record["offset"] for record in page["records"]), default=self.acked)
            assert first >= self.acked, "an acknowledged record came again"
            self.seen += found
            ack = json.dumps({"next": page["next"]}).encode()
            self.rng.choice(self.hubs).call("POST", "/v1/consumers/billing/ack", ack)
            self.acked = page["next"]


def test_a_consumer_that_wanders_over_crashes_misses_nothing(cluster: Cluster) -> None:
    for hub in cluster.hubs:
        hub.start()
    rng = random.Random(int(os.environ.get("LINKD_SEED", "5")))
    wandering, sent, fault = Wandering(cluster.hubs, rng), 0, 0
    faults = ["hub", "database", "hub"]
    began = time.monotonic()
    while faults or sent < 1000:
        with suppress(Exception):
            if post(rng.choice(cluster.hubs), "down", sent)[0] < 300:
                sent += 1
        if sent % 7 == 0:
            wandering.step()
        if faults and sent >= 200 * (fault + 1):
            fault += 1
            strike(cluster, faults.pop(0), rng)
        assert time.monotonic() - began < 120.0
    end = cluster.hubs[0].status()["log"]["next"]
    until(lambda: wandering.step() or wandering.acked >= end, 60.0)
    seen = wandering.seen
    assert set(seen) == set(range(sent))
    print(f"{len(seen) - len(set(seen))} of {len(seen)} came again")


class Filling:
    """Publishes at all edges and at the hubs, each number until it is answered."""

    def __init__(self, cluster: Cluster, rng: random.Random) -> None:
        self.cluster = cluster
        self.rng = rng
        self.sent = [0] * EDGES
        self.down = 0
        self._ends = threading.Event()
        self._threads = [threading.Thread(target=self._fill, args=(n,)) for n in range(EDGES)]
        self._threads.append(threading.Thread(target=self._fill_down))
        for thread in self._threads:
            thread.start()

    def _fill(self, number: int) -> None:
        edge = self.cluster.edges[number]
        while not self._ends.is_set():
            with suppress(Exception):
                if post(edge, f"up-{number}", self.sent[number])[0] < 300:
                    self.sent[number] += 1
            time.sleep(0.003)

    def _fill_down(self) -> None:
        while not self._ends.is_set():
            with suppress(Exception):
                if post(self.rng.choice(self.cluster.hubs), "down", self.down)[0] < 300:
                    self.down += 1
            time.sleep(0.01)

    def end(self) -> None:
        """Publish no more."""
        self._ends.set()
        for thread in self._threads:
            thread.join()


def strike(cluster: Cluster, fault: str, rng: random.Random) -> None:
    """Let a fault happen, and end."""
    hub, edge = rng.choice(cluster.hubs), rng.choice(cluster.edges)
    if fault == "freeze":
        os.kill(hub.pid, signal.SIGSTOP)
        time.sleep(rng.uniform(3.0, 9.0))
        os.kill(hub.pid, signal.SIGCONT)
    elif fault == "database":
        cluster.server.kill()
        time.sleep(rng.uniform(0.0, 1.0))
        cluster.server.start()
    else:
        daemon = hub if fault == "hub" else edge
        daemon.kill()
        time.sleep(rng.uniform(0.0, 1.0))
        daemon.start()


def test_crashes_freezes_and_moves_lose_and_double_nothing(cluster: Cluster) -> None:
    cluster.start()
    rng = random.Random(int(os.environ.get("LINKD_SEED", "3")))
    filling = Filling(cluster, rng)
    try:
        for fault in ("hub", "freeze", "database", "hub", "edge", "freeze", "database", "hub"):
            time.sleep(rng.uniform(0.5, 1.0))
            strike(cluster, fault, rng)
    finally:
        filling.end()
    for edge in cluster.edges:
        edge.wait_up("hub", 30.0)
        until(lambda edge=edge: not edge.link("hub")["backlog_records"], 30.0)
    until(lambda: len({hub.status()["log"]["next"] for hub in cluster.hubs}) == 1, 10.0)
    for number, edge in enumerate(cluster.edges):
        at_edge = numbers(edge, f"up-{number}")
        for hub in cluster.hubs:
            assert numbers(hub, f"up-{number}") == at_edge
        assert len(set(at_edge)) == len(at_edge)
        assert set(range(filling.sent[number])) <= set(at_edge)
        until(lambda edge=edge: numbers(edge, "down") == numbers(cluster.hubs[0], "down"), 20.0)
    at_hub = numbers(cluster.hubs[0], "down")
    assert len(set(at_hub)) == len(at_hub)
    assert set(range(filling.down)) <= set(at_hub)
    assert sum(filling.sent) > 300
