"""Rate limits: token buckets for each address, fair shares of each event-loop iteration.

The tables are bounded, so that a flood from many addresses costs a fixed amount of memory; the
address that was quiet longest is forgotten first.

A connection works in slices; where the share of an iteration is used up, or others wait, it queues.
So the links, whose work is not counted here, are served at least every 10 ms, however many clients
there are and whatever they send. Callers have their turns in rotation, however many connections
each of them has.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from math import inf
from typing import Any, Final

from twisted.internet.abstract import FileDescriptor
from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred

from linkd import events

MAX_ADDRESSES: Final = 16_384


@lru_cache(MAX_ADDRESSES)
def origin(address: str) -> str:
    """Return what an address counts as: itself, or for IPv6 its /64, which one host may own whole.

    An IPv4 address in IPv6 form counts as IPv4; what is no address, as itself.
    """
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((int(parsed) >> 64 << 64, 64)))


class TokenBucket:
    """Tokens that refill at a rate, up to a burst.

    Args:
        rate: Tokens a second.
        burst: The most that are saved up; it begins full.
        now: Seconds on the monotonic clock.
    """

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._at = now

    def take(self, now: float) -> float:
        """Take one token; return 0, or the seconds until one is there (then none is taken)."""
        gained = max(0.0, now - self._at) * self._rate
        self._tokens = min(self._burst, self._tokens + gained)
        self._at = max(now, self._at)
        if self._tokens >= 1.0:
            self._tokens -= 1.0
            return 0.0
        return (1.0 - self._tokens) / self._rate

    def give_back(self) -> None:
        """Undo a `take`."""
        self._tokens = min(self._burst, self._tokens + 1.0)


class RateLimiter:
    """A bucket for each address and one for all.

    Args:
        rate: Tokens a second of one address, and its `burst`.
        burst: The most that one address saves up.
        total_rate: Tokens a second of all, and their `total_burst`.
        total_burst: The most that all save up.
        addresses: How many addresses are remembered.
    """

    def __init__(
        self,
        rate: float,
        burst: float,
        total_rate: float,
        total_burst: float,
        addresses: int = MAX_ADDRESSES,
    ) -> None:
        self._rate = rate
        self._burst = burst
        self._total = TokenBucket(total_rate, total_burst, float("-inf"))
        self._addresses = addresses
        self._each: OrderedDict[str, TokenBucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._each)

    def take(self, address: str, now: float) -> float:
        """Take one token for `address`; return 0, or the seconds until there is one.

        An address that has had its share takes nothing from the others.
        """
        key = origin(address)
        bucket = self._each.get(key)
        if bucket is None:
            bucket = self._each[key] = TokenBucket(self._rate, self._burst, now)
            if len(self._each) > self._addresses:
                self._each.popitem(last=False)
        self._each.move_to_end(key)
        wait = bucket.take(now)
        if wait:
            return wait
        wait = self._total.take(now)
        if wait:
            bucket.give_back()
        return wait


SHARE_SECONDS: Final = 0.010
"""Time for all connections of the API in an iteration of the event loop, in seconds."""

SLICE_SECONDS: Final = 0.0025
"""Time for one caller, before the next has its turn, in seconds."""

COMPETE_SECONDS: Final = 0.25
"""Callers compete for so many seconds after one came back behind another."""

REQUESTS_RUN: Final = 8
"""Requests of a caller that begin before one of its longer jobs goes on."""

MOST_SEEN: Final = 256
"""Callers that are remembered for that."""


def serve_last(transport: object) -> None:
    """Have a client's socket read behind the links that are ready in the same iteration.

    See `linkd.reactor`.
    """
    socket: Any = getattr(transport, "transport", transport)  # below TLS
    with suppress(AttributeError):
        socket.serves_last = True


def drop_buffers(transport: object) -> None:
    """Free the unsent bytes of a lost connection.

    Its objects refer to each other, so the garbage collector would find them only much later.
    """
    socket: Any = getattr(transport, "transport", transport)  # below TLS
    if isinstance(socket, FileDescriptor):
        socket.dataBuffer, socket._tempDataBuffer, socket._tempDataLen = b"", [], 0


class _Jobs:
    """The jobs of one caller: requests that begin, and what goes on."""

    __slots__ = ("others", "requests", "run")

    def __init__(self) -> None:
        self.requests: deque[Callable[[], None]] = deque()
        self.others: deque[Callable[[], None]] = deque()
        self.run = 0

    def take(self) -> Callable[[], None]:
        """Return the next job."""
        if self.requests and (self.run < REQUESTS_RUN or not self.others):
            self.run += 1
            return self.requests.popleft()
        self.run = 0
        return self.others.popleft()


class FairShare:
    """Schedules the callers of the API: a slice each in rotation, first in first out within one.

    Within a caller requests begin ahead of what goes on: behind 900 readers that each have work for
    a slice, a small request would wait for seconds.

    Only callers with a queued job have a queue, so the memory is bounded by the connections.

    A caller that is alone may use the whole share of an iteration. Where callers compete, each has
    one slice an iteration: an iteration also does what the slices have led to, commits and answers,
    and a caller of few requests waits for several iterations. A caller whose job took longer than
    its slice rests for that time.

    Args:
        clock: The reactor. Where it has no `call_at_iteration_end`, iterations are not seen, and
            only what queues is bounded.

    Attributes:
        seconds: Returns the reactor's clock.
    """

    def __init__(self, clock: ReactorBase) -> None:
        self._clock = clock
        self.seconds = clock.seconds
        self._call_at_iteration_end: Callable[[Callable[[], None]], object] | None = getattr(
            clock, "call_at_iteration_end", None
        )
        self._queues: OrderedDict[str, _Jobs] = OrderedDict()
        self._until: float | None = None  # when this iteration's share ends; None: it is whole
        self._at_once_until = 0.0  # until when work in this iteration need not queue
        self._slice_until = 0.0  # when the turn of the caller whose jobs run now ends
        self._served: set[str] = set()  # the callers that had their turn in this iteration
        self._rests: dict[str, float] = {}  # the callers that overran their slice: until when
        self._newest = ""  # the caller of the newest job
        self._seen: dict[str, float] = {}  # those before it: when each had its newest job
        self._compete_until = 0.0
        self._is_running = False
        self._planned: Any = None
        self._is_delayed = False

    def left(self) -> float:
        """Return for how many seconds the caller may work now; 0 where it must queue."""
        if self._is_running:
            return max(0.0, self._slice_until - self._clock.seconds())
        if self._queues:
            return 0.0
        now = self._clock.seconds()
        if self._until is None:
            if self._call_at_iteration_end is None:
                return SLICE_SECONDS
            self._begin(now)
        return max(0.0, min(SLICE_SECONDS, self._at_once_until - now))

    def end(self) -> float:
        """Return when the caller's slice ends, on the reactor's clock."""
        return self._clock.seconds() + self.left()

    def queue(self, job: Callable[[], None], caller: str = "", is_request: bool = False) -> None:
        """Call a job once, in its caller's turn and after the jobs that this caller has queued.

        Args:
            job: A slice of work.
            caller: A caller's name, or its address until it is known; empty: the node itself.
            is_request: It begins a request: it comes ahead of all but other requests.
        """
        jobs = self._queues.get(caller)
        if jobs is None:
            jobs = self._queues[caller] = _Jobs()
        (jobs.requests if is_request else jobs.others).append(job)
        if caller != self._newest and caller:
            self._change(caller)
        self._plan()

    def _change(self, caller: str) -> None:
        """Note another caller than before; it competes with that one if it was here just now."""
        now, seen = self._clock.seconds(), self._seen
        if now - seen.pop(caller, -inf) < COMPETE_SECONDS:
            self._compete_until = now + COMPETE_SECONDS
        if len(seen) >= MOST_SEEN:
            seen.clear()
        seen[self._newest] = now
        self._newest = caller

    def turn(self, caller: str = "") -> Deferred[None]:
        """Return a Deferred that fires in the caller's turn; cancel it to give the turn up."""
        turn: Deferred[None] = Deferred()
        self.queue(lambda: None if turn.called else turn.callback(None), caller)
        return turn

    def _begin(self, now: float) -> None:
        self._until = now + SHARE_SECONDS
        at_once = SLICE_SECONDS if now < self._compete_until else SHARE_SECONDS
        self._at_once_until = now + at_once
        if self._call_at_iteration_end is not None:
            self._call_at_iteration_end(self._over)

    def _over(self) -> None:
        """Note the end of the iteration."""
        self._until = None
        self._served.clear()

    def _plan(self, after: float = 0.0) -> None:
        """Run the jobs in the next iteration, or after so many seconds where all callers rest."""
        if self._is_running:
            return
        if self._planned is None:
            self._planned = self._clock.callLater(after, self._run)
            self._is_delayed = after > 0.0
        elif self._is_delayed and not after:
            self._is_delayed = False
            self._planned.reset(0.0)

    def _run(self) -> None:
        """Run queued jobs, of one caller at least, until the share is used up.

        A caller's turn is a slice of time, so that many short jobs are no worse than one long one.
        """
        self._planned, self._is_running = None, True
        now = self._clock.seconds()
        if self._until is None:
            self._begin(now)
        try:
            while (caller := self._next(now)) is not None:
                now = self._work_for(caller, now)
                if now >= (self._until or 0.0):
                    break
        finally:
            self._is_running = False
            if self._call_at_iteration_end is None:
                self._over()
            if self._queues:
                self._plan(self._rest(now))

    def _next(self, now: float) -> str | None:
        """Return the caller that has the next turn in this iteration, or None."""
        competes, served, rests = now < self._compete_until, self._served, self._rests
        for caller in self._queues:
            if not competes or (caller not in served and rests.get(caller, 0.0) <= now):
                return caller
        return None

    def _rest(self, now: float) -> float:
        """Return for how many seconds all callers with jobs rest."""
        if now >= self._compete_until:
            self._rests.clear()
        if not self._rests:
            return 0.0
        until = min(self._rests.get(caller, 0.0) for caller in self._queues)
        return max(0.0, min(until, self._compete_until) - now)

    def _work_for(self, caller: str, now: float) -> float:
        """Run a caller's jobs for a slice; return the time behind it."""
        queues, began = self._queues, now
        jobs = queues[caller]
        until = self._slice_until = min(now + SLICE_SECONDS, self._until or now)
        while jobs.requests or jobs.others:
            self._work(jobs.take())
            now = self._clock.seconds()
            if now >= until:
                break
        self._served.add(caller)
        queues.move_to_end(caller)
        if not (jobs.requests or jobs.others):
            del queues[caller]
        over = now - began - SLICE_SECONDS
        if over >= SLICE_SECONDS:
            self._rests[caller] = now + over
        elif self._rests:
            self._rests.pop(caller, None)
        return now

    @staticmethod
    def _work(job: Callable[[], None]) -> None:
        try:
            job()
        except Exception as error:  # noqa: BLE001 - the others have their turn
            detail = f"{type(error).__name__}: {error}"
            events.emit("node.internal-error", where="a turn of the api", detail=detail)
