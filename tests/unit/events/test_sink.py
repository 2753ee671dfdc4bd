"""Lines that wait for a reader: bounds, what is dropped and reported, and the end of a process."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from linkd.events import sink as sinks
from linkd.events.sink import Dropped, LineSink

ROOT = Path(__file__).resolve().parents[3]
PIPE_BYTES = 4096


class Pipe:
    """A pipe of 4 KiB that is read only when the test does so, and a sink that writes to it."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self.dropped: list[Dropped] = []
        self.sink = LineSink(self.writer, self.notice)
        self.left = b""

    def notice(self, dropped: Dropped) -> tuple[str, bytes]:
        self.dropped.append(dropped)
        return f"dropped {dropped.lines}", b""

    def fill(self) -> None:
        """Leave no room in the pipe."""
        self.sink.put("x" * (PIPE_BYTES - 1))
        assert self.sink.drain(5.0)

    def line(self) -> str:
        """Read the next line; wait for it."""
        while b"\n" not in self.left:
            piece = os.read(self.reader, 65_536)
            assert piece, "the pipe has ended"
            self.left += piece
        line, _, self.left = self.left.partition(b"\n")
        return line.decode()

    def lines_until(self, last: str) -> list[str]:
        lines = [self.line()]
        while lines[-1] != last:
            lines.append(self.line())
        return lines


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    os.close(made.reader)
    os.close(made.writer)


def test_lines_go_in_order(pipe: Pipe) -> None:
    for number in range(3000):
        pipe.sink.put(f"line {number}")
    assert pipe.lines_until("line 2999") == [f"line {number}" for number in range(3000)]
    assert pipe.dropped == []


def test_nobody_waits_for_a_reader_that_has_stopped(pipe: Pipe) -> None:
    pipe.fill()
    for number in range(2 * sinks.MAX_LINES):
        pipe.sink.put(f"line {number}")
    most = sinks.MAX_LINES * 7 // 8
    pipe.line()
    lines = pipe.lines_until(f"dropped {2 * sinks.MAX_LINES - most}")
    assert lines[:-1] == [f"line {number}" for number in range(most)]
    (dropped,) = pipe.dropped
    assert 0 < dropped.first <= dropped.last
    pipe.sink.put("after")
    assert pipe.line() == "after"


def test_bytes_are_bounded_too(pipe: Pipe) -> None:
    pipe.fill()
    line = "y" * 65_535
    for _ in range(40):
        pipe.sink.put(line)
    pipe.line()
    assert pipe.lines_until("dropped 26") == [line] * 14 + ["dropped 26"]


def test_urgent_lines_have_room_of_their_own(pipe: Pipe) -> None:
    pipe.fill()
    for number in range(sinks.MAX_LINES):
        pipe.sink.put(f"line {number}")
    for number in range(sinks.MAX_LINES):
        pipe.sink.put(f"error {number}", urgent=True)
    pipe.line()
    lines = pipe.lines_until("dropped 10000")
    assert [line for line in lines if line.startswith("error")] == [
        f"error {number}" for number in range(sinks.MAX_LINES // 8)
    ]


def test_the_descriptor_keeps_its_flags(pipe: Pipe) -> None:
    assert os.get_blocking(pipe.writer)


def test_a_line_of_any_text_is_written(pipe: Pipe) -> None:
    pipe.sink.put("größe \ud800")
    assert pipe.line() == "größe \\ud800"


def test_it_is_a_text_stream(pipe: Pipe) -> None:
    print("one\ntw", file=pipe.sink, end="")
    print("o", file=pipe.sink)
    assert [pipe.line(), pipe.line()] == ["one", "two"]
    pipe.sink.write("no end")
    pipe.sink.finish()
    assert pipe.line() == "no end"
    assert pipe.sink.fileno() == pipe.writer


def test_a_reader_that_is_gone_costs_nothing() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    sink = LineSink(writer, lambda dropped: (str(dropped), b""))
    sink.put("nobody reads this")
    assert sink.drain(5.0)
    os.close(writer)


def test_the_end_waits_a_bounded_time_and_keeps_what_is_urgent(pipe: Pipe) -> None:
    pipe.fill()
    pipe.sink.put("z" * 10_000)
    pipe.sink.put("not urgent")
    pipe.sink.put("an error", urgent=True)
    pipe.sink.put("not urgent either")
    pipe.sink.put("the last line")
    pipe.sink.finish(0.02)
    pipe.line()
    assert pipe.lines_until("dropped 3") == ["an error", "the last line", "dropped 3"]


def test_a_line_that_is_half_written_keeps_its_rest(pipe: Pipe) -> None:
    pipe.sink.put("z" * 10_000)
    while pipe.sink._written == 0:
        os.sched_yield()
    pipe.sink.put("not urgent")
    pipe.sink.put("the last line")
    pipe.sink.finish(0.02)
    assert pipe.lines_until("dropped 1") == ["z" * 10_000, "the last line", "dropped 1"]


def test_a_flush_waits_for_no_thread_that_is_blocked(pipe: Pipe) -> None:
    with pipe.sink._writing:
        pipe.sink.put("one")
        assert not pipe.sink.drain(0.01)
    assert pipe.line() == "one"


def test_a_descriptor_that_others_have_set_to_not_block_loses_nothing() -> None:
    made = Pipe()
    os.set_blocking(made.writer, False)
    for number in range(1000):
        made.sink.put(f"line {number}")
    assert made.lines_until("line 999") == [f"line {number}" for number in range(1000)]


def test_no_signal_is_for_the_thread(pipe: Pipe) -> None:
    (thread,) = [each for each in threading.enumerate() if each.name == "linkd-log-lines"][-1:]
    status = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
    (blocked,) = [line for line in status.splitlines() if line.startswith("SigBlk")]
    assert int(blocked.split()[1], 16) & 1 << signal.SIGTERM - 1
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


PROGRAM = """
import os, sys, warnings
from linkd.events import emit, install
installed = install(sys.stderr)
for number in range(3000):
    emit("link.up", peer="p%d" % number)
"""


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("", 0),
        ("installed.finish(); os._exit(3)", 3),
        ("raise SystemExit(2)", 2),
        ("raise ValueError('made by the test')", 1),
        ("warnings.warn('made by the test')", 0),
        ("sys.stderr.write('the last words\\n'); sys.exit(4)", 4),
    ],
)
def test_each_line_is_written_before_the_end(end: str, code: int) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM + end], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert ended.returncode == code
    lines = ended.stderr.splitlines()
    assert [line for line in lines if "link.up" in line] == lines[:3000]
    assert len(lines) >= 3000
    if "made by the test" in end:
        assert "made by the test" in ended.stderr
    if "last words" in end:
        assert lines[-1] == "the last words"


def test_a_process_ends_though_nobody_reads() -> None:
    reader, writer = os.pipe()
    program = PROGRAM + "raise ValueError"
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stderr=writer) as process:
        assert process.wait(20) == 1
    os.close(reader)
    os.close(writer)
