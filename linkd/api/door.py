"""Who may have a WebSocket, and how a page hears why it may not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from linkd.api.callers import Caller
from linkd.api.refusals import Refusal
from linkd.api.request import ApiRequest

Close = Callable[[int, str], None]
"""Closes a WebSocket: code and reason."""

TEXT_PATH: Final = "/ws"
STREAM_PATH: Final = "/v1/stream"

TEXT_SUBPROTOCOL: Final = "linkd.text.1"
"""Offered with the next one by a page: a browser wants one of what it offers answered."""

BEARER_SUBPROTOCOL: Final = "linkd.bearer."
"""A page offers this and its key or token in base64url, where it would set `Authorization`."""

TRY_AGAIN: Final = 1013
REFUSED: Final = 4000
"""Added to the HTTP status of a refusal, it is the code of a close: 4401, 4403."""


def wants_websocket(request: ApiRequest) -> bool:
    """Return whether a request asks for an upgrade to a WebSocket, well formed or not."""
    return "websocket" in _words(request, b"Upgrade") and "upgrade" in _words(
        request, b"Connection"
    )


def check_upgrade(request: ApiRequest, subprotocol: str | None) -> None:
    """Raise Refusal unless a request asks for a WebSocket, with that subprotocol if it is given."""
    if not wants_websocket(request):
        raise Refusal("malformed", "expected a WebSocket upgrade", {"Upgrade": "websocket"})
    version = {"Sec-WebSocket-Version": "13"}
    if request.header("Sec-WebSocket-Version") != "13" or not request.header("Sec-WebSocket-Key"):
        raise Refusal("malformed", "expected WebSocket version 13", version)
    if subprotocol is not None and subprotocol not in offered(request):
        raise Refusal("malformed", f"expected the WebSocket subprotocol {subprotocol}")


def offered(request: ApiRequest) -> list[str]:
    """Return the subprotocols that an upgrade offers."""
    return _words(request, b"Sec-WebSocket-Protocol", lower=False)


def _words(request: ApiRequest, name: bytes, lower: bool = True) -> list[str]:
    """Return the items of a list in a header, which may stand in several lines."""
    values = request.requestHeaders.getRawHeaders(name) or []
    text = b",".join(values).decode("latin-1")
    return [one.strip() for one in (text.lower() if lower else text).split(",")]


def is_from_browser(request: ApiRequest) -> bool:
    """Return whether a browser asks for a WebSocket: its page sees no HTTP answer to that.

    Each browser sends `Origin`; programs that behave like one (`WebSocket` of Node.js) send
    `Sec-Fetch-Mode: websocket`. Other programs send neither, and read status and body.
    """
    return request.header("Origin") is not None or (request.header("Sec-Fetch-Mode") == "websocket")


def answers_by_close(request: ApiRequest) -> bool:
    """Return whether a refusal is answered by a WebSocket that closes at once.

    Never on the path of linkd's own stream, nor where something is wrong with the upgrade itself.
    """
    try:
        check_upgrade(request, None)
        return (
            request.method == b"GET"
            and request.path != STREAM_PATH.encode()
            and request.header("Content-Length") in (None, "0")
            and request.header("Transfer-Encoding") is None
            and is_from_browser(request)
        )
    except Refusal:
        return False


def close_of(refusal: Refusal) -> tuple[int, str]:
    """Return code and reason of the close that says a refusal."""
    if refusal.status == 503:
        return TRY_AGAIN, refusal.message
    return REFUSED + min(refusal.status, 499), refusal.message


class RefusedSession:
    """What is spoken on a WebSocket that was opened only to say why it is refused.

    Args:
        caller: Who is at the other end, as far as that is known.
        close: Closes the WebSocket.
        refusal: Why.
    """

    def __init__(self, caller: Caller, close: Close, refusal: Refusal) -> None:
        self.caller = caller
        self.busy = False
        self._close = close
        self._refusal = refusal

    def opened(self) -> None:
        """It is open: close it."""
        self._close(*close_of(self._refusal))

    def ignore(self, *_: object) -> None:
        """Nothing else happens."""

    go_on = allow = message = turned = room = closed = receiving = ignore
