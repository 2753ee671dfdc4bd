"""Power loss and damage.

The files as a crash or a bad disk may leave them, and what the log makes of them.
"""

from __future__ import annotations

import shutil
import tempfile
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from linkd.log.interface import Appended
from tests.conftest import CAMPAIGN
from tests.support.disk import RecordingFiles, rebuild
from tests.support.logs import SegmentBench, append, bodies, draft, everything, numbered, received


def _scratch() -> Path:
    """Return a directory that lasts for one example."""
    return Path(tempfile.mkdtemp(prefix="linkd-power-"))


def _write_some(bench: SegmentBench, rng: Random, begin: int = 0) -> list[tuple[int, bytes, int]]:
    """Append and store a few.

    Return (offset, first body, steps of the disk before it was settled).
    """
    settled: list[tuple[int, bytes, int]] = []
    cursor = bench.log.cursor("hub")
    position = 1 if cursor is None else cursor.next
    for number in range(begin, begin + rng.randrange(4, 12)):
        body = b"%04d" % number + rng.randbytes(rng.choice([0, 30, 3000, 70_000, 400_000]))
        done: list[Any] = []
        if rng.random() < 0.3:
            bench.log.store(received(position, 2 * number + 3, body), done.append)
            position = 2 * number + 3
        elif rng.random() < 0.3:
            bench.log.append(draft(body, producer=numbered("p", number + 1)), done.append)
        else:
            bench.log.append(draft(body), done.append)
        bench.until(partial(len, done))
        (outcome,) = done
        assert isinstance(outcome, Appended)
        assert outcome.count == 1
        settled.append((outcome.offset, body, len(bench.files.steps)))
    return settled


_HEALED = ("log.repaired", "log.unclean-shutdown")


@settings(max_examples=10_000 if CAMPAIGN else 60, deadline=None)
@given(seed=st.integers(0, 2**32), where=st.floats(0, 1))
def test_what_was_settled_survives_power_loss(seed: int, where: float) -> None:
    rng, root = Random(seed), _scratch()
    try:
        bench = SegmentBench.__new__(SegmentBench)
        files = RecordingFiles()
        _open(bench, root / "log", files)
        settled = _write_some(bench, rng)
        bench.close()
        steps = list(files.steps)
        cut = int(where * (len(steps) - 3)) + 3
        (root / "found").mkdir()
        rebuild(root / "found", root / "log", steps, cut, rng)
        _open(bench, root / "found", RecordingFiles())
        found = {
            offset: body
            for batch in everything(bench)
            for offset, body in enumerate(bodies([batch]), batch.offset)
        }
        for offset, body, after in settled:
            if after <= cut:
                assert found.get(offset) == body
        assert [told for told in bench.log.notices if told.event not in _HEALED] == []
        (outcome,) = append(bench, draft(b"on it goes"))
        assert isinstance(outcome, Appended)
        bench.close()
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _open(bench: SegmentBench, path: Path, files: Any) -> None:
    """Open a log there on these files."""
    SegmentBench.__init__(bench, path, files=files)


@settings(max_examples=10_000 if CAMPAIGN else 60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_a_flipped_byte_anywhere_is_stated_or_harmless(seed: int) -> None:
    rng, root = Random(seed), _scratch()
    try:
        bench = SegmentBench(root / "log")
        bench.files = RecordingFiles()
        settled = _write_some(bench, rng) if bench.restart() else []
        was, epoch = bench.log.id, bench.log.epoch
        bench.close()
        victim = rng.choice(sorted(p for p in (root / "log").iterdir() if p.stat().st_size))
        content = bytearray(victim.read_bytes())
        at = rng.randrange(len(content))
        content[at] ^= 1 << rng.randrange(8)
        victim.write_bytes(bytes(content))
        bench.open()
        assert bench.log.id == was
        found = {
            offset: body
            for batch in everything(bench)
            for offset, body in enumerate(bodies([batch]), batch.offset)
        }
        missing = [offset for offset, body, _ in settled if found.get(offset) != body]
        assert all(found.get(offset) in (None, body) for offset, body, _ in settled)
        if missing:
            assert bench.log.notices
            assert len(missing) <= 1 or victim.suffix != ".log"
            assert bench.log.epoch != epoch
        (outcome,) = append(bench, draft(b"on it goes"))
        assert isinstance(outcome, Appended)
        assert outcome.offset > max(offset for offset, _, _ in settled) or missing
        bench.close()
    finally:
        shutil.rmtree(root, ignore_errors=True)


@settings(max_examples=10_000 if CAMPAIGN else 40, deadline=None)
@given(seed=st.integers(0, 2**32), what=st.sampled_from(["truncated", "deleted", "renamed"]))
def test_a_lost_file_is_stated(seed: int, what: str) -> None:
    rng, root = Random(seed), _scratch()
    try:
        bench = SegmentBench(root / "log")
        bench.files = RecordingFiles()
        bench.restart()
        settled = _write_some(bench, rng)
        settled += _write_some(bench, rng, 20)
        was = bench.log.id
        bench.close()
        victim = rng.choice(sorted((root / "log").glob("*.log")))
        last = victim == max((root / "log").glob("*.log"))
        size = victim.stat().st_size
        if what == "truncated":
            with victim.open("r+b") as file:
                file.truncate(rng.randrange(size))
        elif what == "deleted":
            victim.unlink()
        else:
            victim.rename(victim.with_name("lost+found"))
        bench.open()
        assert bench.log.id == was
        found = {
            offset: body
            for batch in everything(bench)
            for offset, body in enumerate(bodies([batch]), batch.offset)
        }
        missing = [offset for offset, body, _ in settled if found.get(offset) != body]
        assert not (missing and what == "renamed")
        assert bench.log.notices or not missing
        (outcome,) = append(bench, draft(b"on it goes"))
        assert isinstance(outcome, Appended)
        if what == "deleted" or not last:
            assert outcome.offset > max(offset for offset, _, _ in settled)
        bench.close()
        again = bench.open().notices
        assert [told for told in again if told.event in _HEALED] == []
        bench.close()
    finally:
        shutil.rmtree(root, ignore_errors=True)
