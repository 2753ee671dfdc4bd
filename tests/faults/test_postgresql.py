"""A hub whose log is in PostgreSQL: the database's disk is full, its clock is wrong."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from linkd.drill.testbed import Namespace, SteppedClock
from tests.integration.test_postgresql import init, log_of, post, run_offline
from tests.support.daemon import Daemon
from tests.support.duo import numbers, publish, until
from tests.support.needs import lacking, need
from tests.support.postgresql import Server, needs_postgresql
from tests.support.unix_http import UnixConnection

pytestmark = needs_postgresql

SIZE = 300_000
TEN_YEARS = 10 * 365 * 86400.0


@pytest.fixture
def small() -> Iterator[Namespace]:
    need("network namespaces")
    if os.geteuid() != 0:
        lacking("root, to mount a small disk for PostgreSQL")
    host = Namespace("small-disk")
    yield host
    host.close()


def start(server: Server) -> Daemon:
    """Return a hub on a server, started."""
    name = server.database("hub")
    hub = Daemon("hub", log_of(server.dsn(name), engine_timeout=2.0))
    init(server, hub, name)
    hub.start()
    return hub


def post_large(hub: Daemon, number: int) -> int:
    """Publish a large body under its id; return the status."""
    connection = UnixConnection(str(hub.socket), 20.0)
    try:
        body = b'{"n": %d, "x": "%s"}' % (number, os.urandom(SIZE // 2).hex().encode())
        headers = {"Content-Type": "application/json", "Linkd-Id": str(number)}
        connection.request("POST", "/v1/channels/a", body, headers)
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


def until_refused(hub: Daemon, status: int, sent: int = 0) -> int:
    """Publish until one is refused with that status; return how many were stored."""
    while (found := post_large(hub, sent)) < 300:
        sent += 1
        assert sent < 1000
    assert found == status
    return sent


def test_a_full_disk_of_the_database_refuses_publishes_until_there_is_room(
    small: Namespace,
) -> None:
    server = Server(small)
    hub = start(server)
    try:
        publish(hub, "a", [-1])
        server.fill()
        sent = until_refused(hub, 507)
        status, answer = post(hub, "b", 1)
        assert (status, answer["error"]) == (507, "log-full")
        assert "No space left on device (53100)" in answer["message"]
        hub.wait_line(5.0, event="log.full")
        server.free()
        until(lambda: post_large(hub, sent) < 300, 10.0)
        assert numbers(hub, "a") == list(range(-1, sent + 1))
        hub.kill()
        hub.start()
        assert numbers(hub, "a") == list(range(-1, sent + 1))
    finally:
        hub.close()
        server.remove()


def test_a_server_that_stops_because_its_disk_is_full_loses_nothing(small: Namespace) -> None:
    server = Server(small, small_log=True)
    hub = start(server)
    try:
        server.fill()
        sent = until_refused(hub, 503)
        assert post(hub, "a", sent)[0] == 503
        hub.wait_line(5.0, event="log.engine-away")
        server.free()
        with_room: list[Any] = []
        server.kill()
        server.start()
        until(lambda: with_room.append(post_large(hub, sent)) or with_room[-1] < 300, 20.0)
        assert numbers(hub, "a") == list(range(sent + 1))
    finally:
        hub.close()
        server.remove()


def test_a_wrong_clock_of_the_database_loses_nothing_and_is_said() -> None:
    need("libfaketime")
    with TemporaryDirectory() as name:
        Path(name).chmod(0o755)  # for the server's user
        clock = SteppedClock(Path(name))
        clock.step(TEN_YEARS)
        server = Server(environment=clock.environment)
        hub = start(server)
        try:
            with server.connect("hub") as connection:
                (at,) = connection.execute("select extract(epoch from now())::float8").fetchone()
            assert abs(at - TEN_YEARS - time.time()) < 60.0
            line = hub.wait_line(5.0, event="log.clock-doubtful")
            assert "ahead of this host's" in line.fields["detail"]
            assert "the clock of the database" in run_offline(hub, "check")
            publish(hub, "a", [1])
            assert post(hub, "a", 2)[0] < 300
            hub.call("GET", "/v1/channels/a?consumer=billing&from=earliest")
            hub.call("POST", "/v1/consumers/billing/ack", b'{"next": 2}')
            clock.step(-TEN_YEARS)
            assert post(hub, "a", 2)[1]["duplicate"]
            assert post(hub, "a", 3)[0] < 300
            hub.kill()
            hub.start()
            assert post(hub, "a", 3)[1]["duplicate"]
            assert numbers(hub, "a") == [1, 2, 3]
            (consumer,) = hub.call("GET", "/v1/consumers")["consumers"]
            assert (consumer["name"], consumer["lag_records"]) == ("billing", 2)
            assert "behind this host's" in run_offline(hub, "check")
        finally:
            hub.close()
            server.remove()
