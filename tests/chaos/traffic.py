"""Publishers who know what they have published, and a named consumer that is killed."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from bisect import bisect_right
from dataclasses import dataclass, field
from http.client import HTTPException
from random import Random

from tests.support.daemon import COMMAND, Daemon
from tests.support.lab import python

RETRY_SECONDS = 0.05


@dataclass
class Ledger:
    """What one publisher knows of its records, numbered from 0."""

    name: str
    channel: str
    acked: list[tuple[int, int]] = field(default_factory=list)
    doubtful: list[tuple[int, int]] = field(default_factory=list)
    refused: int = 0
    next: int = 0
    places: list[tuple[int, int, int, float]] = field(default_factory=list)
    """Of each acknowledged call: its numbers, the offset of the first, when it was answered."""

    calls: list[tuple[int, float]] = field(default_factory=list)
    """The first number of each call, and the monotonic seconds at which the call began."""

    def began(self, number: int) -> float:
        """Return when the call began that published a record; now, where that is not known."""
        place = bisect_right(self.calls, (number, float("inf"))) - 1
        return self.calls[place][1] if place >= 0 else time.monotonic()

    def count(self) -> int:
        """Return how many records were acknowledged."""
        return sum(last - first for first, last in self.acked)


class Publisher(threading.Thread):
    """Publishes numbered records at one daemon, as fast as asked, until told to stop.

    A call that failed without an answer is doubtful: its records may be there once, or not at all.
    They are not tried again, so that whatever is there twice was doubled by linkd.
    """

    def __init__(self, daemon: Daemon, name: str, channel: str, rng: Random, rate: float) -> None:
        super().__init__(daemon=True, name=name)
        self.ledger = Ledger(name, channel)
        self._at = daemon
        self._rng = rng
        self._rate = rate
        self._ended = threading.Event()

    def run(self) -> None:
        """Publish until told to stop."""
        ledger = self.ledger
        while not self._ended.is_set():
            began = time.monotonic()
            count = self._rng.randint(1, 100)
            first, last = ledger.next, ledger.next + count
            body = "\n".join(
                json.dumps({"p": ledger.name, "n": number}) for number in range(first, last)
            ).encode()
            ledger.next = last
            ledger.calls.append((first, began))
            path = f"/v1/channels/{ledger.channel}"
            try:
                said = self._at.call("POST", path, body, "application/x-ndjson", timeout=30.0)
                if "offset" not in said:  # 503: it is starting or stopping
                    raise RuntimeError(str(said))
            except (RuntimeError, FileNotFoundError, ConnectionRefusedError):  # or it isn't there
                ledger.refused += count
                self._ended.wait(RETRY_SECONDS)
            except (OSError, ValueError, EOFError, HTTPException):
                ledger.doubtful.append((first, last))
                self._ended.wait(RETRY_SECONDS)
            else:
                ledger.acked.append((first, last))
                ledger.places.append((first, last, said["offset"], time.monotonic()))
            self._ended.wait(max(0.0, count / self._rate - (time.monotonic() - began)))

    def end(self) -> None:
        """Stop, and wait for the call under way."""
        self._ended.set()
        self.join(60.0)


class Audit:
    """A named consumer at one daemon, run as `linkd subscribe`, killed and restarted."""

    def __init__(self, daemon: Daemon, pattern: str, name: str = "audit") -> None:
        self._at = daemon
        self._pattern = pattern
        self._name = name
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._wanted = False
        self.runs: list[list[tuple[int, str, int]]] = []

    def start(self) -> None:
        """Begin a run; it is begun again whenever it ends by itself."""
        self._wanted = True
        self._begin()

    def _begin(self) -> None:
        command = python(
            *COMMAND,
            "--socket",
            str(self._at.socket),
            "subscribe",
            self._pattern,
            "--consumer",
            self._name,
            "--from",
            "earliest",
            "--json",
        )
        if self._at.host is None:
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        else:
            self._process = self._at.host.popen(
                command, {}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        run: list[tuple[int, str, int]] = []
        self.runs.append(run)
        self._reader = threading.Thread(target=self._read, args=(self._process, run), daemon=True)
        self._reader.start()

    def _read(self, process: subprocess.Popen[bytes], run: list[tuple[int, str, int]]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if not line.endswith(b"\n"):
                return  # killed in the midst of a line
            record = json.loads(line)
            run.append((record["offset"], record["data"]["p"], record["data"]["n"]))
        process.wait(10)
        if self._wanted:  # no daemon when it started: its supervisor starts it again
            time.sleep(RETRY_SECONDS * 10)
            self._begin()

    def kill(self) -> None:
        """End the run as kill -9 does."""
        self._wanted = False
        if self._reader is None or self._process is None:
            return
        reader = self._reader
        while reader.is_alive():
            self._process.kill()
            reader.join(0.2)
            reader = self._reader

    @property
    def last(self) -> int:
        """The last offset that it has seen."""
        return max((run[-1][0] for run in self.runs if run), default=0)
