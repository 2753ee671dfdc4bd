"""What the state directory takes with many channels, consumers and producers, over restarts.

python -m bench.state_dir [--records 1000000]

300,000 channels in turn, 10,000 consumers with the most patterns that the bounds allow, 10,000
named producers. The daemon is stopped and killed in between; at last the log runs over its bound.
Writes docs/measurements/state_dir.md, and exits with 1 where a bound does not hold.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from websockets.sync.client import unix_connect

from bench.figures import FOLDER, machine, table
from linkd.log.segment import load_index, numbers, read_head, scan_to, segment_path
from linkd.protocol import client
from linkd.protocol.records import EncodedRecord, encode_records
from tests.support.daemon import Daemon
from tests.support.queueing import spent

MIB = 1 << 20
CHANNELS = 300_000
CONSUMERS = 10_000
PRODUCERS = 10_000
RECORD_BYTES = 50
EACH = 2
"""Records of a publish: the fewer and the smaller, the larger is the state beside them."""

PARTS = 5
"""The daemon is stopped or killed behind each part of the records."""

MAX_BYTES = 256 * MIB
CONFIG = f"[log]\nmax_bytes = {MAX_BYTES}\n[limits]\nconsumers = {CONSUMERS * 9 // 8}\n"
"""One caller may have nine tenths of all consumers."""

MOST_BESIDE = 64 * MIB
MOST_PART = 2.0
MOST_START_SECONDS = 5.0

PATTERNS = 38
"""Of 39 bytes each, with as many `*` as one may have: all consumers of a caller have 15.1 MB."""

LARGE = EncodedRecord(b"x" * 900_000)
FREED_SECONDS = 3.0
"""A full log looks for room once a second."""

MESSAGE_FRAMES = 500
WINDOW = 20
"""Messages that wait for their answers."""

_REFUSALS = client.PublishFailed | client.Failed | client.AckFailed
_ANSWERS = client.Published | client.ConsumerAcked | client.Opened


class Stream:
    """A connection to `/v1/stream` that follows which frames have been answered."""

    def __init__(self, daemon: Daemon) -> None:
        self._stack = ExitStack()
        self._socket = self._stack.enter_context(
            unix_connect(
                str(daemon.socket),
                "ws://localhost/v1/stream",
                subprotocols=[client.SUBPROTOCOL],
                compression=None,
                ping_interval=None,
                max_size=1 << 26,
            )
        )
        self._frames: list[client.FromClient] = []
        self._unanswered = 0
        self.add(client.Open(client.VERSION, "", "bench"))

    def add(self, frame: client.FromClient) -> None:
        """Send a frame, together with others."""
        self._frames.append(frame)
        if not isinstance(frame, client.Subscribe | client.Unsubscribe):
            self._unanswered += 1
        if len(self._frames) >= MESSAGE_FRAMES:
            self.flush(WINDOW * MESSAGE_FRAMES)

    def flush(self, most: int = 0) -> None:
        """Send all; wait until at most so many answers are missing."""
        if self._frames:
            self._socket.send(client.encode(self._frames))
            self._frames = []
        while self._unanswered > most:
            message = self._socket.recv(timeout=120)
            assert isinstance(message, bytes)
            for frame in client.decode_from_daemon(message):
                if isinstance(frame, _REFUSALS):
                    raise RuntimeError(f"the daemon refused: {frame}")
                if isinstance(frame, client.PublishedRun):
                    self._unanswered -= frame.count
                elif isinstance(frame, _ANSWERS):
                    self._unanswered -= 1

    def close(self) -> None:
        """Wait for all answers, and end."""
        self.flush()
        self.leave()

    def leave(self) -> None:
        """End."""
        self._stack.close()


def subscribe(daemon: Daemon, consumers: range) -> None:
    """Give consumers their patterns, and a cursor that is on disk."""
    stream = Stream(daemon)
    at = daemon.status()["log"]["next"]
    for number in consumers:
        patterns = tuple(f"a.{number:05}-{each:03}{'.*' * 14}" for each in range(PATTERNS))
        stream.add(client.Subscribe(number, patterns, "latest", f"consumer-{number}", 1))
        stream.add(client.ConsumerAck(number, at))
        stream.add(client.Unsubscribe(number))
    stream.close()


def publish(daemon: Daemon, publishes: range, each_producer: int) -> None:
    """Publish on all channels in turn; each producer has so many publishes in a row."""
    stream = Stream(daemon)
    records = encode_records([EncodedRecord(b"x" * RECORD_BYTES)] * EACH)
    for number in publishes:
        producer, place = divmod(number, each_producer)
        if place == 0 or number == publishes.start:
            stream.add(client.Open(client.VERSION, f"producer-{producer}", "bench"))
        stream.add(client.Publish(place + 1, f"c.{number % CHANNELS}", EACH, records))
    stream.close()


def overflow(daemon: Daemon) -> int:
    """Publish large records until the log is full or has taken its bound; return how many."""
    stream, records = Stream(daemon), encode_records([LARGE])
    most = MAX_BYTES // len(LARGE.body)
    for number in range(most):
        stream.add(client.Publish(number + 1, "large", 1, records))
        try:
            stream.flush()
        except RuntimeError as refused:
            if "log-full" not in str(refused):
                raise
            most = number
            break
    stream.leave()
    return most


class Usage(NamedTuple):
    """Bytes of a state directory, zeros preallocated at the end of the log left out.

    Attributes:
        frames: Frames of the log, without the heads of segments.
        log: Everything in the log's folder: frames, heads, indexes, snapshots.
        all: Everything.
    """

    frames: int
    log: int
    all: int


def usage(state: Path) -> Usage:
    """Read what a daemon that does not run has left."""
    folder, frames, ahead = state / "log", 0, 0
    for number in numbers(folder):
        path = segment_path(folder, number)
        head, first = read_head(path)
        size = path.stat().st_size
        index = load_index(folder, number, head.log) or scan_to(path, head, size, None)[0]
        frames += index.size - first.end
        ahead += size - index.size
    return Usage(frames, _size(folder) - ahead, _size(state) - ahead)


def _size(folder: Path) -> int:
    """Return what the files of a folder take, also while some go."""
    total = 0
    for path in folder.rglob("*"):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        total += max(status.st_size, status.st_blocks * 512) if path.is_file() else 0
    return total


class Largest:
    """Follows the largest size of a state directory, preallocated zeros and all."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._over = threading.Event()
        self.bytes = 0
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Largest:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.2):
            if self._state.exists():
                self.bytes = max(self.bytes, _size(self._state))


class Run:
    """The run, and its table.

    Attributes:
        rows: What was done, and what the directory took then.
        broken: A sentence for each bound that did not hold.
    """

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self.rows: list[list[str]] = []
        self.broken: list[str] = []
        self.most_start = 0.0

    def restart(self, what: str, kills: bool) -> None:
        """End the daemon, measure, and start it again."""
        daemon = self._daemon
        if kills:
            daemon.kill()
        else:
            daemon.stop(60.0)
        found = usage(daemon.directory / "state")
        began = time.monotonic()
        daemon.start(60.0)
        line = daemon.wait_line(5.0, began, event="node.ready")
        ran, took = spent(daemon.pid)[0], float(line.fields["start_seconds"])
        self.most_start = max(self.most_start, took)
        part = found.log / max(1, found.frames)
        if part > MOST_PART:
            self.broken.append(f"{what}: the log's folder takes {part:.2f} x its frames")
        if took >= MOST_START_SECONDS:
            self.broken.append(f"{what}: the start took {took:.1f} s")
        row = [what, "killed" if kills else "stopped"]
        row += [f"{size / MIB:,.1f}" for size in found]
        row += [f"{part:.2f}", f"{took:.2f}", f"{ran:.2f}"]
        self.rows.append(row)
        print(" | ".join(row), flush=True)


HEAD = (
    "after",
    "the daemon was",
    "frames, MiB",
    "log folder, MiB",
    "state_dir, MiB",
    "log folder / frames",
    "next start, s",
    "its CPU, s",
)


def page(where: str, records: int, run: Run, largest: int) -> str:
    """Return the page."""
    bounds = "; ".join(run.broken) or "all hold"
    return (
        "# The state directory with many channels, consumers and producers\n\n"
        f"Measured {where}. Command: `python -m bench.state_dir`. {records:,} records of"
        f" {RECORD_BYTES} B, {EACH} a publish, on {CHANNELS:,} channels in turn, by {PRODUCERS:,}"
        f" named producers; {CONSUMERS:,} named consumers of one caller, with the most bytes of"
        f" patterns that it may have, whose cursors move; `log.max_bytes` {MAX_BYTES // MIB} MiB."
        " The daemon is stopped or killed behind each part. Zeros preallocated at the log's end are"
        " left out in the table.\n\n"
        f"Bounds: the log's folder (frames, heads, indexes, snapshots) takes at most {MOST_PART:g}"
        f" times the frames; all of `state_dir`, zeros and all, at most `max_bytes` + 64 MiB at any"
        f" time: {largest / MIB:,.1f} of {(MAX_BYTES + MOST_BESIDE) / MIB:,.0f} MiB; a start takes"
        f" less than {MOST_START_SECONDS:g} s. Result: {bounds}.\n\n" + table(HEAD, run.rows) + "\n"
    )


def main() -> int:
    """Run, print and write the page."""
    parser = argparse.ArgumentParser(prog="bench.state_dir", description=__doc__)
    parser.add_argument("--records", type=int, default=1_000_000, help="fewer: no page")
    asked = parser.parse_args()
    where, daemon = machine(), Daemon("hub", CONFIG)
    publishes = asked.records // EACH
    with daemon, Largest(daemon.directory / "state") as largest:
        run = Run(daemon)
        for part in range(PARTS):
            consumers = [CONSUMERS * at // PARTS for at in (part, part + 1)]
            subscribe(daemon, range(*consumers))
            mine = [publishes * at // PARTS for at in (part, part + 1)]
            publish(daemon, range(*mine), max(1, publishes // PRODUCERS))
            run.restart(f"{mine[1] * EACH:,} records", kills=part % 2 == 1)
        subscribe(daemon, range(CONSUMERS))
        run.restart("all cursors moved", kills=True)
        count = overflow(daemon)
        run.restart(f"{count:,} of 900 kB: full, as consumers keep it", kills=False)
        subscribe(daemon, range(CONSUMERS))
        time.sleep(FREED_SECONDS)
        count = overflow(daemon)
        run.restart(f"cursors moved, {count:,} of 900 kB: the oldest went", kills=True)
    if largest.bytes > MAX_BYTES + MOST_BESIDE:
        run.broken.append(f"state_dir took {largest.bytes / MIB:,.1f} MiB")
    text = page(where, asked.records, run, largest.bytes)
    print(text)
    if asked.records >= 1_000_000:
        (FOLDER / "state_dir.md").write_text(text)
    return bool(run.broken)


if __name__ == "__main__":
    sys.exit(main())
