"""Programs, commands and files of docs/how-to, run on real daemons or checked by their tools."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from linkd.api.access import _is_address
from linkd.cli import main
from linkd.drill.testbed import free_port
from tests.integration.test_postgresql import init, log_of
from tests.support.daemon import Daemon, listen, peer
from tests.support.duo import ALL, numbers, publish, until
from tests.support.needs import need
from tests.support.pairs import Pair
from tests.support.postgresql import Server, needs_postgresql

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "how-to"


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with Pair() as linked:
        yield linked


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a directory with the command `linkd`."""
    command = tmp_path / "linkd"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m linkd "$@"\n')
    command.chmod(0o755)
    return tmp_path


def blocks(page: str, language: str) -> list[str]:
    """Return the blocks of a page, in order."""
    text = (PAGES / page).read_text()
    found = re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert found
    return found


def start(daemon: Daemon, *command: str, path: Path | None = None) -> subprocess.Popen[str]:
    search = f"{path}:{os.environ['PATH']}" if path else os.environ["PATH"]
    own = {"LINKD_SOCKET": str(daemon.socket), "PYTHONPATH": str(ROOT), "PATH": search}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, **own}, start_new_session=True,
    )  # fmt: skip


def run(daemon: Daemon, *command: str, path: Path | None = None) -> str:
    process = start(daemon, *command, path=path)
    out = process.communicate(timeout=25)[0]
    assert process.returncode == 0, out
    return out


def test_dead_letters(pair: Pair, path: Path) -> None:
    consume, again = blocks("dead-letters.md", "python")
    (look,) = blocks("dead-letters.md", "sh")
    for number, address in ((1, "A"), (2, None), (3, "C")):
        order = {"number": number, "address": address}
        pair.edge.call("POST", "/v1/channels/parcels", json.dumps(order).encode())
    shipped = run(pair.edge, sys.executable, "-c", consume)
    assert re.fullmatch(r"shipped 1\nput aside \d+ no address\nshipped 3\n", shipped)
    letter = json.loads(run(pair.edge, "sh", "-euc", look, path=path))
    assert letter["headers"]["problem"] == "no address"
    assert run(pair.edge, sys.executable, "-c", again) == "again 2\n"
    assert "requeue" in run(pair.edge, "linkd", "consumers", path=path)


def test_the_pki_of_the_certificates_page(tmp_path: Path, path: Path) -> None:
    """Its commands run in order, in one shell: two nodes link by certificates of that authority."""
    need("openssl")
    script = "\n".join(blocks("certificates.md", "sh")).replace("19443", str(free_port()))
    end = "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"{end}{script}\nwait\n"],
        capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path,
        env={
            **{name: value for name, value in os.environ.items() if "LINKD" not in name},
            "PYTHONPATH": str(ROOT), "PATH": f"{path}:{os.environ['PATH']}",
        },
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    for words in ("hub.toml: fine", "edge.toml: fine", "offset 1, hub has it", "certificate"):
        assert words in done.stdout, f"{words}\n{done.stdout}"


def test_an_mqtt_topic_becomes_a_channel_and_a_topic_again(pair: Pair, path: Path) -> None:
    need("mosquitto", "mosquitto_sub", "jq")
    port = free_port()
    subscribe, _, back = blocks("mqtt.md", "sh")
    processes = [start(pair.edge, "mosquitto", "-p", str(port))]
    try:
        publish = ["mosquitto_pub", "-p", str(port), "-t", "orders/new", "-q", "1", "-m"]
        ends = time.monotonic() + 20
        while subprocess.run([*publish, "0"], check=False, capture_output=True).returncode:
            assert time.monotonic() < ends
            time.sleep(0.1)
        subscribe = subscribe.replace("mosquitto_sub", f"mosquitto_sub -p {port}")
        back = back.replace("orders/new", "back/new").replace(
            "mosquitto_pub", f"mosquitto_pub -p {port}"
        )
        heard = start(
            pair.edge, "mosquitto_sub", "-p", str(port), "-t", "back/new", "-C", "2", "-W", "20"
        )
        processes.append(heard)
        for daemon, command in ((pair.edge, subscribe), (pair.hub, back)):
            processes.append(start(daemon, "bash", "-euo", "pipefail", "-c", command, path=path))
        while heard.poll() is None and time.monotonic() < ends:  # until all have subscribed
            subprocess.run([*publish, '{"id":1}'], check=False, timeout=5, capture_output=True)
            time.sleep(0.2)
        assert heard.communicate(timeout=5)[0].splitlines() == ['{"id":1}'] * 2
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(10)


def test_both_ends_continue_with_an_empty_disk(pair: Pair) -> None:
    """As docs/how-to/replace-a-disk.md promises: each link comes up by itself and reports it."""
    for daemon, far in ((pair.edge, "hub"), (pair.hub, "edge")):
        daemon.call("POST", f"/v1/channels/orders?wait={far}", b"1")
    for lost, other in ((pair.edge, pair.hub), (pair.hub, pair.edge)):
        lost.stop()
        shutil.rmtree(lost.directory / "state")
        lost.start()
        pair.edge.wait_up("hub", 20)
        body = json.dumps(lost.name).encode()
        offset = pair.edge.call("POST", "/v1/channels/orders?wait=hub", body)["offset"]
        assert offset >= 1
        for end in (lost, other):
            assert any(line.fields.get("event") == "link.new-log" for line in end.lines)


def test_the_table_of_hours_is_right() -> None:
    text = (PAGES / "size-an-outage.md").read_text()
    sizes = {"100 B": 100, "1 KiB": 1024, "10 KiB": 10240, "100 KiB": 102400}
    rows = re.findall(r"^\| ([\d,]+) \|(.+)\|$", text, re.MULTILINE)
    assert len(rows) == 4
    for rate, cells in rows:
        for size, cell in zip(sizes.values(), cells.split("|"), strict=True):
            hours = 10 * 2**30 / (float(rate.replace(",", "")) * (size + 60) * 3600)
            assert float(cell.replace(",", "")) == pytest.approx(hours, rel=0.05), (rate, size)


def test_a_message_takes_about_sixty_bytes_more_than_its_body(pair: Pair, path: Path) -> None:
    before = pair.edge.call("GET", "/v1/status")["log"]["bytes"]
    for body in (100, 1024):
        lines = f"head -c {body * 2000} /dev/zero | tr '\\0' x | fold -w {body}"
        run(pair.edge, "sh", "-euc", f"{lines} | linkd publish sizes --lines", path=path)
        after = pair.edge.call("GET", "/v1/status")["log"]["bytes"]
        assert 0 < (after - before) / 2000 - body < 80
        before = after


def test_upgrade_and_outage_commands_run(pair: Pair, path: Path) -> None:
    need("curl", "jq")
    wait, look = blocks("upgrade.md", "sh")
    run(pair.edge, "sh", "-euc", wait.replace("/run/linkd/linkd.sock", str(pair.edge.socket)))
    assert "hub\tup\tlinkd 0" in run(pair.edge, "sh", "-euc", look, path=path)
    (stat,) = blocks("size-an-outage.md", "sh")
    assert " offsets, 1 to " in run(pair.edge, "sh", "-euc", stat, path=path)


def test_prometheus_takes_the_configuration(tmp_path: Path) -> None:
    need("promtool")
    file = tmp_path / "prometheus.yml"
    text = blocks("monitoring.md", "yaml")[0]
    text = text.replace("/etc/prometheus/alerts.yml", str(ROOT / "conf" / "alerts.yml"))
    file.write_text(text.replace("/etc/prometheus/linkd.key", str(file)))
    done = subprocess.run(
        ["promtool", "check", "config", str(file)], capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_manifest_for_kubernetes(tmp_path: Path) -> None:
    """It parses, its mounts have volumes, and linkd takes the configuration in it."""
    yaml: Any = pytest.importorskip("yaml")
    config, stateful = yaml.safe_load_all(blocks("kubernetes.md", "yaml")[0])
    spec = stateful["spec"]["template"]["spec"]
    volumes = {volume["name"] for volume in spec["volumes"]}
    volumes |= {claim["metadata"]["name"] for claim in stateful["spec"]["volumeClaimTemplates"]}
    for container in spec["containers"]:
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
    assert spec["terminationGracePeriodSeconds"] >= 10
    assert stateful["spec"]["replicas"] == 1
    toml = config["data"]["linkd.toml"]
    for name in ("hub.secret", "hub-ca.crt"):
        (tmp_path / name).touch(0o600)
        (tmp_path / name).write_text("x" * 32)
    toml = toml.replace("/etc/linkd/secrets", str(tmp_path)).replace("    ca =", "    # ca =")
    toml = re.sub(r"^ca = .*$", "", toml, flags=re.MULTILINE)
    file = tmp_path / "linkd.toml"
    file.write_text(toml.replace("/var/lib/linkd/node", str(tmp_path / "state")))
    assert main(["check", "-q", "-c", str(file)]) == 0
    assert _is_address("10.0.0.7"), "a probe's Host is the pod's address"


@needs_postgresql
def test_one_hub_becomes_the_first_of_several_and_is_alone_again() -> None:
    """As docs/how-to/several-hubs.md has it: nothing changes at the edge, and nothing is lost."""
    server = Server()
    ports = [free_port(), free_port()]
    dsn = server.dsn(server.database("hub"))
    alone, other = (log_of(dsn) + listen(port) + peer("edge", extra=ALL) for port in ports)
    urls = json.dumps([f"ws://127.0.0.1:{port}/link" for port in ports])
    dial = peer("hub", "ws://hub/link", extra=ALL).replace('["ws://hub/link"]', urls)
    with (
        contextlib.ExitStack() as ends,
        Daemon("edge", dial) as edge,
    ):
        ends.callback(server.remove)
        first, second = Daemon("hub", alone), Daemon("hub", f'[cluster]\ninstance = "b"\n{other}')
        for hub in (first, second):
            ends.callback(hub.close)
        init(server, first, "hub")
        first.start()
        edge.wait_up("hub", 20.0)
        publish(edge, "up", range(5))

        first.stop()
        first.configure(f'[cluster]\ninstance = "a"\n{alone}')
        first.start()
        second.start()
        edge.wait_up("hub", 20.0)
        publish(edge, "up", range(5, 10))
        first.kill()
        edge.wait_up("hub", 20.0)
        publish(edge, "up", range(10, 15))
        until(lambda: numbers(second, "up") == list(range(15)))

        second.stop()
        first.configure(alone)
        first.start()
        edge.wait_up("hub", 20.0)
        publish(edge, "up", range(15, 20))
        until(lambda: numbers(first, "up") == list(range(20)))
