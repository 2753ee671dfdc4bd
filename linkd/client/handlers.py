"""Functions called by the type of what arrives."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Protocol

from linkd.client.errors import ClientError
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
        self._records: dict[str, Records] = {}

    def on(self, type_: str, function: Function, pattern: str) -> None:
        """Call `function` for each record of that type; registered twice it is called once.

        Raises:
            TypeError: The type is no text, or the function cannot be called.
        """
        if not isinstance(type_, str):
            raise TypeError(f"expected a record's type, got {type_!r}")
        if not callable(function):
            raise TypeError(f"expected a function, got {function!r}")
        entry = (type_, function)
        hash(entry)  # before anything begins
        if pattern not in self._records:
            records = self._records[pattern] = self._node.listen(pattern)
            functions = self._functions[pattern] = {entry: None}
            self._loop.run(self._pump(pattern, functions, records))
        self._functions[pattern][entry] = None

    def off(self, type_: str, function: Function | None) -> None:
        """Forget a function, or all of a type; the last one of a pattern ends its subscription."""
        for pattern, functions in list(self._functions.items()):
            for known_type, known in list(functions):
                if known_type == type_ and function in (None, known):
                    del functions[known_type, known]
            if not functions:
                self._forget(pattern)

    def close(self) -> None:
        """Forget all; a function that runs is not interrupted: it may be what closes the node."""
        for pattern in list(self._functions):
            self._functions[pattern].clear()
            self._forget(pattern)

    def _forget(self, pattern: str) -> None:
        """End a pattern's subscription: that ends its pump once the present function returns."""
        del self._functions[pattern]
        self._records.pop(pattern).end()

    async def _pump(
        self, pattern: str, functions: dict[tuple[str, Function], None], records: Records
    ) -> None:
        """Call the functions of each record in the order of the records, one after the other."""
        try:
            async for record in records:
                for type_, function in list(functions):
                    if type_ in ("*", record.type) and (type_, function) in functions:
                        await self._call(function, record)
        except self._loop.cancelled:
            raise
        except Exception as error:  # noqa: BLE001 - the subscription's end, or the application's
            self._node.report(error)
        finally:
            if self._records.get(pattern) is records:
                self._forget(pattern)

    async def _call(self, function: Function, record: Record) -> None:
        """Call one function; a cancellation that came out of what it awaits is its own failure."""
        try:
            outcome = function(record)
            if inspect.isawaitable(outcome):
                await outcome
        except self._loop.cancelled as error:
            if self._loop.is_cancelled():
                raise
            self._node.report(ClientError(f"a function of `on` was cancelled: {error!r}"))
        except Exception as error:  # noqa: BLE001 - it belongs to the application
            self._node.report(error)
