"""A daemon that knows only HTTP on a unix socket, with canned answers, for the commands' tests."""

from __future__ import annotations

import socketserver
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Self

import msgspec


class Asked(msgspec.Struct, frozen=True):
    """One request as it came."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


class HttpDaemon:
    """Answers what it was told to answer, by method and path.

    Attributes:
        answers: `METHOD path` (without the query): (status, body as JSON, or bytes as they are).
        asked: The requests that came.
        chunked: Whether bodies are sent in chunks.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answers: dict[str, tuple[int, Any]] = {}
        self.asked: list[Asked] = []
        self.chunked = False
        self._server = _Server(str(path), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        daemon = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                daemon.asked.append(Asked(self.command, self.path, headers, body))
                status, given = daemon.answers.get(
                    f"{self.command} {self.path.partition('?')[0]}",
                    (404, {"error": "not-found", "message": "there is no such path"}),
                )
                said = given if isinstance(given, bytes) else msgspec.json.encode(given)
                self.send_response(status)
                if daemon.chunked:
                    self.send_header("Transfer-Encoding", "chunked")
                    self.end_headers()
                    half = len(said) // 2
                    for piece in (said[:half], said[half:], b""):
                        if piece:
                            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                    self.wfile.write(b"0\r\n\r\n")
                else:
                    self.send_header("Content-Length", str(len(said)))
                    self.end_headers()
                    self.wfile.write(said)

            do_GET = do_POST = do_DELETE = _answer

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

            def address_string(self) -> str:
                return "unix"

        return Handler


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
