"""`linkd log` in words: what was read, what is damaged, and where no log lies."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from linkd.cli import main
from tests.support.logs import SegmentBench, append, draft


@pytest.fixture
def log(tmp_path: Path) -> Path:
    bench = SegmentBench(tmp_path / "log")
    append(bench, draft(b"one", b"two"), draft(b"three", channel="notes"))
    bench.close()
    return bench.path


def test_a_whole_log_says_what_was_read(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["log", "verify", "--dir", str(log)]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("no damage found; read and checked: 1 segment, 3 records, ")
    assert line.endswith(f" B in {log}")
    assert main(["log", "stat", "--dir", str(log)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(": 3 offsets, 1 to 3")
    assert lines[1].startswith("3 records in 1 segment, ")
    assert lines[2:] == ["  orders: 2 records", "  notes: 1 record"]


def test_a_damaged_log_says_where_and_what_is_left(
    log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    segment = next(log.glob("*.log"))
    held = bytearray(segment.read_bytes())
    at = held.index(b"one")
    held[at] ^= 1
    segment.write_bytes(held)
    assert main(["log", "verify", "--dir", str(log)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("DAMAGED, see below; what is readable: 1 segment, 0 records, ")
    assert lines[1].startswith(f"  {segment}: damaged at byte ")
    assert main(["log", "verify", "--dir", str(log), "--json"]) == 1
    assert msgspec.json.decode(capsys.readouterr().out)["sound"] is False


def test_one_segment_alone_is_read(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`scripts/install` looks for these words in the answer of whatever release it finds."""
    segment = next(log.glob("*.log"))
    assert main(["log", "verify", "--segment", str(segment)]) == 0
    assert "1 segment, 3 records, " in capsys.readouterr().out
    assert main(["log", "verify", "--segment", str(segment), "--json"]) == 0
    assert '"records":3,' in capsys.readouterr().out


def test_an_empty_log_is_called_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    SegmentBench(tmp_path / "log").close()
    assert main(["log", "stat", "--dir", str(tmp_path / "log")]) == 0
    assert ": empty, the next offset is 1" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["stat", "verify"])
@pytest.mark.parametrize("folder", ["", "nowhere"])
def test_where_no_log_lies_is_said(
    verb: str, folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["log", verb, "--dir", str(tmp_path / folder)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"linkd: {tmp_path / folder}: ")
    assert "--dir" in said.err
