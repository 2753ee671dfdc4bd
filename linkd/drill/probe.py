"""Numbered messages: published at one end, counted at the other."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from linkd.client.errors import NoDaemon, Refused
from linkd.client.http import call, expect

BATCH: Final = 10
EVERY_SECONDS: Final = 0.1
_RETRY_SECONDS: Final = 0.2
_PAGE: Final = 5000
_SENT_SECONDS: Final = 30.0


class Counted(msgspec.Struct, frozen=True):
    """What became of one publisher's messages.

    Args:
        published: Those that the daemon said it has on disk.
        refused: Those that it would not take.
        doubtful: Those of calls that were never answered.
        lost, twice, out_of_order: Of those published, at the other end.
        slowest_seconds: The longest that a call took that was answered.
    """

    published: int
    refused: int
    doubtful: int
    lost: int
    twice: int
    out_of_order: int
    slowest_seconds: float


class Publisher(threading.Thread):
    """Publishes numbered messages, ten every tenth of a second, until it is told to stop.

    A call without an answer is in doubt: its messages may be there, or not; they are not tried
    again, so that whatever is there twice was doubled on the way.

    Attributes:
        refused: How many messages the daemon would not take.
        channel: Where to.
        mark: Tells these messages from others on the channel.

    Args:
        socket: The daemon's.
        channel: Where to.
        mark: Tells these messages from others on the channel.
    """

    def __init__(self, socket: str, channel: str, mark: str) -> None:
        super().__init__(daemon=True, name=f"probe {channel}")
        self.refused = 0
        self._slowest = 0.0
        self._socket = socket
        self.channel = channel
        self.mark = mark
        self._next = 0
        self._acked: list[tuple[int, int]] = []
        self._doubtful: list[tuple[int, int]] = []
        self._ended = threading.Event()

    @property
    def published(self) -> int:
        """How many messages were acknowledged by the daemon."""
        return sum(last - first for first, last in tuple(self._acked))

    def run(self) -> None:
        """Publish until told to stop."""
        while not self._ended.is_set():
            began = time.monotonic()
            wait = EVERY_SECONDS if self._publish() else _RETRY_SECONDS
            self._ended.wait(max(0.0, wait - (time.monotonic() - began)))

    def end(self) -> None:
        """Stop, and wait for the call under way."""
        self._ended.set()
        if self.is_alive():
            self.join(_SENT_SECONDS + 5.0)

    def _publish(self) -> bool:
        """Publish once; return whether it was stored."""
        span = self._next, self._next + BATCH
        self._next = span[1]
        body = b"\n".join(
            msgspec.json.encode({"drill": self.mark, "n": number}) for number in range(*span)
        )
        headers = {"Content-Type": "application/x-ndjson"}
        target = f"/v1/channels/{self.channel}"
        began = time.monotonic()
        try:
            expect(call(self._socket, "POST", target, body, headers, timeout=_SENT_SECONDS))
        except Refused:
            self.refused += BATCH
            return False
        except NoDaemon as error:
            if "did not answer" in str(error) or "closed" in str(error) or "away" in str(error):
                self._doubtful.append(span)
            else:
                self.refused += BATCH
            return False
        self._slowest = max(self._slowest, time.monotonic() - began)
        self._acked.append(span)
        return True

    def judge(self, numbers: Iterable[int]) -> Counted:
        """Hold what has arrived, in its order, against what was published."""
        arrived = list(numbers)
        there = set(arrived)
        return Counted(
            published=self.published,
            refused=self.refused,
            doubtful=sum(last - first for first, last in self._doubtful),
            lost=sum(
                number not in there for first, last in self._acked for number in range(first, last)
            ),
            twice=len(arrived) - len(there),
            out_of_order=sum(b <= a for a, b in itertools.pairwise(arrived)),
            slowest_seconds=round(self._slowest, 3),
        )


def arrived(socket: str, channel: str, mark: str) -> list[int]:
    """Return the numbers of a publisher's messages as they lie in a daemon's log, in their order.

    Raises:
        ClientError: The daemon does not answer, or not as expected.
    """
    numbers: list[int] = []
    position = 1
    while True:
        target = f"/v1/channels/{channel}?from={position}&limit={_PAGE}"
        page: dict[str, Any] = expect(call(socket, "GET", target, timeout=_SENT_SECONDS)).json()
        for record in page["records"]:
            content = record.get("data")
            if isinstance(content, dict) and content.get("drill") == mark and "n" in content:
                numbers.append(int(content["n"]))
        if not page["records"] and page["next"] <= position:
            return numbers
        position = page["next"]
