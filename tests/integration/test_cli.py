"""The command as a process, against a real daemon."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import linkd.client as linkd_client
from tests.support.daemon import Daemon
from tests.support.lab import python
from tests.support.queueing import LEAST_SECONDS, spent

ROOT = Path(__file__).resolve().parents[2]
LINKD = [sys.executable, "-m", "linkd"]


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with Daemon("edge-1", "") as running:
        yield running


def environment(daemon: Daemon) -> dict[str, str]:
    return {**os.environ, "LINKD_SOCKET": str(daemon.socket), "PYTHONPATH": str(ROOT)}


def linkd(daemon: Daemon, *words: str, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*LINKD, *words], input=given, env=environment(daemon), capture_output=True, text=True,
        timeout=30, check=False,
    )  # fmt: skip


def started(daemon: Daemon, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*LINKD, *words], env=environment(daemon), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def line(process: subprocess.Popen[str], within: float = 10.0) -> str:
    got: list[str] = []

    def read() -> None:
        assert process.stdout is not None
        got.append(process.stdout.readline())

    reading = threading.Thread(target=read, daemon=True)
    reading.start()
    reading.join(within)
    assert got, "nothing came"
    assert got[0], f"it ended with {process.wait(5)}"
    return got[0].rstrip("\n")


def ended(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.kill()
    process.communicate()


def test_lines_before_one_that_is_too_long_are_stored_and_counted_exactly(daemon: Daemon) -> None:
    numbers = "".join(f"{number}\n" for number in range(50_000))
    given = f"{numbers}{'x' * 2_000_000}\n{numbers}"
    done = linkd(daemon, "publish", "long", "--lines", given=given)
    assert done.returncode == 4
    assert done.stderr.startswith("linkd: 50,000 messages stored, then: expected lines of at most")
    assert done.stderr.count("\n") == 1
    done = linkd(daemon, "subscribe", "long", "--from", "earliest", "--count", "50000", "--json")
    assert [json.loads(each)["text"] for each in done.stdout.splitlines()] == numbers.split()


def test_json_is_published_as_json(daemon: Daemon) -> None:
    """So that every client reads it as the value that it is."""
    given = {'{"id": 7}': "application/json", "[1]": "application/json", "{no": "", "7": ""}
    for body in given:
        assert linkd(daemon, "publish", "values", body).returncode == 0
    linkd(daemon, "publish", "values", "--lines", given="\n".join(given))
    linkd(daemon, "publish", "values", "[2]", "--content-type", "text/plain")

    async def read() -> list[tuple[object, str]]:
        async with linkd_client.connect(daemon.socket) as node:
            records = node.subscribe("values", start="earliest")
            got = [await anext(records) for _ in range(9)]
            return [(record.data, record.content_type) for record in got]

    values = [{"id": 7}, [1], b"{no", b"7"]
    types = [*given.values()]
    expected = [*zip(values, types, strict=True)] * 2
    assert asyncio.run(read()) == [*expected, ("[2]", "text/plain")]


def test_lines_go_through_a_pipe(daemon: Daemon) -> None:
    given = "".join(f"line {index}\n" for index in range(20_000)) + "no end"
    done = linkd(daemon, "publish", "lines", "--lines", "--json", given=given)
    assert done.returncode == 0, done.stderr
    stored = json.loads(done.stdout)
    assert stored["count"] == 20_001
    done = linkd(daemon, "subscribe", "lines", "--from", "earliest", "--count", "20001", "--json")
    assert [json.loads(each)["text"] for each in done.stdout.splitlines()] == given.splitlines()


def test_what_trickles_in_goes_out_at_once(daemon: Daemon) -> None:
    reader = started(daemon, "subscribe", "trickle", "--json", "--from", "earliest")
    writer = started(daemon, "publish", "trickle", "--lines")
    try:
        assert writer.stdin is not None
        for index in range(3):
            writer.stdin.write(f"{index}\n")
            writer.stdin.flush()
            assert json.loads(line(reader))["text"] == f"{index}"
    finally:
        ended(writer)
        ended(reader)


def test_subscribe_survives_kill_9_of_the_daemon(daemon: Daemon) -> None:
    reader = started(daemon, "subscribe", "survive", "--json", "--from", "earliest")
    try:
        for index in range(3):
            assert linkd(daemon, "publish", "survive", f"{index}").returncode == 0
            assert json.loads(line(reader))["text"] == f"{index}"
            daemon.kill()
            daemon.start()
    finally:
        ended(reader)


def test_consumers_go_on_where_they_stood(daemon: Daemon) -> None:
    linkd(daemon, "publish", "shop", "--lines", given="a\nb\nc\nd\n")
    words = [
        "subscribe",
        "shop",
        "--consumer",
        "billing",
        "--from",
        "earliest",
        "--json",
        "--count",
    ]
    for count, expected in (("1", "a"), ("2", "bc"), ("1", "d")):
        done = linkd(daemon, *words, count)
        got = [json.loads(each)["text"] for each in done.stdout.splitlines()]
        assert "".join(got) == expected, done.stderr
    assert "billing" in linkd(daemon, "consumers").stdout
    assert linkd(daemon, "consumers", "--delete", "billing").returncode == 0
    assert linkd(daemon, "consumers", "--delete", "billing").returncode == 4


def test_a_closed_pipe_ends_quietly(daemon: Daemon) -> None:
    linkd(daemon, "publish", "pipe", "--lines", given="x\n" * 50_000)
    reader = started(daemon, "subscribe", "pipe", "--from", "earliest")
    try:
        line(reader)
        assert reader.stdout is not None
        reader.stdout.close()
        assert reader.wait(10) == 0
        assert reader.stderr is not None
        assert reader.stderr.read() == ""
    finally:
        if reader.poll() is None:
            reader.kill()
        reader.wait()


@pytest.mark.parametrize(
    "words",
    [("subscribe", "one", "--from", "earliest"), ("events", "--follow"), ("subscribe", "none")],
)
def test_a_reader_that_goes_ends_it_though_nothing_is_written_any_more(
    daemon: Daemon, words: tuple[str, ...]
) -> None:
    linkd(daemon, "publish", "one", "x")
    process = started(daemon, *words)
    try:
        if words[1] == "one":
            line(process)
        else:
            time.sleep(0.6)
            assert process.poll() is None
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(5) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def test_beyond_the_end_it_says_so_and_waits(daemon: Daemon) -> None:
    reader = started(daemon, "subscribe", "later", "--from", "999999999", "--json")
    try:
        assert reader.stderr is not None
        assert "waiting for what comes" in reader.stderr.readline()
        time.sleep(0.6)
        assert linkd(daemon, "publish", "later", "x").returncode == 0
        assert json.loads(line(reader))["text"] == "x"
    finally:
        ended(reader)


def test_an_empty_message_arrives(daemon: Daemon) -> None:
    assert "(an empty message)" in linkd(daemon, "publish", "empty", "").stdout
    got = linkd(daemon, "subscribe", "empty", "--from", "earliest", "--count", "1")
    assert got.stdout.endswith(" empty (empty)\n")


def await_connected(process: subprocess.Popen[str]) -> None:
    """Wait until a command has a socket open: it is past its imports."""
    end = time.monotonic() + 20.0
    while time.monotonic() < end:
        for entry in Path(f"/proc/{process.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if str(entry.readlink()).startswith("socket:"):
                    return
        time.sleep(0.005)
    raise AssertionError("it has not connected within 20 s")


@pytest.mark.parametrize(
    "words", [("subscribe", "quiet"), ("publish", "quiet", "--lines"), ("status", "--watch")]
)
def test_interrupted_is_130(daemon: Daemon, words: tuple[str, ...]) -> None:
    process = started(daemon, *words)
    try:
        if words[0] == "status":
            line(process, 20.0)  # its socket is open for a few milliseconds in each second
        else:
            await_connected(process)
            time.sleep(0.5)  # an event loop has sockets of its own before it is connected
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert process.stderr is not None
        stored = "linkd: 0 messages stored, then: interrupted\n" if words[0] == "publish" else ""
        assert process.stderr.read() == stored
    finally:
        ended(process)


def test_an_interrupt_tells_what_is_stored_and_of_what_it_is_not_known(daemon: Daemon) -> None:
    reader = started(daemon, "subscribe", "cut", "--from", "earliest")
    writer = started(daemon, "publish", "cut", "--lines")
    try:
        assert writer.stdin is not None
        writer.stdin.write("1\n2\n3\n")
        writer.stdin.flush()
        for _ in range(3):
            line(reader)
        daemon.kill()
        writer.stdin.write("4\n5\n")
        writer.stdin.flush()
        time.sleep(0.3)
        writer.send_signal(signal.SIGINT)
        assert writer.wait(10) == 130
        assert writer.stderr is not None
        told = writer.stderr.read().splitlines()[-1]
        assert told == "linkd: 3 messages stored, of 2 more it is not known, then: interrupted"
    finally:
        ended(writer)
        ended(reader)
        daemon.start()


@pytest.mark.parametrize("more", [(), ("--lines",)])
def test_a_closed_input_is_no_message(daemon: Daemon, more: tuple[str, ...]) -> None:
    command = shlex.join([*LINKD, "publish", "closed", *more]) + " <&-"
    done = subprocess.run(
        command, shell=True, env=environment(daemon), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "linkd: expected a message on standard input, which is closed\n"


def test_lines_that_would_wait_for_nobody_are_refused_before_they_are_stored(
    daemon: Daemon,
) -> None:
    for peer, code in (("nobody", 4), ("no\nbody", 2)):
        done = linkd(daemon, "publish", "waits", "--lines", "--wait", peer, given="1\n2\n")
        assert done.returncode == code
        assert done.stderr.startswith("linkd: 0 messages stored, then: ")
        assert len(done.stderr.splitlines()) == 1


def test_refusals(daemon: Daemon) -> None:
    assert linkd(daemon, "publish", "no channel", "x").returncode == 4
    assert linkd(daemon, "publish", "a", "x", "--wait", "nobody").returncode == 4
    assert linkd(daemon, "publish", "no channel", "--lines", given="x\n").returncode == 4
    assert linkd(daemon, "subscribe", "no channel").returncode == 4
    assert linkd(daemon, "kick", "nobody").returncode == 4
    assert linkd(daemon, "resync", "nobody").returncode == 4


def test_looking_at_the_log(daemon: Daemon) -> None:
    linkd(daemon, "publish", "stat", "x")
    assert "offset" in linkd(daemon, "log", "stat").stdout
    directory = str(daemon.directory / "state" / "log")
    assert json.loads(linkd(daemon, "log", "stat", "--json", "--dir", directory).stdout)["records"]
    assert json.loads(linkd(daemon, "log", "verify", "--json", "--dir", directory).stdout)["sound"]
    done = linkd(daemon, "log", "trim", "--before", "2")
    assert (done.returncode, "nothing was changed" in done.stdout) == (1, True)


def test_everything_else_answers(daemon: Daemon) -> None:
    for words in (["status"], ["status", "--check"], ["events"], ["outages"], ["token"]):
        done = linkd(daemon, *words)
        assert (done.returncode, done.stderr) == (0, ""), words
        assert done.stdout


@pytest.mark.timing
def test_it_starts_fast(daemon: Daemon) -> None:
    """The best of a few whole processes takes at most 150 ms, less what it waits for a processor.

    What the machine is busy with is no fault of the command's: where it, the daemon that it asks or
    this test was ready to run and others had the processors, that time is the machine's.
    """
    for words in (["status"], ["publish", "fast", "x"]):
        best, queued = min(_seconds(daemon, words) for _ in range(5))
        print(f"linkd {words[0]}: {best * 1000:.0f} ms, and {queued * 1000:.0f} ms in the queue")
        assert best <= 0.15
    loaded = "import sys; from linkd.cli import main; main(['status']); print(*sys.modules)"
    done = subprocess.run(
        python("-c", loaded), env=environment(daemon), capture_output=True, text=True, check=True
    )
    assert not {"twisted", "autobahn", "asyncio", "websockets"} & set(done.stdout.split())


def _seconds(daemon: Daemon, words: list[str]) -> tuple[float, float]:
    """Return how long a command took, and for how long it waited for a processor besides."""
    others = (daemon.pid, os.getpid())
    before, began = spent(*others)[1], time.monotonic()
    with subprocess.Popen(
        [*LINKD, *words], env=environment(daemon), stdout=subprocess.DEVNULL
    ) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        took = time.monotonic() - began
        ran, queued = spent(process.pid)
        queued += spent(*others)[1] - before
    assert process.returncode == 0
    queued = min(queued, took - ran) if queued >= LEAST_SECONDS else 0.0
    return took - queued, queued


def test_events_are_followed_over_a_restart() -> None:
    config = """
[[peer]]
name = "hub"
dial = ["ws://127.0.0.1:1/link"]
secret_file = "{secret}"
"""
    with Daemon("edge-1", config) as daemon:
        follower = started(daemon, "events", "--follow", "--json")
        try:
            first = json.loads(line(follower))
            assert (first["peer"], first["old"]) == ("hub", "stopped")
            time.sleep(1.5)  # what came is on disk soon
            daemon.kill()
            daemon.start()
            before, last = time.monotonic(), first["number"]
            while True:
                event = json.loads(line(follower))
                assert event["number"] > last, "numbers go on over the restart"
                last = event["number"]
                if event["old"] == "stopped":
                    break
                assert time.monotonic() - before < 20
        finally:
            ended(follower)
        assert "hub" in linkd(daemon, "status").stdout
        assert linkd(daemon, "status", "--check").returncode == 1
        assert linkd(daemon, "kick", "hub").returncode == 0
