"""What a daemon's nodes on asyncio and on Twisted have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Generic, Self, TypeVar, Unpack

from linkd.client.calls import Calls
from linkd.client.handlers import Function
from linkd.client.observable import Observable, Status
from linkd.client.options import SubscribeOptions
from linkd.client.session import MAX_BODY_BYTES
from linkd.client.subscription import Inbox, Records

Watch = TypeVar("Watch", bound=Observable[Status])
Following = TypeVar("Following", bound=Records)


class Face(ABC, Generic[Watch, Following]):
    """A daemon, over any number of connections to it; `async with` starts and closes it.

    Args:
        calls: What can be asked of it.
        status: The connection's state and the links', which `calls` keeps right.
        following: Makes a subscription of an inbox.
    """

    def __init__(
        self, calls: Calls, status: Watch, following: Callable[[Inbox], Following]
    ) -> None:
        self._calls = calls
        self._status = status
        self._following = following

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def name(self) -> str:
        """The daemon's node name; empty until it was reached."""
        return self._calls.session.node

    @property
    def max_body_bytes(self) -> int:
        """The largest body that can be published, as far as it is known."""
        return min(MAX_BODY_BYTES, self._calls.session.max_body_bytes or MAX_BODY_BYTES)

    @property
    def status(self) -> Watch:
        """The connection's state and the links', to be watched."""
        return self._status

    def start(self) -> None:
        """Begin to connect, and keep connected until `close`."""
        self._calls.upkeep.start()

    @abstractmethod
    def close(self) -> Awaitable[None]:
        """End the connection; what is under way fails with Closed."""

    def subscribe(self, *patterns: str, **options: Unpack[SubscribeOptions]) -> Following:
        """Follow channels: an asynchronous iterator of records, which begins now.

        Args:
            *patterns: Channels; `*` stands for one word, `>` last for the rest.
            **options: See SubscribeOptions.

        Raises:
            ChannelRefused: A pattern is malformed. What the daemon refuses, the iterator raises.
        """
        return self._following(self._calls.inbox(patterns, options))

    def on(self, type: str, function: Function, channel: str = ">") -> None:
        """Call `function` with each record of a type that arrives on a channel from now on.

        Records come one after the other, in order; a coroutine or Deferred that it returns is
        awaited. Registered twice it is called once, also after reconnects. What it raises goes to
        `on_error`.

        Args:
            type: The records' type; `*` for every one.
            function: Takes a record.
            channel: A channel or pattern.
        """
        self._calls.on(self, type, function, channel)

    def off(self, type: str, function: Function | None = None) -> None:
        """Forget a function, or all functions of a type."""
        self._calls.off(type, function)

    def listen(self, pattern: str) -> Following:
        """Begin the subscription of `on`'s functions."""
        return self.subscribe(pattern)

    def report(self, error: Exception) -> None:
        """Tell the application what went wrong: `on_error`, or the log where there is none."""
        self._calls.upkeep.report(error)
