"""HTTP over the socket: answers whole, chunked, endless, malformed, broken off."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from linkd.client.errors import ClientError, NoDaemon, Refused, TimedOut
from linkd.client.http import Answer, call, connected, expect


@contextmanager
def answering(path: Path, said: bytes, *, linger: bool = False) -> Iterator[str]:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    over = threading.Event()

    def serve() -> None:
        connection, _ = listener.accept()
        connection.recv(65536)
        for start in range(0, len(said), 7):
            connection.sendall(said[start : start + 7])
        if linger:
            over.wait(5)
        connection.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield str(path)
    finally:
        over.set()
        thread.join(5)
        listener.close()


HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "said",
    [
        HEAD + b"Content-Length: 11\r\n\r\n[1,2,3,4,5]",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n4;x=y\r\n[1,2\r\n7\r\n,3,4,5]\r\n0\r\n\r\n",
        HEAD + b"\r\n[1,2,3,4,5]",
    ],
)
def test_a_body_of_any_framing_is_read(tmp_path: Path, said: bytes) -> None:
    with answering(tmp_path / "s", said) as path:
        assert call(path, "GET", "/").json() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (b"", NoDaemon),
        (b"SSH-2.0\r\n\r\n", ClientError),
        (b"HTTP/1.1 abc\r\n\r\n", ClientError),
        (HEAD + b"Content-Length: 11\r\n\r\n[1", NoDaemon),
        (HEAD + b"Content-Length: -1\r\n\r\n", ClientError),
        (HEAD + b"Content-Length: 99999999999\r\n\r\n", ClientError),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n4\r\n[1", NoDaemon),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n4", NoDaemon),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n", ClientError),
    ],
)
def test_broken_answers_are_errors(tmp_path: Path, said: bytes, kind: type[Exception]) -> None:
    with answering(tmp_path / "s", said) as path, pytest.raises(kind):
        call(path, "GET", "/")


def test_lines_come_as_they_are_sent(tmp_path: Path) -> None:
    said = HEAD + b"Content-Type: text/event-stream\r\n\r\n: hi\r\ndata: 1\n\n"
    with answering(tmp_path / "s", said, linger=True) as path, connected(path, 5.0) as exchange:
        exchange.send("GET", "/v1/events")
        lines = exchange.lines()
        assert [next(lines) for _ in range(3)] == [b": hi", b"data: 1", b""]


def test_silence_is_an_error_in_time(tmp_path: Path) -> None:
    with (
        answering(tmp_path / "s", HEAD, linger=True) as path,
        pytest.raises(NoDaemon, match="did not answer"),
    ):
        call(path, "GET", "/", timeout=0.1)


def test_a_daemon_that_is_away_is_named(tmp_path: Path) -> None:
    with pytest.raises(NoDaemon, match="no daemon at"):
        call(str(tmp_path / "none"), "GET", "/")


def test_headers_cannot_be_smuggled(tmp_path: Path) -> None:
    with (
        answering(tmp_path / "s", HEAD + b"\r\n", linger=True) as path,
        connected(path, 1.0) as exchange,
    ):
        with pytest.raises(Refused):
            exchange.send("GET", "/", headers={"Linkd-Type": "a\r\nX: y"})
        exchange.send("GET", "/")


def test_refusals_carry_the_daemons_words() -> None:
    assert expect(Answer(201, {}, b"")).status == 201
    with pytest.raises(Refused) as refused:
        expect(Answer(403, {}, b'{"error":"channel-refused","message":"no"}'))
    assert (refused.value.error, refused.value.status) == ("channel-refused", 403)
    with pytest.raises(TimedOut) as late:
        expect(Answer(504, {}, b'{"error":"timeout","message":"late","offset":7}'))
    assert late.value.offset == 7
    with pytest.raises(Refused, match="502: oops"):
        expect(Answer(502, {}, b"oops"))
    with pytest.raises(ClientError):
        Answer(200, {}, b"{").json()
