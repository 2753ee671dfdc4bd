"""A hub whose log is in PostgreSQL, with real daemons, crashes of both, and a failover."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from linkd.drill.testbed import free_port
from tests.support.daemon import Daemon, listen, peer
from tests.support.duo import ALL, numbers, publish, until
from tests.support.lab import python
from tests.support.postgresql import Server, needs_postgresql
from tests.support.unix_http import UnixConnection

pytestmark = needs_postgresql


def log_of(dsn: str, synchronous: str = "single", **more: Any) -> str:
    lines = "".join(f"{key} = {value}\n" for key, value in more.items())
    return (
        '[log]\nengine = "postgresql"\n[log.postgresql]\n'
        f'dsn = "{dsn}"\nsynchronous = "{synchronous}"\n{lines}'
    )


def init(server: Server, daemon: Daemon, database: str) -> None:
    """Create the tables with the command."""
    done = run_offline(daemon, "log", "init", "--dsn", server.dsn(database, "owner"))
    assert "linkd may use them" in done


def post(daemon: Daemon, channel: str, number: int) -> tuple[int, Any]:
    """Publish a number under its id; return status and answer."""
    connection = UnixConnection(str(daemon.socket), 10.0)
    try:
        headers = {"Content-Type": "application/json", "Linkd-Id": str(number)}
        connection.request("POST", f"/v1/channels/{channel}", b'{"n": %d}' % number, headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def run_offline(daemon: Daemon, *words: str, status: int = 0) -> str:
    command = python(
        "-c", "from linkd.cli import main; raise SystemExit(main())", *words, "-c",
        str(daemon.config_file),
    )  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    one = Server()
    yield one
    one.remove()


@pytest.fixture
def pair(server: Server) -> Iterator[tuple[Daemon, Daemon]]:
    """A hub on PostgreSQL and an edge, not started."""
    dsn = server.dsn(server.database("hub"))
    port = free_port()
    hub = Daemon("hub", log_of(dsn, engine_timeout=1.0) + listen(port) + peer("edge", extra=ALL))
    edge = Daemon("edge", peer("hub", f"ws://127.0.0.1:{port}/link", extra=ALL))
    init(server, hub, "hub")
    yield hub, edge
    edge.close()
    hub.close()


def test_crashes_of_database_hub_and_edge_lose_and_double_nothing(
    server: Server, pair: tuple[Daemon, Daemon]
) -> None:
    hub, edge = pair
    hub.start()
    edge.start()
    edge.wait_up("hub", 20.0)
    rng, stop, sent = random.Random(1), threading.Event(), [0]
    at_hub: list[int] = []

    def fill() -> None:
        while not stop.is_set():
            with suppress(Exception):
                # Each number once: the edge is killed, so an id settles what was in flight.
                if post(edge, "up", sent[0])[0] < 300:
                    sent[0] += 1
            time.sleep(0.002)

    filling = threading.Thread(target=fill)
    filling.start()
    for fault in ("database", "hub", "edge", "database", "hub", "database"):
        time.sleep(rng.uniform(0.3, 0.8))
        if fault == "database":
            server.kill()
            time.sleep(rng.uniform(0.0, 0.5))
            server.start()
        else:
            daemon = hub if fault == "hub" else edge
            daemon.kill()
            daemon.start()
        with suppress(Exception):
            at_hub.append(publish(hub, "down", [len(at_hub)]))
    stop.set()
    filling.join()
    hub.wait_up("edge", 30.0)
    until(lambda: not edge.link("hub")["backlog_records"], 30.0)
    until(lambda: not hub.link("edge")["backlog_records"], 30.0)
    assert sent[0] > 100
    assert len(set(numbers(hub, "up"))) == len(numbers(hub, "up"))
    assert numbers(hub, "up") == numbers(edge, "up")
    assert set(range(sent[0])) <= set(numbers(hub, "up"))
    assert numbers(edge, "down") == numbers(hub, "down")


def test_a_database_that_is_away_is_said_everywhere(
    server: Server, pair: tuple[Daemon, Daemon]
) -> None:
    hub, edge = pair
    hub.start()
    edge.start()
    edge.wait_up("hub", 20.0)
    publish(hub, "a", [1])
    server.kill()
    began = time.monotonic()
    status, answer = post(hub, "a", 2)
    assert status == 503
    assert answer["error"] == "log-unavailable"
    assert answer["outcome"] == "unknown"
    assert 0.5 < time.monotonic() - began < 6.0
    assert "nothing was stored" in hub.call("POST", "/v1/channels/a", b"{}")["message"]
    assert hub.call("GET", "/readyz") == {"ready": False, "waiting_for": [], "log": "unavailable"}
    assert "has not answered for" in hub.status()["log"]["full"]
    hub.wait_line(5.0, event="log.engine-away")
    publish(edge, "b", [1])
    assert hub.link("edge")["state"] == "up"
    edge.kill()
    edge.start()  # a newcomer, unlike what is up
    until(lambda: edge.link("hub")["attempt_reason"] == "busy", 10.0)
    server.start()
    hub.wait_line(10.0, event="log.engine-back")
    edge.wait_up("hub", 5.0)
    until(lambda: numbers(hub, "b") == [1])
    until(lambda: hub.call("GET", "/readyz")["ready"])
    until(lambda: numbers(hub, "a") == [1, 2])
    assert post(hub, "a", 2)[1]["duplicate"]
    server.kill()
    began = time.monotonic()
    assert hub.stop() == 0
    assert time.monotonic() - began < 5.0
    server.start()


def test_a_second_hub_waits_until_the_first_is_gone(
    server: Server, pair: tuple[Daemon, Daemon]
) -> None:
    hub, _ = pair
    hub.start()
    publish(hub, "a", [1])
    second = Daemon("hub", log_of(server.dsn("hub")))
    try:
        second.start(ready_within=None)
        assert second.wait(20.0) == 1
        assert "in use by another linkd" in second.tail()
        hub.kill()
        second.start()
        assert numbers(second, "a") == [1]
        assert "PostgreSQL" in run_offline(second, "check")
    finally:
        second.close()


def standby_of(server: Server) -> Server:
    """Make a synchronous standby of a server."""
    one = Server.__new__(Server)
    one.prepare()
    one.run("pg_basebackup", "-D", str(one.data), "-R", "-c", "fast", "-d",
            server.dsn("postgres", "owner") + " application_name=standby")  # fmt: skip
    with (one.data / "postgresql.conf").open("a") as file:
        file.write(f"port = {one.port}\nunix_socket_directories = '{one.folder}'\n")
    one.start()
    return one


def test_an_asynchronous_standby_is_not_taken_for_a_synchronous_one() -> None:
    primary = Server()
    standby = standby_of(primary)
    name = primary.database("hub")
    hub = Daemon("hub", log_of(primary.dsn(name), "required"))
    preferring = Daemon("hub", log_of(primary.dsn(name), "preferred"))
    single = Daemon("hub", log_of(primary.dsn(name), "single"))
    try:
        init(primary, hub, name)
        hub.start(ready_within=None)
        assert hub.wait(20.0) == 1
        assert "synchronous_standby_names is empty, so a failover loses" in hub.tail()
        preferring.start()
        assert (
            "a failover of the database loses"
            in preferring.wait_line(5.0, event="log.no-standby").fields["detail"]
        )
        publish(preferring, "a", [1])
        preferring.kill()
        assert "warning" not in run_offline(single, "check")
        with primary.connect("postgres") as connection:
            connection.execute("alter system set synchronous_standby_names = 'elsewhere'")
            connection.execute("select pg_reload_conf()")
        until(lambda: "is elsewhere, standbys connected: 1" in run_offline(hub, "check", status=4))
        hub.start(ready_within=None)
        assert hub.wait(20.0) == 1
        assert "no standby has confirmed a commit within 5 s" in hub.tail()
        with primary.connect("postgres") as connection:
            connection.execute("set synchronous_commit = local")
            connection.execute("alter system set synchronous_standby_names = 'standby'")
            connection.execute("select pg_reload_conf()")
        until(lambda: "names standby, standbys connected: 1" in run_offline(hub, "check"))
        hub.start()
        publish(hub, "a", [2])
        assert numbers(hub, "a") == [1, 2]
    finally:
        for each in (hub, preferring, single):
            each.close()
        standby.remove()
        primary.remove()


def test_a_failover_to_the_synchronous_standby_loses_nothing() -> None:
    primary = Server()
    standby = standby_of(primary)
    port = free_port()
    name = primary.database("hub")
    with primary.connect("postgres") as connection:
        connection.execute("alter system set synchronous_standby_names = 'standby'")
        connection.execute("select pg_reload_conf()")
    dsn = (
        f"host={primary.folder},{standby.folder} port={primary.port},{standby.port}"
        f" dbname={name} user=linkd"
    )
    settings = log_of(dsn, "required") + listen(port) + peer("edge", extra=ALL)
    hub = Daemon("hub", settings)
    edge = Daemon("edge", peer("hub", f"ws://127.0.0.1:{port}/link", extra=ALL))
    try:
        init(primary, hub, name)
        hub.start()
        edge.start()
        edge.wait_up("hub", 20.0)
        for number in range(50):
            publish(edge, "up", [number])
        until(lambda: len(numbers(hub, "up")) == 50)
        primary.kill()
        publish(edge, "up", [50])
        with standby.connect("postgres") as connection:
            connection.execute("alter system set synchronous_standby_names = '*'")
            connection.execute("select pg_reload_conf()")
            connection.execute("select pg_promote()")
            # Without a standby of its own it must not answer: nothing would be safe.
            time.sleep(2.0)
            assert len(numbers(hub, "up")) == 50
            connection.execute("set synchronous_commit = local")
            connection.execute("alter system set synchronous_standby_names = 'standby'")
        again = standby_of(standby)
        with standby.connect("postgres") as connection:
            connection.execute("select pg_reload_conf()")
        until(lambda: numbers(hub, "up") == list(range(51)), 30.0)
        publish(edge, "up", [51])
        until(lambda: numbers(hub, "up") == list(range(52)), 30.0)
        assert not [*hub.matching(event="link.down"), *hub.matching(event="log.went-back")]
    finally:
        edge.close()
        hub.close()
        for one in (primary, standby, locals().get("again")):
            if one is not None:
                one.remove()


def test_a_failover_that_lost_a_tail_is_told_and_the_link_goes_on() -> None:
    one = Server()
    name = one.database("hub")
    port = free_port()
    hub = Daemon("hub", log_of(one.dsn(name)) + listen(port) + peer("edge", extra=ALL))
    edge = Daemon("edge", peer("hub", f"ws://127.0.0.1:{port}/link", extra=ALL))
    try:
        init(one, hub, name)
        hub.start()
        edge.start()
        edge.wait_up("hub", 20.0)
        publish(edge, "up", range(10))
        until(lambda: len(numbers(hub, "up")) == 10)
        one.kill()
        old = one.folder / "old"
        shutil.copytree(one.data, old)
        own(one, old)
        one.start()
        publish(edge, "up", range(10, 20))
        until(lambda: len(numbers(hub, "up")) == 20)
        last = hub.status()["log"]["next"] - 1
        one.kill()
        shutil.rmtree(one.data)
        old.rename(one.data)
        one.start()
        line = hub.wait_line(10.0, event="log.went-back")
        assert f"the last offset that was acknowledged here is {last}" in line.fields["detail"]
        assert hub.wait(10.0) == 1
        hub.start()
        edge.wait_up("hub", 20.0)
        publish(edge, "up", [20])
        until(lambda: 20 in numbers(hub, "up"))
        assert numbers(hub, "up")[:10] == list(range(10))
        assert list(edge.matching(event="link.records-lost"))
    finally:
        edge.close()
        hub.close()
        one.remove()


def own(server: Server, folder: Path) -> None:
    """Give a copied directory to the server's user."""
    if server.owner is not None:
        for where, _, files in os.walk(folder):
            for path in (Path(where), *(Path(where) / file for file in files)):
                os.chown(path, server.owner.pw_uid, server.owner.pw_gid)
    folder.chmod(0o700)
