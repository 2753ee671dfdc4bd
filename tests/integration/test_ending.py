"""A daemon ends in time whatever hangs, its lines written; a reader that stops stops nothing."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import Daemon

MAIN = "from linkd.cli import main; raise SystemExit(main())"
EDGE = """
[[peer]]
name = "hub"
dial = ["ws://nowhere.test:9443/link"]
insecure = true
secret_file = "{secret}"
"""
LINES = 3000
FLOOD = f"""
from linkd import daemon, events
started = daemon.Daemon.start
def start(self, parts):
    started(self, parts)
    for number in range({LINES}):
        events.emit("link.up", peer="p%d" % number)
    flooded()
daemon.Daemon.start = start
"""


@pytest.fixture
def edge() -> Iterator[Daemon]:
    made = Daemon("edge", EDGE)
    yield made
    made.close()


def test_a_stop_waits_for_no_look_up(edge: Daemon) -> None:
    edge.program = (
        "-c",
        "import time\nfrom linkd import app as assembly\n"
        "assembly.look_up = lambda host: time.sleep(60)\n" + MAIN,
    )
    edge.start()
    assert edge.stop() == 0, "a stop that hangs for five seconds ends with 1"
    assert edge.lines[-1].fields["event"] == "node.stopped"


@pytest.mark.timing
def test_a_stop_that_hangs_ends_within_five_seconds_with_the_place(edge: Daemon) -> None:
    edge.program = (
        "-c",
        "import time\nfrom linkd.node.node import Node\n"
        "def stuck(self, detail): time.sleep(60)\nNode.stop = stuck\n" + MAIN,
    )
    edge.start()
    begun = time.monotonic()
    assert edge.stop() == 1
    assert 4.0 < time.monotonic() - begun < 5.5
    last = edge.lines[-1].fields
    assert last["event"] == "node.stop-hung"
    assert last["signal"] == "SIGTERM"
    assert "in stuck" in last["detail"]


def test_a_stop_does_not_wait_for_a_log_that_opens_slowly(edge: Daemon) -> None:
    edge.program = (
        "-c",
        "import time\nfrom linkd import app as assembly\n"
        "assembly.open_log = lambda *_: time.sleep(60)\n" + MAIN,
    )
    edge.start(ready_within=None)
    edge.wait_line(10.0, event="node.starting")
    assert edge.stop() == 0, "a stop that hangs for five seconds ends with 1"
    assert edge.lines[-1].fields["event"] == "node.stopping"


def test_the_watchdogs_signal_ends_a_loop_that_hangs_with_the_place(edge: Daemon) -> None:
    edge.program = (
        "-c",
        "import time\n" + FLOOD + "def flooded(): time.sleep(60)\n" + MAIN,
    )
    edge.start()
    edge.wait_line(5.0, event="link.up", peer=f"p{LINES - 1}")
    edge.signal(signal.SIGABRT)
    assert edge.wait(10.0) == -signal.SIGABRT
    assert sum(line.fields.get("event") == "link.up" for line in edge.lines) == LINES
    last = edge.lines[-1].fields
    assert last["event"] == "node.aborted"
    assert "in flooded" in last["detail"]


def test_its_own_watchdog_ends_a_loop_that_hangs_with_the_place() -> None:
    code = (
        "import time\nfrom linkd import systemd\nsystemd.LOOK_SECONDS = 0.1\n"
        + FLOOD
        + "def flooded(): time.sleep(60)\n"
        + MAIN
    )
    made = Daemon("edge", EDGE, environment={"WATCHDOG_USEC": "30000000"})
    try:
        made.program = ("-c", code)
        made.start()
        assert made.wait(10.0) == -signal.SIGABRT
        last = made.lines[-1].fields
        assert last["event"] == "node.aborted"
        assert "in flooded" in last["detail"]
    finally:
        made.close()


def test_every_line_before_an_abort_is_written(edge: Daemon) -> None:
    edge.program = (
        "-c",
        "import signal, os\n"
        + FLOOD
        + "def flooded(): os.kill(os.getpid(), signal.SIGABRT)\n"
        + MAIN,
    )
    edge.start(ready_within=None)
    assert edge.wait(20.0) == -signal.SIGABRT
    assert sum(line.fields.get("event") == "link.up" for line in edge.lines) == LINES
    # The loop may log a little more while the signal's thread writes what is queued.
    assert "node.aborted" in [line.fields.get("event") for line in edge.lines[-5:]]


@pytest.fixture
def unread(tmp_path: Path) -> Iterator[tuple[Daemon, int]]:
    """A daemon with a watchdog whose standard error nobody reads, and the end to read it from."""
    fifo = tmp_path / "stderr"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    code = FLOOD.replace(f"range({LINES})", "range(20_000)") + "def flooded(): pass\n" + MAIN
    environment = {"WATCHDOG_USEC": "400000"}
    made = Daemon("edge", EDGE, environment=environment)
    run = (sys.executable, "-c", code, "run", "-c", str(made.config_file), "--log-format", "json")
    made._command = ("sh", "-c", f'exec "$@" 2>{fifo}', "sh", *run)
    yield made, reader
    made.close()
    os.close(reader)


def test_a_reader_of_standard_error_that_stops_stops_nothing(unread: tuple[Daemon, int]) -> None:
    node, reader = unread
    node.start()
    for number in range(200):
        node.signal(signal.SIGHUP)
        assert node.call("GET", "/v1/status", timeout=5.0)["node"] == "edge", number
    before = len(node.notices)
    end = time.monotonic() + 5.0
    while [said for _, said in node.notices[before:]].count("WATCHDOG=1") < 2:
        assert time.monotonic() < end, "the watchdog is not fed"
        time.sleep(0.05)
    os.set_blocking(reader, True)
    text = b""
    while b"node.lines-dropped" not in text or not text.endswith(b"\n"):
        text += os.read(reader, 65_536)
    lines = [json.loads(line) for line in text.splitlines()]
    (dropped,) = [line for line in lines if line["event"] == "node.lines-dropped"]
    assert dropped["lines"] > 10_000
    assert dropped["first"] < dropped["last"]
    assert node.stop() == 0


def test_a_stop_ends_though_nobody_reads_standard_error(unread: tuple[Daemon, int]) -> None:
    node, _ = unread
    node.start()
    assert node.stop() == 0, "a stop that hangs for five seconds ends with 1"
