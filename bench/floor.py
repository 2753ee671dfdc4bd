"""What the machine itself takes: the least that any durable system could need here."""

from __future__ import annotations

import os
import socket
import statistics
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from linkd.config import LogSettings
from linkd.log.disk_log import DiskLog
from linkd.protocol.records import EncodedRecord, NewRecords, encode_records


class Bench:
    """A log of its own on the disk, driven from this thread."""

    def __init__(self, folder: Path) -> None:
        self._turns: SimpleQueue[Any] = SimpleQueue()
        self.log = DiskLog(folder, "bench", LogSettings(), self._turns.put)

    def turn(self) -> None:
        """Wait for the next call from the writer, and make it."""
        self._turns.get(timeout=30)()

    def append(self, drafts: list[NewRecords]) -> None:
        """Append drafts, and return once all are on disk."""
        done: list[object] = []
        for draft in drafts:
            self.log.append(draft, done.append)
        while len(done) < len(drafts):
            self.turn()

    def close(self) -> None:
        """Close it."""
        done: list[bool] = []
        self.log.close(lambda: done.append(True))
        while not done:
            self.turn()


def folder() -> tempfile.TemporaryDirectory[str]:
    """Return a directory on the disk that the daemons' logs use too."""
    return tempfile.TemporaryDirectory(prefix="linkd-bench-")


def commit_seconds(times: int = 300) -> float:
    """Return the median time of a commit of one record of 100 bytes in linkd's log."""
    records = encode_records([EncodedRecord(b"x" * 100)])
    taken: list[float] = []
    with folder() as path:
        bench = Bench(Path(path))
        for _ in range(times):
            began = time.perf_counter()
            bench.append([NewRecords("bench", 1, records, 0.0)])
            taken.append(time.perf_counter() - began)
            time.sleep(0.001)
        bench.close()
    return statistics.median(taken)


def round_trip_seconds(times: int = 300) -> float:
    """Return the median time of 100 bytes there and back over loopback between two threads."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    for one in (near, far):
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def echo() -> None:
        while got := far.recv(4096):
            far.sendall(got)

    thread = threading.Thread(target=echo)
    thread.start()
    taken: list[float] = []
    for _ in range(times):
        began = time.perf_counter()
        near.sendall(b"x" * 100)
        near.recv(4096)
        taken.append(time.perf_counter() - began)
        time.sleep(0.001)
    near.close()
    thread.join()
    far.close()
    return statistics.median(taken)


def disk_bytes_per_second(piece: int, seconds: float, writers: int) -> float:
    """Return what the disk takes of each of so many writers at once.

    Each appends pieces to a file of its own, with fdatasync after each.
    """
    buffer = os.urandom(piece)

    def write(path: Path) -> float:
        fd = os.open(path, os.O_CREAT | os.O_WRONLY)
        written, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            written += os.write(fd, buffer)
            os.fdatasync(fd)
        took = time.perf_counter() - began
        os.close(fd)
        return written / took

    with folder() as path, ThreadPoolExecutor(writers) as pool:
        rates = list(pool.map(write, [Path(path) / str(number) for number in range(writers)]))
    return statistics.fmean(rates)
