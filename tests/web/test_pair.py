"""The dashboard, linkd.js and well-known clients against two linked daemons."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest

from linkd.drill.testbed import free_port
from tests.support import figures
from tests.support.daemon import COMMAND, Daemon, listen, peer
from tests.support.lab import LabHost, Lab, python
from tests.unit.test_conf import ALERTS, expressions, metrics_in
from tests.web.driver import Driver

pytestmark = [pytest.mark.web, pytest.mark.slow]

Start = Callable[..., Daemon]
SLACK = 1.0
"""Seconds for the way from the daemon's notice to what a person sees, on a busy machine."""


def page(port: int) -> str:
    """Return the lines of [api] that serve pages to whoever is on this host."""
    return f'http = "127.0.0.1:{port}"\nrequire_key = false\n'


def pair_over(lab: Lab, daemons: Start) -> tuple[LabHost, Daemon, LabHost, Daemon]:
    """Start two linked daemons on hosts of their own, each with its dashboard."""
    edge_host, hub_host = lab.host("edge"), lab.host("hub")
    everything = 'send = [">"]\nreceive = [">"]\n'
    hub = daemons("hub", page(9480) + listen() + peer("edge", extra=everything), hub_host)
    url = f"ws://{hub_host.address}:9443/link"
    edge = daemons("edge", page(9480) + peer("hub", url, extra=everything), edge_host)
    edge.wait_up("hub")
    hub.wait_up("edge")
    return edge_host, edge, hub_host, hub


def pair_here(daemons: Start) -> tuple[Daemon, str, Daemon, str]:
    """Start two linked daemons on this host; return each with its address for pages."""
    everything = 'send = [">"]\nreceive = [">"]\n'
    link, hub_port, edge_port = free_port(), free_port(), free_port()
    hub = daemons(
        "hub", page(hub_port) + listen(link, "127.0.0.1") + peer("edge", extra=everything)
    )
    url = f"ws://127.0.0.1:{link}/link"
    edge = daemons("edge", page(edge_port) + peer("hub", url, extra=everything))
    edge.wait_up("hub")
    return edge, f"http://127.0.0.1:{edge_port}", hub, f"http://127.0.0.1:{hub_port}"


def dashboard_address(daemon: Daemon, host: LabHost | None = None) -> str:
    """Return what `linkd token --dashboard` prints, on a host of the lab or here."""
    command = python(*COMMAND, "-c", str(daemon.config_file), "token", "--dashboard")
    if host is not None:
        command = [*host.prefix, *command]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=20
    ).stdout.strip()


@pytest.mark.lab
@pytest.mark.parametrize("end", ["dialer", "listener"])
def test_a_cut_turns_the_link_red_and_locks_the_box(lab: Lab, daemons: Start, end: str) -> None:
    edge_host, edge, hub_host, hub = pair_over(lab, daemons)
    if end == "dialer":
        here, daemon, there, peer_name, bound = edge_host, edge, hub_host, "hub", 10.1
    else:
        here, daemon, there, peer_name, bound = hub_host, hub, edge_host, "edge", 7.1
    with Driver("watch.mjs", dashboard_address(daemon, here), peer_name, host=here) as seen:
        seen.wait(lambda said: said["tone"] == "good" and not said["locked"], 20)
        seen.tell(publish='{"total": 12}')
        seen.wait(lambda said: said["answer"].startswith("on disk"), 5)
        here.drop(there.address)
        cut = time.monotonic()
        red = seen.wait(lambda said: said["tone"] == "bad" and said["locked"], bound + SLACK + 1)
        seen.wait(lambda said: said["bars"] == 1, 3)
        seen.tell(shot=f"cut-{end}")
        here.restore(there.address)
        restored = time.monotonic()
        green = seen.wait(lambda said: said["tone"] == "good" and not said["locked"], 8)
        figures.tell(f"dashboard, {end}: red {red - cut:.2f} s after the cut,")
        figures.tell(f"  green {green - restored:.2f} s after the return")
        assert red - cut < bound + SLACK
        seen.tell(publish='"after"')
        seen.wait(lambda said: said["arrived"] == "after", 5)
        seen.tell(end=True)
        seen.wait(lambda said: "wrong" in said, 10)
        assert seen.last("wrong") == []
        assert seen.last("shift") < 0.05


def test_the_page_tells_of_a_restart_and_comes_back(daemons: Start) -> None:
    edge, *_ = pair_here(daemons)
    with Driver("watch.mjs", dashboard_address(edge), "hub") as seen:
        seen.wait(lambda said: said["tone"] == "good" and said["connection"] == "up", 20)
        edge.kill()
        seen.wait(lambda said: said["lost"] and said["locked"], 5)
        edge.start()
        whole = {"lost": False, "locked": False, "connection": "up", "tone": "good"}
        seen.wait(lambda said: whole.items() <= said.items(), 20)
        seen.tell(publish='"back"')
        seen.wait(lambda said: said["arrived"] == "back", 5)
        seen.tell(end=True)
        seen.wait(lambda said: "wrong" in said, 10)
        assert seen.last("wrong") == []


def test_well_known_clients_publish_and_receive_over_the_pair(daemons: Start) -> None:
    edge, edge_page, _, hub_page = pair_here(daemons)
    with Driver("exchange.mjs", edge_page, hub_page) as seen:
        seen.wait(lambda said: "restart" in said, 60)
        edge.kill()
        edge.start()
        edge.wait_up("hub")
        seen.tell(restarted=True)
        seen.wait(lambda said: "doubled" in said, 60)
        for round_name in ("first", "second"):
            result: dict[str, dict[str, Any]] = seen.last(round_name)
            assert len(result) == 6
            for name, it in result.items():
                assert it["received"] is True, (round_name, name, it)
                assert it["published"] in (True, None), (round_name, name, it)
        assert seen.last("doubled") == 0
        assert seen.last("wrong") == []


def test_the_metrics_that_alerts_and_grafana_ask_for_are_there(daemons: Start) -> None:
    edge, *_ = pair_here(daemons)
    edge.call("POST", "/v1/channels/orders", b"1")
    text = edge.call("GET", "/metrics")
    asked = metrics_in(ALERTS.read_text()).union(*(metrics_in(each) for _, each in expressions()))
    assert len(asked) > 15
    # Those of instances and their bus are there with [cluster] only (tests/unit/node).
    for name in {one for one in asked if not one.startswith(("linkd_instance_", "linkd_bus_"))}:
        assert f"# TYPE {name} " in text, name
    assert "\nlinkd_log_commit_seconds_count 0\n" not in text, "a commit was made, and not counted"


def test_linkd_js_settles_each_publish_once_over_kills_of_the_daemon(daemons: Start) -> None:
    edge, edge_page, *_ = pair_here(daemons)
    with Driver("in_flight.mjs", edge_page, "8") as seen:
        seen.wait(lambda said: "under_way" in said, 20)
        for _ in range(2):
            time.sleep(2)
            edge.kill()
            edge.start()
        seen.wait(lambda said: "published" in said, 60)
    result = seen.seen[-1][1]
    figures.tell(f"linkd.js over two kills: {result}")
    assert result["connections"] == 3
    assert result["arrived"] == result["published"] > 500
    assert result["offsets_rise"]
    assert result["in_order"]
    assert result["by_type_once"]
