"""Functions called by the type of what arrives."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Protocol

from linkd.client.loop import Loop
from linkd.client.record import Record
from linkd.client.subscription import Records

Function = Callable[[Record], object]


class Listening(Protocol):
    """What a node gives to its functions by type."""

    def listen(self, pattern: str) -> Records:
        """Begin a subscription from now on."""

    def report(self, error: Exception) -> None:
        """Tell the application what went wrong in one of its functions."""


class Handlers:
    """The functions of one node: one subscription a pattern, however many functions there are."""

    def __init__(self, node: Listening, loop: Loop) -> None:
        self._node = node
        self._loop = loop
        self._functions: dict[str, dict[tuple[str, Function], None]] = {}
        self._cancels: dict[str, Callable[[], Awaitable[object]]] = {}

    def on(self, type_: str, function: Function, pattern: str) -> None:
        """Call `function` for each record of that type; registered twice it is called once."""
        functions = self._functions.setdefault(pattern, {})
        functions[type_, function] = None
        if pattern not in self._cancels:
            listening = self._pump(functions, self._node.listen(pattern))
            self._cancels[pattern] = self._loop.run(listening)

    def off(self, type_: str, function: Function | None) -> None:
        """Forget a function, or all of a type; the last one of a pattern ends its subscription."""
        for pattern, functions in list(self._functions.items()):
            for known_type, known in list(functions):
                if known_type == type_ and function in (None, known):
                    del functions[known_type, known]
            if not functions:
                del self._functions[pattern]
                self._cancels.pop(pattern)()

    def close(self) -> None:
        """Forget all."""
        self._functions.clear()
        cancels, self._cancels = self._cancels, {}
        for cancel in cancels.values():
            cancel()

    async def _pump(self, functions: dict[tuple[str, Function], None], records: Records) -> None:
        """Call the functions of each record in the order of the records, one after the other."""
        try:
            async with records:
                async for record in records:
                    for type_, function in list(functions):
                        if type_ in ("*", record.type):
                            await self._call(function, record)
        except self._loop.cancelled:
            raise
        except Exception as error:  # noqa: BLE001 - it belongs to the application
            self._node.report(error)

    async def _call(self, function: Function, record: Record) -> None:
        try:
            outcome = function(record)
            if inspect.isawaitable(outcome):
                await outcome
        except self._loop.cancelled:
            raise
        except Exception as error:  # noqa: BLE001 - it belongs to the application
            self._node.report(error)
