"""The journal's native protocol: fields, and a journal that is full, stopped or gone."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from linkd.events import EVENTS
from linkd.events import sink as sinks
from linkd.events.observers import LineForm
from linkd.events.sink import MESSAGE_IDS, RETRY_SECONDS, Journal, LineSink, entry, entry_fields

ROOT = Path(__file__).resolve().parents[3]

Entry = dict[str, str]


def decode(datagram: bytes) -> Entry:
    """Return the fields of a datagram, by the protocol's rules; a repeated one is an error."""
    found: Entry = {}
    while datagram:
        line, _, rest = datagram.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            size = int.from_bytes(rest[:8], "little")
            value, end, datagram = rest[8 : 8 + size], rest[8 + size : 9 + size], rest[9 + size :]
            assert end == b"\n"
        else:
            datagram = rest
        assert re.fullmatch(rb"[A-Z][A-Z0-9_]{0,63}", name), name
        assert name.decode() not in found
        found[name.decode()] = value.decode()
    return found


class FakeJournal:
    """A journal that reads only when the test does so, a sink that writes to it, and its clock."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "socket"
        self.seconds = 100.0
        self.listen()
        self.stderr, self._writer = os.pipe()
        os.set_blocking(self.stderr, False)
        self.sink = LineSink(
            self._writer,
            LineForm("text", True).dropped,
            Journal(str(self.path), lambda: self.seconds),
        )

    def listen(self) -> None:
        self.path.unlink(missing_ok=True)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(self.path))
        self.socket.settimeout(5.0)

    def read(self) -> Entry:
        """Return the next entry; wait for it."""
        return decode(self.socket.recv(262_144))

    def on_stderr(self) -> str:
        """Return what was written to standard error so far."""
        try:
            return os.read(self.stderr, 65_536).decode()
        except BlockingIOError:
            return ""

    def close(self) -> None:
        self.socket.close()
        self.path.unlink(missing_ok=True)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[FakeJournal]:
    made = FakeJournal(tmp_path)
    yield made
    made.close()
    os.close(made.stderr)


def test_an_entry_has_fields() -> None:
    fields = entry_fields(
        "link.up",
        {"peer": "hub", "outage_seconds": 3.4126, "relay": True, "x": None, "no name": 1, "_u": 1},
    )
    assert decode(entry(b"<4>link.up peer=hub\n", fields)) == {
        "MESSAGE": "link.up peer=hub",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "linkd",
        "LINKD_EVENT": "link.up",
        "LINKD_PEER": "hub",
        "LINKD_OUTAGE_SECONDS": "3.413",
        "LINKD_RELAY": "true",
        "MESSAGE_ID": MESSAGE_IDS["link.up"],
    }


def test_a_line_without_priority_is_an_info() -> None:
    assert decode(entry(b"linkd: hello\n", b""))["PRIORITY"] == "6"


def test_texts_of_several_lines_and_any_bytes_are_whole() -> None:
    fields = entry_fields("node.aborted", {"detail": "a\nb=c\n", "signal": "\ud800"})
    found = decode(entry("<3>one\n<3>größe\n".encode(), fields))
    assert found["MESSAGE"] == "one\ngröße"
    assert found["LINKD_DETAIL"] == "a\nb=c\n"
    assert found["LINKD_SIGNAL"] == "\\ud800"


def test_an_entry_is_bounded() -> None:
    line = b"<6>" + b"x" * 1_000_000 + b"\n"
    fields = entry_fields("link.up", {f"field{number}": "y" * 100_000 for number in range(30)})
    assert len(entry(line, fields)) < 180_000


def test_ten_events_have_an_id_that_the_table_knows() -> None:
    assert len(MESSAGE_IDS) == len(set(MESSAGE_IDS.values())) == 10
    assert set(MESSAGE_IDS) <= set(EVENTS)
    assert all(re.fullmatch(r"[0-9a-f]{32}", value) for value in MESSAGE_IDS.values())


def test_lines_go_to_the_journal_in_order_and_not_to_standard_error(journal: FakeJournal) -> None:
    for number in range(1000):
        journal.sink.put(f"<6>line {number}", fields=entry_fields("link.up", {"peer": number}))
    found = [journal.read() for _ in range(1000)]
    assert [one["MESSAGE"] for one in found] == [f"line {number}" for number in range(1000)]
    assert [one["LINKD_PEER"] for one in found] == [str(number) for number in range(1000)]
    assert journal.on_stderr() == ""


def test_what_is_printed_is_an_entry_too(journal: FakeJournal) -> None:
    print("one\n\ntwo", file=journal.sink)
    assert [journal.read()["MESSAGE"], journal.read()["MESSAGE"]] == ["one", "two"]


def test_nobody_waits_for_a_journal_that_has_stopped(journal: FakeJournal) -> None:
    """Lines beyond the queue are dropped and counted; the notice is an entry with its fields."""
    for number in range(2 * sinks.MAX_LINES):
        journal.sink.put(f"<6>line {number}")
    seen = []
    while (found := journal.read()).get("LINKD_EVENT") != "node.lines-dropped":
        seen.append(found["MESSAGE"])
    assert len(seen) + int(found["LINKD_LINES"]) == 2 * sinks.MAX_LINES
    assert len(seen) >= sinks.MAX_LINES * 7 // 8
    assert seen == [f"line {number}" for number in range(len(seen))]
    journal.sink.put("<6>after")
    assert journal.read()["MESSAGE"] == "after"
    assert journal.on_stderr() == ""


def test_without_a_journal_lines_go_to_standard_error_until_it_is_back(
    journal: FakeJournal,
) -> None:
    journal.sink.put("<6>one")
    assert journal.read()["MESSAGE"] == "one"
    journal.close()
    journal.sink.put("<4>two", fields=entry_fields("link.waiting", {}))
    assert journal.sink.drain(5.0)
    assert journal.on_stderr() == "<4>two\n"
    journal.listen()
    journal.seconds += RETRY_SECONDS - 0.1
    journal.sink.put("<6>three")
    assert journal.sink.drain(5.0)
    assert journal.on_stderr() == "<6>three\n"
    journal.seconds += 0.1
    journal.sink.put("<6>four")
    assert journal.read()["MESSAGE"] == "four"
    assert journal.on_stderr() == ""


def test_a_line_that_is_half_written_is_not_an_entry_as_well(journal: FakeJournal) -> None:
    journal.close()
    journal.sink.put("<6>" + "z" * 200_000)
    while journal.sink._written == 0:
        os.sched_yield()
    journal.listen()
    journal.seconds += RETRY_SECONDS
    nexts = [f"{number} " + "y" * 1000 for number in range(10)]
    for line in nexts:
        journal.sink.put(f"<6>{line}")
    written = ""
    while not written.endswith("\n"):
        written += journal.on_stderr()
    assert written == "<6>" + "z" * 200_000 + "\n"
    assert [journal.read()["MESSAGE"] for _ in nexts] == nexts


def test_an_entry_that_does_not_fit_goes_to_standard_error(
    journal: FakeJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sinks, "MAX_MESSAGE_BYTES", 10_000_000)
    journal.sink.put("<6>" + "z" * 500_000)
    written = ""
    while not written.endswith("\n"):
        written += journal.on_stderr()
    assert len(written) == 500_004


PROGRAM = """
import os, sys
from linkd.events import emit, install, observers
from linkd.events.sink import Journal
status = os.fstat(2)
os.environ["JOURNAL_STREAM"] = f"{status.st_dev}:{status.st_ino}"
observers.Journal = lambda: Journal(sys.argv[1])
install(sys.stderr)
for number in range(int(sys.argv[2])):
    emit("link.up", peer="p%d" % number)
raise ValueError("made by the test")
"""


def test_a_process_sends_all_before_its_end(journal: FakeJournal) -> None:
    command = [sys.executable, "-c", PROGRAM, str(journal.path), "300"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) as process:
        found = [journal.read() for _ in range(300)]
        while "made by the test" not in (last := journal.read())["MESSAGE"]:
            pass
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait(20) == 1
    assert [one["LINKD_PEER"] for one in found] == [f"p{number}" for number in range(300)]
    assert "LINKD_EVENT" not in last


def test_a_process_ends_though_the_journal_has_stopped(journal: FakeJournal) -> None:
    command = [sys.executable, "-c", PROGRAM, str(journal.path), "3000"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=20)
    assert done.returncode == 1
    assert done.stderr == b""
