"""Two hubs of one node on one PostgreSQL: each shows both, and a drain moves the edge."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from linkd.drill.testbed import free_port
from tests.integration.test_postgresql import init, log_of
from tests.support.daemon import Daemon, listen, peer
from tests.support.duo import ALL, numbers, publish, until
from tests.support.postgresql import Server, needs_postgresql

pytestmark = needs_postgresql


class Pair:
    """Two hubs of the node `hub`, and an edge that dials either."""

    def __init__(self) -> None:
        self.server = Server()
        name = self.server.database("hub")
        ports = [free_port() for _ in range(2)]
        self.text = peer("edge", extra=f"{ALL}required = true\n")
        self.hubs = {
            letter: Daemon(
                "hub",
                f'[cluster]\ninstance = "hub-{letter}"\n'
                + log_of(self.server.dsn(name), engine_timeout=2.0)
                + listen(port)
                + self.text,
            )
            for letter, port in zip("ab", ports, strict=True)
        }
        urls = [f"ws://127.0.0.1:{port}/link" for port in ports]
        one = peer("hub", urls[0], extra=ALL).replace(json.dumps(urls[:1]), json.dumps(urls))
        self.edge = Daemon("edge", one)
        init(self.server, self.hubs["a"], name)
        for daemon in (*self.hubs.values(), self.edge):
            daemon.start()
        self.edge.wait_up("hub", 20.0)

    def close(self) -> None:
        """End all."""
        for daemon in (self.edge, *self.hubs.values()):
            daemon.close()
        self.server.remove()


@pytest.fixture
def pair() -> Iterator[Pair]:
    one = Pair()
    yield one
    one.close()


def linkd(daemon: Daemon, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "linkd", "-c", str(daemon.config_file), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def shown(pair: Pair) -> list[tuple[str, Any]]:
    """Return state and instance of the link to the edge as each hub that runs shows it."""
    links = [hub.link("edge") for hub in pair.hubs.values() if hub.running]
    return [(link["state"], link["instance"]) for link in links]


def test_each_instance_shows_the_whole_and_a_rolling_restart_moves_the_edge(pair: Pair) -> None:
    a, b = pair.hubs["a"], pair.hubs["b"]
    until(lambda: len({*shown(pair)}) == 1 and shown(pair)[0][0] == "up", 5.0)
    ((_, holder),) = {*shown(pair)}
    first, second = (a, b) if holder == "hub-a" else (b, a)
    others = {"hub-a": "hub-b", "hub-b": "hub-a"}[holder]
    lines = linkd(second, "status").stdout
    assert f" at {others}  linkd " in lines
    assert holder in lines
    assert linkd(second, "status", "--check").returncode == 0
    listed = [json.loads(line) for line in linkd(second, "instances", "--json").stdout.splitlines()]
    assert [(one["instance"], one["state"], one["here"]) for one in listed] == [
        (name, "up", name == others) for name in ("hub-a", "hub-b")
    ]
    assert [one["links"] for one in listed] == [int(one["instance"] == holder) for one in listed]
    assert [one["differs"] for one in listed] == [[], []]
    assert sum(one["keeper"] for one in listed) == 1
    assert all(line.fields.get("instance") == others for line in second.lines[1:5])
    assert second.call("GET", "/v1/events")["events"][-1]["instance"] == others

    # A rolling restart: the edge goes to the other hub and nothing is lost on the way.
    publish(pair.edge, "up", range(10))
    began = time.monotonic()
    assert linkd(first, "drain").returncode == 0
    until(lambda: {*shown(pair)} == {("up", others)}, 10.0)
    print(f"up at the other hub {time.monotonic() - began:.2f} s after the drain began")
    assert linkd(second, "status", "--check").returncode == 0
    publish(pair.edge, "up", range(10, 20))
    until(lambda: states(second)[holder] == "draining", 5.0)
    first.stop()
    until(lambda: states(second)[holder] == "stopped", 5.0)
    assert second.status()["warnings"] == []
    first.start()
    until(lambda: states(second)[holder] == "up", 5.0)
    until(lambda: numbers(first, "up") == list(range(20)))
    until(lambda: shown(pair) == [("up", others)] * 2, 5.0)


def states(hub: Daemon) -> dict[str, str]:
    found = hub.call("GET", "/v1/instances")["instances"]
    return {one["instance"]: one["state"] for one in found}


def test_a_frozen_instances_link_is_unknown_and_check_names_what_differs(pair: Pair) -> None:
    until(lambda: len({*shown(pair)}) == 1 and shown(pair)[0][0] == "up", 5.0)
    ((_, holder),) = {*shown(pair)}
    first = pair.hubs[holder[-1]]
    second = pair.hubs["b" if holder == "hub-a" else "a"]
    pair.edge.stop()
    first.freeze()
    began = time.monotonic()
    until(lambda: second.link("edge")["state"] == "unknown", 25.0)
    assert 10.0 < time.monotonic() - began < 18.0
    checked = linkd(second, "status", "--check")
    assert checked.returncode == 2
    assert "edge unknown for" in checked.stdout
    assert f"at {holder}" in checked.stdout
    assert states(second)[holder] == "silent"
    first.thaw()
    until(lambda: second.link("edge")["state"] not in ("up", "unknown"), 15.0)
    text = second.config_file.read_text()
    second.config_file.write_text(text.replace("required = true", "required = false"))
    warned = linkd(second, "check", "-q")
    assert warned.returncode == 0
    assert f"the instance {holder} (it wrote last at " in warned.stderr
    assert "its [[peer]] tables are not those here" in warned.stderr
