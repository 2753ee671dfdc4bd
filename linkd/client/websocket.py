"""The WebSocket under a stream, without any I/O: bytes in, messages out, and the reverse.

The `websockets` library implements RFC 6455; asyncio and Twisted only carry the bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec
from websockets.client import ClientProtocol
from websockets.exceptions import InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from linkd.client.errors import ClientError, Refused

MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024


class WebSocket(ClientProtocol):
    """One client connection of the library, which also assembles messages from frames.

    Attributes:
        opened: The daemon has accepted the upgrade.

    Args:
        url: `ws://` or `wss://` with path and query; over a unix socket only its path counts.
        subprotocol: The only one that is offered; the daemon must accept it.
        headers: Further headers of the request.
    """

    def __init__(self, url: str, subprotocol: str, headers: Mapping[str, str]) -> None:
        super().__init__(
            parse_uri(url), subprotocols=[Subprotocol(subprotocol)], max_size=MAX_MESSAGE_BYTES
        )
        self.opened = False
        self._wanted = subprotocol
        request = self.connect()
        for name, value in headers.items():
            request.headers[name] = value
        self.send_request(request)
        self._pieces: list[bytes] = []

    @property
    def closing(self) -> bool:
        """Whether either end has begun to close, or the connection is broken."""
        return self.state in (State.CLOSING, State.CLOSED)

    @property
    def farewell(self) -> str:
        """The daemon's reason for closing, if it gave one."""
        code, reason = self.close_code, self.close_reason
        return "the connection was lost" if code in (None, 1006) else f"{code} {reason}".strip()

    def to_send(self) -> bytes:
        """Return what the transport must send now, in order; empty if nothing."""
        pieces = self.data_to_send()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def close(self) -> None:
        """Queue the closing handshake, if the connection is open."""
        if self.state is State.OPEN:
            self.send_close(1000)

    def receive(self, received: bytes) -> list[bytes]:
        """Take bytes from the transport and return the messages that they complete.

        Raises:
            Refused: The daemon refused the upgrade; it has the HTTP status.
            ClientError: The answer is not a WebSocket, or has another subprotocol.
        """
        self.receive_data(received)
        messages: list[bytes] = []
        for event in self.events_received():
            if isinstance(event, Response):
                self._upgraded(event)
            elif isinstance(event, Frame):
                self._take(event, messages)
        if not self.opened and self.handshake_exc is not None:
            raise _refusal(self.handshake_exc)
        return messages

    def _upgraded(self, response: Response) -> None:
        if self.handshake_exc is not None:
            raise _refusal(self.handshake_exc, response)
        if self.subprotocol != self._wanted:
            raise ClientError(
                f"expected subprotocol {self._wanted}, got {self.subprotocol or 'none'}"
            )
        self.opened = True

    def _take(self, frame: Frame, messages: list[bytes]) -> None:
        """Assemble messages from frames; the library has already answered pings and closes."""
        if frame.opcode not in (Opcode.BINARY, Opcode.CONT):
            return
        if frame.fin and not self._pieces:
            messages.append(bytes(frame.data))
            return
        self._pieces.append(bytes(frame.data))
        if frame.fin:
            messages.append(b"".join(self._pieces))
            self._pieces.clear()


class _RefusalBody(msgspec.Struct):
    """The body of a refusal, docs/api.md."""

    error: str
    message: str = ""


def _refusal(error: Exception, response: Response | None = None) -> ClientError:
    """Return why the upgrade failed as one of our errors."""
    if isinstance(error, InvalidStatus):
        response = error.response
    if response is not None:
        body = bytes(response.body or b"")
        try:
            refusal = msgspec.json.decode(body, type=_RefusalBody)
        except (msgspec.DecodeError, UnicodeDecodeError):
            word = response.reason_phrase.lower() or "refused"
            refusal = _RefusalBody(word, body[:300].decode("utf-8", "replace").strip())
        return Refused(refusal.error, refusal.message, response.status_code)
    return ClientError(f"expected a WebSocket: {error}")
