"""Producers of two owners with one name, over commits and crashes: a success means stored, once."""

from __future__ import annotations

from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from linkd.errors import BadRecord
from linkd.log.interface import Appended
from linkd.protocol.records import (
    EncodedRecord,
    NewRecords,
    Producer,
    decode_records,
    encode_records,
)
from tests.support.memory_log import MemoryLog

PUBLISH = st.tuples(
    st.just("publish"),
    st.sampled_from(("shop", "mallory")),
    st.integers(1, 5),
    st.lists(st.sampled_from((1, 1, 2)), min_size=1, max_size=2),
    st.sampled_from(("orders", "orders", "chat")),
)
ACTIONS = st.lists(
    st.one_of(
        PUBLISH, PUBLISH, PUBLISH, PUBLISH, PUBLISH, st.just(("commit",)), st.just(("crash",))
    ),
    max_size=60,
)


@given(ACTIONS)
@settings(max_examples=500, deadline=None)
def test_a_success_means_stored_once(actions: list[Any]) -> None:
    log = MemoryLog("edge", Random(1), delayed=True, clock=lambda: 1.0)
    answered: dict[tuple[str, int], Any] = {}
    for serial, action in enumerate(actions):
        if action[0] == "commit":
            log.commit()
        elif action[0] == "crash":
            log = log.crash()
        else:
            _, owner, last, counts, channel = action
            first = max(1, last - len(counts) + 1)
            counts = counts[: last - first + 1]
            numbers = range(first, last + 1)
            records = encode_records(
                [
                    EncodedRecord(f"{owner} {number} {serial}".encode())
                    for number, count in zip(numbers, counts, strict=True)
                    for _ in range(count)
                ]
            )
            several = tuple(counts) if len(counts) > 1 else ()
            producer = Producer("till", last, owner)
            draft = NewRecords(
                channel, sum(counts), records, 1.0, None, (), producer, several, owner
            )

            def settled(
                outcome: Any, log: Any = log, owner: str = owner, numbers: range = numbers
            ) -> None:
                if isinstance(outcome, BadRecord):
                    assert len(numbers) > 1
                    return
                assert isinstance(outcome, Appended)
                for number in numbers:
                    answered[owner, number] = outcome
                if outcome.duplicate:
                    assert len(numbers) == 1
                    assert stored(log, outcome.offset)[:2] == (owner, numbers[0])

            log.append(draft, settled)
    log.commit()
    found: dict[tuple[str, int], set[int]] = {}  # the publishes that stored a number
    for batch in log.read(1, 1 << 30) or []:
        for record in decode_records(batch.records, batch.count):
            owner, number, serial = taken(record)
            found.setdefault((owner, number), set()).add(serial)
    assert answered.keys() <= found.keys()
    assert all(len(serials) == 1 for serials in found.values())


def taken(record: EncodedRecord) -> tuple[str, int, int]:
    """Return owner, number and publish of a record."""
    owner, number, serial = record.body.decode().split()
    return owner, int(number), int(serial)


def stored(log: MemoryLog, offset: int) -> tuple[str, int, int]:
    """Return owner, number and publish of the record at an offset."""
    for batch in log.read(offset, 1) or []:
        if batch.offset <= offset < batch.next:
            return taken(decode_records(batch.records, batch.count)[offset - batch.offset])
    raise AssertionError(f"no record at {offset}")
