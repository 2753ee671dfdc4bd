"""The thread that writes: behind a failure nothing of the same era is written."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

from linkd.log.commit import CommitGroup
from linkd.log.frame import HEAD
from linkd.log.writer import WriteFailed, WriteJob, Writer, Written
from tests.support.disk import RecordingFiles
from tests.support.turns import Turns


def job(folder: Path, era: int, number: int, at: int = 0) -> WriteJob:
    """Return a job of one frame; at the beginning of a file it creates it."""
    creates = None if at else folder / f"{number:012d}.log"
    return WriteJob(
        era, CommitGroup((), 1.0, 1), [(HEAD, 0, b"head", bytes(100))], 1.0, at, creates
    )


def test_behind_a_failure_nothing_of_its_era_is_written(tmp_path: Path) -> None:
    files, turns, reports = RecordingFiles(), Turns(), []
    writer = Writer(files, tmp_path, 7, turns.post, reports.append)
    files.refuse = errno.EIO
    for one in (job(tmp_path, 0, 1), job(tmp_path, 0, 2), job(tmp_path, 0, 2, 144)):
        writer.queue.put(one)
    writer.start(None, 0)
    turns.until(lambda: reports)
    writer.queue.put(job(tmp_path, 0, 3))
    ended: list[bool] = []
    writer.stop(lambda: ended.append(True))
    turns.until(lambda: ended)
    said: list[Any] = [one for one in reports if one is not None]
    assert [type(one) for one in said] == [WriteFailed]
    assert (said[0].error.errno, said[0].usable) == (errno.EIO, False)
    assert list(tmp_path.iterdir()) == []


def test_a_new_era_is_written_behind_a_failure(tmp_path: Path) -> None:
    files, turns, reports = RecordingFiles(), Turns(), []
    writer = Writer(files, tmp_path, 7, turns.post, reports.append)
    files.refuse_sync = errno.EIO
    writer.queue.put(job(tmp_path, 0, 1))
    writer.start(None, 0)
    turns.until(lambda: any(isinstance(one, WriteFailed) for one in reports))
    files.refuse_sync = 0
    writer.queue.put(job(tmp_path, 1, 1))
    turns.until(lambda: any(isinstance(one, Written) for one in reports))
    ended: list[bool] = []
    writer.stop(lambda: ended.append(True))
    turns.until(lambda: ended)
    (path,) = tmp_path.iterdir()
    assert path.stat().st_size == 144
    synced = [step[0] for step in files.steps if step[0] in ("write", "sync", "sync_dir")]
    made_ready, finished = ["write", "sync"], ["sync"]
    assert synced[-6:] == ["write", "sync", "sync_dir", *made_ready, *finished]
