"""Sinks of subscriptions: deliver records as time, memory and the reader allow."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence, Sized
from typing import TYPE_CHECKING, Generic, TypeVar

from linkd.api.errors import ApiError
from linkd.errors import LinkdError
from linkd.node.subscriptions import Follower, Sink, Start
from linkd.protocol.records import Batch

if TYPE_CHECKING:
    from linkd.api.auth import Caller
    from linkd.api.http import CallerBudget
    from linkd.api.server import ApiServer

Piece = TypeVar("Piece", bound=Sized)

SLICE_BYTES = 65_536
PIECE_BYTES = 8192
"""After so many bytes of a batch, or after a piece of so many, there is a look at whether the
client still reads."""

SUBSCRIPTION_BYTES = 3072
PATTERN_COST = 96
"""Bytes of memory that a subscription takes, and each byte of its patterns (measured)."""


class ApiSink(Sink):
    """Delivers one subscription's records to a client.

    Args:
        api: The API.
        budget: The memory budget of the caller.

    Attributes:
        subscription: The source of the records, until it has ended.
    """

    def __init__(self, api: ApiServer, budget: CallerBudget) -> None:
        self.subscription: Follower | None = None
        self._api = api
        self._budget = budget
        self._stopped = False
        self._queues = False
        self._paid = 0
        self._caller = ""  # its jobs run in the turns of this caller

    def subscribe(
        self, caller: Caller, patterns: Sequence[str], start: Start, consumer: str | None = None
    ) -> Follower:
        """Follow these patterns; raise ApiError where that is refused, or takes too much memory."""
        cost = SUBSCRIPTION_BYTES + PATTERN_COST * sum(map(len, patterns))
        if not self._budget.reserve(cost):
            raise ApiError("too-many", "the subscriptions of this caller take too much memory")
        self._paid = cost
        self._caller = caller.name
        try:
            found = self._api.subscribe(caller, patterns, start, self, consumer)
        except LinkdError:
            self.refund()
            raise
        self.subscription = found
        return found

    def refund(self) -> None:
        """Return its cost to the budget."""
        paid, self._paid = self._paid, 0
        self._budget.release(paid)

    @abstractmethod
    def is_open_for(self, size: int) -> bool:
        """Return whether the client takes `size` bytes of records now; else `resume` comes."""

    def has_room(self, size: int) -> bool:
        """Return whether records of `size` bytes may come now; else the subscription resumes."""
        if self.is_open_for(size):
            if self._api.share.left() > 0:
                return True
            self._queue()
        self._stopped = True
        return False

    def hold(self, size: int) -> bool:
        """Count bytes that are read ahead, negative where they are no longer held."""
        if size > 0:
            return self._budget.reserve(size)
        self._budget.release(-size)
        return True

    def _queue(self) -> None:
        """Continue in the caller's turn."""
        if not self._queues:
            self._queues = True
            self._api.share.queue(self._have_turn, self._caller)

    def _have_turn(self) -> None:
        self._queues = False
        self.resume()

    def resume(self) -> None:
        """Continue, if the client reads."""
        if self._stopped and self.is_open_for(0):
            self._stopped = False
            if self.subscription is not None:
                self.subscription.resume()

    def close(self) -> None:
        """Close it for the client."""
        if self._paid:
            self.refund()
        subscription, self.subscription = self.subscription, None
        if subscription is not None:
            subscription.close()


class SlicedSink(ApiSink, Generic[Piece]):
    """A sink that opens batches: a batch of many records goes out in slices of time."""

    def __init__(self, api: ApiServer, budget: CallerBudget) -> None:
        super().__init__(api, budget)
        self._rest: Iterator[Piece] | None = None  # of the batch that is going out
        self._batch_bytes = 0  # of that batch as a whole

    @abstractmethod
    def pieces(self, batch: Batch) -> Iterator[Piece]:
        """Yield what goes out for each record."""

    @abstractmethod
    def put(self, pieces: list[Piece]) -> None:
        """Send what is to go out."""

    def batch(self, batch: Batch) -> bool:
        """Send a batch's records; return whether there is room for more."""
        self._rest, self._batch_bytes = self.pieces(batch), len(batch.records)
        if self._send_rest():
            return True
        self._stopped = True
        return False

    def _send_rest(self) -> bool:
        """Send, one piece at least, until the slice ends; return whether there is room for more."""
        rest = self._rest
        if rest is not None:
            clock, until = self._api.reactor, self._api.share.end()
            ready: list[Piece] = []
            size = 0
            for piece in rest:
                ready.append(piece)
                size += len(piece)
                if size >= SLICE_BYTES or len(piece) >= PIECE_BYTES:
                    self.put(ready)
                    ready, size = [], 0
                    if not self.is_open_for(0):
                        return False
                if clock.seconds() >= until:
                    self.put(ready)
                    self._queue()
                    return False
            self._rest = None
            self.put(ready)
        return self.is_open_for(0)

    def resume(self) -> None:
        """Go on with the batch that is going out, then with others."""
        if self._stopped and self.is_open_for(0) and self._send_rest():
            self._stopped = False
            if self.subscription is not None:
                self.subscription.resume()

    @property
    def is_within(self) -> bool:
        """Whether a batch is going out: nothing else may come in between."""
        return self._rest is not None

    @property
    def within_bytes(self) -> int:
        """Return the size of the batch that is going out, 0 between batches."""
        return 0 if self._rest is None else self._batch_bytes

    def close(self) -> None:
        """Close it for the client."""
        self._rest = None
        super().close()
