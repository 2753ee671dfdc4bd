"""What those who answer calls need of the API; `linkd.api.server.ApiServer` provides it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred, DeferredSemaphore

from linkd.api.auth import Caller, Keyring
from linkd.api.call import Call
from linkd.api.http import Account
from linkd.api.metrics import Metrics
from linkd.api.port import NodePort, Sink, Start, Subscription
from linkd.api.presence import Presence
from linkd.api.stream_publisher import Producers
from linkd.config import Config
from linkd.log.interface import Consumer
from linkd.net.rate_limit import FairShare
from linkd.status import LinkStatus

LocalCall = Callable[[str, str, bytes], Deferred[tuple[int, bytes]]]
"""Answers what is asked on the socket alone: method, path and body in, status and JSON out."""


class Following(Protocol):
    """An answer without an end, whose caller's rights are looked at again at a reload.

    Attributes:
        caller: Who follows.
    """

    caller: Caller

    def allow(self, caller: Caller) -> None:
        """The caller's rights have changed: end it where they no longer cover it."""

    def disallow(self) -> None:
        """The caller's key is gone, or another."""

    def end(self) -> None:
        """End it: the node stops."""


class Service(Protocol):
    """The API, as those who answer its calls see it.

    Attributes:
        node: What it serves.
        config: What is in force.
        reactor: Clock and turns.
        pairing: Answers below `/v1/pairing`; None: there is none.
        keyring: Keys, tokens and cookie sessions.
        metrics: What is counted.
        description: Of all calls, for OpenAPI.
        streams: The event streams under way.
        producers: Who publishes under which name on `/v1/stream`.
        presence: Who is there on `/ws`.
        late_seconds: How late the reactor woke lately.
        share: Gives all connections of the API their turns.
        account: Counts what is held for callers.
        page_reads: Bounds how many pages read at once.
    """

    node: NodePort
    config: Config
    reactor: Any
    pairing: LocalCall | None
    keyring: Keyring
    metrics: Metrics
    description: dict[str, Any]
    streams: set[Following]
    producers: Producers
    presence: Presence
    late_seconds: float
    share: FairShare
    account: Account
    page_reads: DeferredSemaphore

    async def link_statuses(self, caller: str = "") -> list[LinkStatus]:
        """Return the state of all links, looked at in slices of the caller's turns."""

    def subscribe(
        self,
        caller: Caller,
        patterns: Sequence[str],
        start: Start,
        sink: Sink,
        consumer: str | None = None,
    ) -> Subscription:
        """Subscribe at the node, with a name of the caller's; raise Refusal where it refuses."""

    def stand(self, caller: Caller, pattern: str, start: Start, consumer: str) -> int:
        """Take a consumer's name for one page; return its position."""

    def find_consumer(self, call: Call) -> Consumer:
        """Return the consumer that a call names; raise Refusal unless the caller may act on it."""
