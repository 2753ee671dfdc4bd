"""Reads logs from disk once their daemons have stopped; holds them against what was published."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from linkd.config import LogSettings
from linkd.core.batch import Batch, decode_records
from linkd.errors import LinkdError
from linkd.log import open_log
from tests.campaign.faults import FILLING
from tests.campaign.traffic import Ledger


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

    @property
    def good(self) -> bool:
        """Whether the promise was kept."""
        return not (self.lost or self.twice or self.out_of_order)


def read_log(state_dir: Path, node: str) -> dict[str, list[int]]:
    """Return the numbers of each publisher's records, in the order in which they lie in a log."""
    calls: SimpleQueue[Any] = SimpleQueue()
    log = open_log(LogSettings(), state_dir, node, calls.put)
    found: dict[str, list[int]] = {}
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
            for record in decode_records(batch.records, batch.count):
                content = json.loads(record.body)
                found.setdefault(content["p"], []).append(content["n"])
        position = batches[-1].next
    ended: list[bool] = []
    log.close(lambda: ended.append(True))
    while not ended:
        calls.get(timeout=30)()
    return found


def judge(ledger: Ledger, numbers: list[int], log: str, small: bool = False) -> Verdict:
    """Hold what lies in a log against what its publisher knows.

    Of a small log the oldest records may be gone: they are not missed.
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
    verdict.out_of_order = sum(b <= a for a, b in itertools.pairwise(numbers))
    return verdict
