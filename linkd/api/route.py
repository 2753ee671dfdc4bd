"""What the table of routes is made of."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Literal

import msgspec

from linkd.api.answer import Answer
from linkd.api.call import Call
from linkd.api.service import Service

Run = Callable[[Service, Call], Awaitable[Answer | None]]
Access = Literal["open", "optional", "caller", "token", "socket"]
"""`open`: anyone. `optional`: anyone, but a caller with a key sees more. `caller`: a key, a cookie
session, or the socket. `token`: a token too. `socket`: the unix socket alone; elsewhere there is no
such path."""


class Param(msgspec.Struct, frozen=True):
    """A value in the path, the query, a header or a body, and what it must look like.

    Args:
        name: Its name.
        about: What it says.
        type: Its type in JSON Schema.
        pattern: A regular expression that it fits.
        least: The least number.
        most: The greatest number.
        choice: All that it may be, where that is little.
        required: It must be there.
        null: It may be null, as if it were not there.
        several: It may come several times.
    """

    name: str
    about: str
    type: str = "string"
    pattern: str | None = None
    least: float | None = None
    most: float | None = None
    choice: tuple[str | int, ...] = ()
    required: bool = False
    null: bool = False
    several: bool = False


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """One call.

    Args:
        method: GET, POST or DELETE.
        path: Its path; `{name}` stands for one segment.
        about: What it does, one sentence.
        run: What answers it; None for files and WebSockets.
        access: Who may call.
        answers: What each status means, beside those that any call may have.
        places: What stands in the path's `{names}`.
        query: What may stand in the query.
        headers: What request headers mean something.
        body: The content types of the request's body, none where it has none.
        fields: Of the body where it is a JSON object.
        gives: Content types of the answer.
        always: Also while the node starts or stops.
        socket: A WebSocket.
    """

    method: str
    path: str
    about: str
    run: Run | None = None
    access: Access = "caller"
    answers: dict[int, str]
    places: tuple[Param, ...] = ()
    query: tuple[Param, ...] = ()
    headers: tuple[Param, ...] = ()
    body: tuple[str, ...] = ()
    fields: tuple[Param, ...] = ()
    gives: tuple[str, ...] = ("application/json",)
    always: bool = False
    socket: bool = False

    @property
    def names(self) -> dict[str, bool] | None:
        """What counts in the query, and whether it may come several times; None: all counts.

        Programs add names of their own to the URL of a WebSocket.
        """
        return {param.name: param.several for param in self.query} if self.socket else None
