"""Reads logs from disk once their daemons have stopped; holds them against what was published."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from linkd.config import LogSettings
from linkd.errors import LinkdError
from linkd.log import open_log
from linkd.protocol.records import Batch, decode_records
from tests.chaos.faults import FILLING
from tests.chaos.traffic import Ledger


@dataclass
class Verdict:
    """What became of one publisher's records in one log."""

    publisher: str
    log: str
    acked: int = 0
    there: int = 0
    lost: list[int] = field(default_factory=list)
    twice: list[int] = field(default_factory=list)
    out_of_order: int = 0
    late: int = 0
    """Records behind later ones, each published before the last new path was complete."""

    excused: int = 0
    """Records that are missing because a database lost them, as its node told."""

    @property
    def good(self) -> bool:
        """Whether the promise was kept."""
        return not (self.lost or self.twice or self.out_of_order)


@dataclass
class Held:
    """What a log holds.

    Attributes:
        numbers: Of each publisher's records, in the order of the log.
        late: Offsets of records behind later ones of their publisher.
        first: The offset of the oldest record that is left.
    """

    numbers: dict[str, list[int]] = field(default_factory=dict)
    late: list[int] = field(default_factory=list)
    first: int = 1


@dataclass(frozen=True)
class Sample:
    """What a running daemon counts.

    Args:
        pid: Of its process: the counters begin again with it.
        at: Monotonic seconds.
        next: Its log's next offset.
        late: `linkd_records_late_total`.
        unproven: `linkd_records_unproven_total`.
    """

    pid: int
    at: float
    next: int
    late: int
    unproven: int = 0


def read_log(state_dir: Path, node: str) -> dict[str, list[int]]:
    """Return the numbers of each publisher's records, in the order in which they lie in a log."""
    return read_held(state_dir, node).numbers


def read_held(state_dir: Path, node: str, settings: LogSettings | None = None) -> Held:
    """Return what a log holds; its daemon has stopped."""
    calls: SimpleQueue[Any] = SimpleQueue()
    log = open_log(settings or LogSettings(), state_dir, node, calls.put)
    held = Held(first=log.first)
    highest: dict[str, int] = {}
    position = log.first
    while position < log.next:
        batches: list[Batch] | None = log.read(position, 4 << 20)
        if batches is None:
            answers: list[Any] = []
            log.fetch(position, 4 << 20, answers.append)
            while not answers:
                calls.get(timeout=30)()
            if isinstance(answers[0], LinkdError):
                raise answers[0]
            batches = answers[0]
        for batch in batches:
            if batch.channel == FILLING:
                continue
            for place, record in enumerate(decode_records(batch.records, batch.count)):
                content = json.loads(record.body)
                publisher, number = content["p"], content["n"]
                held.numbers.setdefault(publisher, []).append(number)
                if number < highest.get(publisher, -1):
                    held.late.append(batch.offset + place)
                else:
                    highest[publisher] = number
        position = batches[-1].next
    ended: list[bool] = []
    log.close(lambda: ended.append(True))
    while not ended:
        calls.get(timeout=30)()
    return held


def judge(
    ledger: Ledger, numbers: list[int], log: str, small: bool = False, changed: float = -1.0
) -> Verdict:
    """Hold what lies in a log against what its publisher knows.

    Of a small log the oldest records may be gone: they are not missed. A new path begins at the end
    of the sender's log: records that were published before may come behind later ones, over older
    paths. Any other record behind a later one is out of order.

    Args:
        ledger: What the publisher knows.
        numbers: Of its records, in the order of the log.
        log: Whose log it is.
        small: Whether the log's bound has been reached.
        changed: Monotonic seconds at which the last new path was complete.
    """
    there = set(numbers)
    verdict = Verdict(ledger.name, log, ledger.count(), len(numbers))
    oldest = min(there, default=ledger.next) if small else 0
    for first, last in ledger.acked:
        missing = range(max(first, oldest), last)
        verdict.lost += [number for number in missing if number not in there]
    if len(there) != len(numbers):
        seen: set[int] = set()
        for number in numbers:
            if number in seen:
                verdict.twice.append(number)
            seen.add(number)
    highest = -1
    for number in numbers:
        if number > highest:
            highest = number
        elif ledger.began(number) < changed:
            verdict.late += 1
        else:
            verdict.out_of_order += 1
    return verdict


def uncounted(late: Sequence[int], samples: Sequence[Sample]) -> list[str]:
    """Return where a daemon has counted fewer or more late records than its log shows.

    A sample's offset and counter are read one after the other, so each counter is held against what
    lay in the log one sample before and one sample after. A process that is killed takes along what
    it had counted since its last sample.

    Args:
        late: Offsets of the log's records behind later ones, ascending.
        samples: In the order of time.
    """
    wrong = []
    lives: dict[int, list[Sample]] = {}
    for sample in samples:
        lives.setdefault(sample.pid, []).append(sample)
    before = 0
    for life in lives.values():
        low, high = bisect_left(late, before), bisect_left(late, life[0].next)
        for place, sample in enumerate(life):
            least = bisect_left(late, life[max(0, place - 1)].next) - high
            later = place + 1 < len(life)
            most = (bisect_left(late, life[place + 1].next) if later else len(late)) - low
            if not least <= sample.late <= most:
                wrong.append(
                    f"at offset {sample.next} process {sample.pid} had counted {sample.late} late"
                    f" records, and the log shows {least} to {most}"
                )
            if sample.unproven:
                wrong.append(f"process {sample.pid} stored {sample.unproven} unproven records")
        before = life[-1].next
    return wrong
