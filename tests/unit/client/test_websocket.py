"""The client's WebSocket without I/O, against the same library's server."""

from __future__ import annotations

import pytest
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from linkd.client.errors import ClientError, Refused
from linkd.client.websocket import WebSocket

URL = "ws://localhost/v1/stream"


def pair(subprotocol: str = "linkd.client.1") -> tuple[WebSocket, ServerProtocol]:
    client = WebSocket(URL, "linkd.client.1", {"Authorization": "Bearer k"})
    server = ServerProtocol(subprotocols=[Subprotocol(subprotocol)])
    server.receive_data(client.to_send())
    (request,) = server.events_received()
    assert isinstance(request, Request)
    assert request.headers["Authorization"] == "Bearer k"
    server.send_response(server.accept(request))
    return client, server


def said(server: ServerProtocol) -> bytes:
    return b"".join(server.data_to_send())


def test_messages_both_ways_however_they_are_cut() -> None:
    client, server = pair()
    server.send_binary(b"one")
    server.send_binary(b"tw", fin=False)
    server.send_ping(b"p")
    server.send_continuation(b"o", fin=True)
    got = [message for byte in said(server) for message in client.receive(bytes((byte,)))]
    assert got == [b"one", b"two"]
    assert client.opened
    client.send_binary(b"three")
    server.receive_data(client.to_send())
    frames = [frame for frame in server.events_received() if isinstance(frame, Frame)]
    assert [(frame.opcode, bytes(frame.data)) for frame in frames] == [
        (Opcode.PONG, b"p"),
        (Opcode.BINARY, b"three"),
    ]


def test_a_refusal_has_the_status() -> None:
    client, _ = pair()
    with pytest.raises(Refused) as refused:
        client.receive(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno")
    assert (refused.value.status, refused.value.error) == (401, "unauthorized")


def test_another_subprotocol_is_refused() -> None:
    client = WebSocket(URL, "linkd.client.1", {})
    server = ServerProtocol()
    server.receive_data(client.to_send())
    (request,) = server.events_received()
    assert isinstance(request, Request)
    server.send_response(server.accept(request))
    with pytest.raises(ClientError, match="expected subprotocol"):
        client.receive(said(server))


def test_what_is_no_websocket_is_an_error() -> None:
    client, _ = pair()
    with pytest.raises(ClientError):
        client.receive(b"SSH-2.0-OpenSSH\r\n\r\n")


def test_a_close_says_why() -> None:
    client, server = pair()
    server.send_close(1001, "restart")
    assert client.receive(said(server)) == []
    assert client.closing
    client.receive_eof()
    assert client.farewell == "1001 restart"
    client.close()


def test_a_refusal_in_the_words_of_the_api() -> None:
    client, _ = pair()
    body = b'{"error":"too-many","message":"no place (limits.api_connections_per_address)"}'
    with pytest.raises(Refused) as refused:
        client.receive(
            b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        )
    assert str(refused.value) == "too-many: no place (limits.api_connections_per_address)"
    assert refused.value.status == 503
