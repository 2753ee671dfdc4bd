"""linkd.js on a real daemon: wrong arguments, functions that fail, and faults without a pause."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from itertools import cycle

import pytest

from linkd.drill.testbed import free_port
from tests.support import figures
from tests.support.daemon import Daemon, peer
from tests.support.lab import Lab
from tests.web.driver import Driver

pytestmark = [pytest.mark.web]


def test_no_argument_and_no_function_of_the_application_stops_other_calls() -> None:
    port = free_port()
    away = peer("hub", f"ws://127.0.0.1:{free_port()}/link")
    with (
        Daemon("edge-1", f'http = "127.0.0.1:{port}"\nrequire_key = false\n{away}'),
        Driver("misuse.mjs", f"http://127.0.0.1:{port}") as seen,
    ):
        seen.wait(lambda said: "cases" in said, 60)
        assert seen.last("wrong") == []
        assert seen.last("cases") > 900
        assert seen.last("drops") == 0
        seen.wait(lambda said: "hooks" in said, 60)
        assert seen.last("wrong") == []
        figures.tell(f"linkd.js: {seen.last('cases')} wrong arguments, {seen.last('hooks')} hooks")


def test_a_consumer_goes_on_over_ends_of_the_node_and_of_itself() -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with Daemon("edge-1", f'http = "127.0.0.1:{port}"\nrequire_key = false\n') as daemon:
        with Driver("worker.mjs", url, "0", "600") as seen:
            seen.wait(lambda said: "handled" in said, 10)
            for _ in range(3):
                time.sleep(0.7)
                daemon.kill()
                daemon.start()
            seen.wait(lambda said: "once" in said, 29)
        first = dict(seen.seen[-1][1])
        figures.tell(f"linkd.js, a consumer over 3 ends: {first}")
        with Driver("worker.mjs", url, "600", "5") as seen:
            seen.wait(lambda said: "once" in said, 10)
        second = seen.seen[-1][1]
    assert (first["once"], first["in_order"], first["behind"]) == (600, True, 0)
    assert first["repeats"] <= 3 * 40, "far more than was under way when the node ended"
    assert second == {"once": 5, "in_order": True, "repeats": 0, "failures": 0, "behind": 0}


@pytest.mark.timing
def test_nothing_is_lost_doubled_or_out_of_order_over_faults_without_a_pause() -> None:
    """`LINKD_CHAOS_SECONDS` makes it longer than CI has time for."""
    seconds = float(os.environ.get("LINKD_CHAOS_SECONDS", "9"))
    port = free_port()
    with (
        Daemon("edge-1", f'http = "127.0.0.1:{port}"\nrequire_key = false\n') as daemon,
        Driver("chaos.mjs", f"http://127.0.0.1:{port}") as seen,
    ):
        seen.wait(lambda said: "under_way" in said, 20)
        end, faults = time.monotonic() + seconds, 0
        for fault in cycle(("kill", "freeze", "reload", "stop", "long freeze")):
            time.sleep(0.8)
            if time.monotonic() > end:
                break
            faults += 1
            if fault == "reload":
                daemon.signal(signal.SIGHUP)
            elif fault in ("kill", "stop"):
                daemon.kill() if fault == "kill" else daemon.stop()
                daemon.start()
            else:
                daemon.freeze()
                time.sleep(0.5 if fault == "freeze" else 2.5)  # silence is noticed after 2 s
                daemon.thaw()
        seen.tell(end=True)
        seen.wait(lambda said: "published" in said, 15 + seconds)
    result = dict(seen.seen[-1][1])
    figures.tell(f"linkd.js over {faults} faults in {seconds:g} s: {result}")
    assert result["settled"] == result["published"] > 100 * seconds
    assert result["lost"] == result["gaps"] == 0
    wrong = [name for name, it in result.items() if it is False]
    assert wrong == []


@pytest.mark.lab
@pytest.mark.timing
@pytest.mark.parametrize(("kilobits", "bytes_"), [(400, 400_000), (1000, 900_000)])
def test_small_messages_pass_beside_large_ones_on_a_slow_path(
    lab: Lab, daemons: Callable[..., Daemon], kilobits: int, bytes_: int
) -> None:
    """Large messages pass both ways on one connection, and small ones wait for a part at most."""
    here, there = lab.host("page"), lab.host("node")
    url = f"http://{there.address}:9480"
    node = daemons(
        "node",
        f'http = "{there.address}:9480"\ninsecure = true\norigins = ["{url}"]\n'
        '[[api.key]]\nname = "page"\nsecret_file = "{secret}"\n'
        'publish = [">"]\nsubscribe = [">"]\n',
        there,
    )
    for host in (here, there):
        host.slow(kilobits)
    key = (node.directory / "secret").read_text()
    with Driver("slow.mjs", url, str(node.socket), str(bytes_), host=here, KEY=key) as seen:
        seen.wait(lambda said: "open" in said, 15)
        seen.wait(lambda said: "seconds" in said, 29)
    result = seen.seen[-1][1]
    figures.tell(f"linkd.js at {kilobits} kbit/s, {bytes_} bytes each way: {result}")
    assert result["seconds"] > 6, "the path was too quick to show anything"
    assert result["lengths"] == [bytes_]
    assert result["sent"]
    assert result["opened"] == 1
    assert result["wrong"] == []
    assert result["smalls"] > 10
    assert max(result["waits"].values()) < 2.0
