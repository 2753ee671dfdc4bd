"""Plain HTTP/1.1 over the daemon's unix socket, without a library, so that commands start fast."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeVar

import msgspec

from linkd.client.errors import ClientError, NoDaemon, Refused, TimedOut

MAX_HEAD_BYTES: Final = 65_536
MAX_ANSWER_BYTES: Final = 256 * 1024 * 1024
_READ_BYTES: Final = 65_536

T = TypeVar("T")


class Answer(msgspec.Struct, frozen=True):
    """One answer: status, headers with lower-case names, body."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the body as JSON; raise ClientError if it is malformed."""
        return self.decode(Any, "JSON")

    def decode(self, kind: type[T], what: str) -> T:
        """Return the body as a `kind`; raise ClientError, which names `what`, if it is none."""
        try:
            return msgspec.json.decode(self.body, type=kind)
        except msgspec.DecodeError as error:
            raise ClientError(f"expected {what} from the daemon: {error}") from None


def call(
    path: str,
    method: str,
    target: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    timeout: float | None = 10.0,
) -> Answer:
    """Make one call and return its answer, whatever its status.

    Args:
        path: The daemon's unix socket.
        method: GET, POST or DELETE.
        target: Path and query, already quoted.
        body: What to send, or None.
        headers: Further headers.
        timeout: Seconds without a byte until it counts as failed; None waits forever.

    Raises:
        NoDaemon: Nothing answers at the socket.
        ClientError: The answer is not HTTP, or ends too early.
    """
    with connected(path, timeout) as exchange:
        exchange.send(method, target, body, headers)
        return Answer(exchange.status, exchange.headers, b"".join(exchange.pieces()))


def expect(answer: Answer) -> Answer:
    """Return `answer` if its status is 2xx.

    Raises:
        TimedOut: 504: it is stored, but the peer did not receive it in time.
        Refused: Any other refusal, with the daemon's own words.
    """
    if 200 <= answer.status < 300:
        return answer
    try:
        refusal = msgspec.json.decode(answer.body)
    except msgspec.DecodeError:
        refusal = None
    if not isinstance(refusal, dict):
        refusal = {
            "error": str(answer.status),
            "message": answer.body[:200].decode("utf-8", "replace"),
        }
    offset = refusal.get("offset")
    raise (TimedOut if answer.status == 504 else Refused)(
        str(refusal.get("error", answer.status)),
        str(refusal.get("message", "")),
        answer.status,
        offset if isinstance(offset, int) else None,
    )


@contextlib.contextmanager
def connected(path: str, timeout: float | None) -> Iterator[Exchange]:
    """Yield a connection to the daemon; close it at the end.

    Raises:
        NoDaemon: Nothing answers at the socket.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
        stream.settimeout(timeout)
        try:
            stream.connect(path)
        except PermissionError:
            raise NoDaemon(
                f"{path}: permission denied; call as root, or as a user in the socket's group"
                " (`sudo adduser NAME linkd`, then log in again)"
            ) from None
        except OSError as error:
            raise NoDaemon(f"no daemon at {path}: {error.strerror or error}") from None
        yield Exchange(path, stream)


class Exchange:
    """One connection, one request, one answer that may be endless.

    Attributes:
        status: The answer's status, once sent.
        headers: Its headers, names in lower case.
    """

    def __init__(self, path: str, stream: socket.socket) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self._path = path
        self._rest = b""
        self._socket = stream

    def send(
        self,
        method: str,
        target: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Send the request and read the head of the answer into `status` and `headers`."""
        lines = [f"{method} {target} HTTP/1.1", "Host: localhost", "Connection: close"]
        if body is not None or method == "POST":
            lines.append(f"Content-Length: {len(body or b'')}")
        for name, value in (headers or {}).items():
            if "\r" in value or "\n" in value:
                raise Refused("malformed", f"a line end in {name}")
            lines.append(f"{name}: {value}")
        head = ("\r\n".join(lines) + "\r\n\r\n").encode()
        try:
            self._socket.sendall(head + (body or b""))
        except (BrokenPipeError, ConnectionResetError):
            pass  # It may have answered (413) without reading all of it.
        except OSError as error:
            raise self._lost(error) from None
        self._read_head()

    def pieces(self) -> Iterator[bytes]:
        """Yield the body as it arrives.

        Raises:
            NoDaemon: The daemon went away or fell silent in the middle.
            ClientError: The body is malformed or above 256 MiB.
        """
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            yield from self._chunks()
        elif "content-length" in self.headers:
            yield from self._exactly(_number(self.headers["content-length"], 10))
        elif self.status not in (204, 304):
            while piece := self._take_some():
                yield piece

    def lines(self) -> Iterator[bytes]:
        """Yield the body's lines as they arrive, without line ends."""
        rest = b""
        for piece in self.pieces():
            *whole, rest = (rest + piece).split(b"\n")
            yield from (line.rstrip(b"\r") for line in whole)

    def _read_head(self) -> None:
        while b"\r\n\r\n" not in self._rest:
            if len(self._rest) > MAX_HEAD_BYTES:
                raise ClientError(f"expected HTTP from {self._path}: its head has no end")
            piece = self._receive()
            if not piece:
                raise NoDaemon(f"the daemon at {self._path} closed without an answer")
            self._rest += piece
        head, self._rest = self._rest.split(b"\r\n\r\n", 1)
        first, *rest = head.decode("latin-1").split("\r\n")
        words = first.split(" ", 2)
        if len(words) < 2 or not words[0].startswith("HTTP/1."):
            raise ClientError(f"expected HTTP from {self._path}, got {first[:60]!r}")
        self.status = _number(words[1], 10)
        for line in rest:
            name, _, value = line.partition(":")
            self.headers[name.strip().lower()] = value.strip()

    def _chunks(self) -> Iterator[bytes]:
        while True:
            size = _number(self._line().split(b";")[0].decode("latin-1"), 16)
            yield from self._exactly(size)
            if size == 0:
                return
            self._line()

    def _line(self) -> bytes:
        while b"\r\n" not in self._rest:
            piece = self._receive()
            if not piece or len(self._rest) > MAX_HEAD_BYTES:
                raise NoDaemon(f"the daemon at {self._path} broke off in the middle of an answer")
            self._rest += piece
        line, self._rest = self._rest.split(b"\r\n", 1)
        return line

    def _exactly(self, size: int) -> Iterator[bytes]:
        if not 0 <= size <= MAX_ANSWER_BYTES:
            raise ClientError(f"expected an answer of at most {MAX_ANSWER_BYTES} bytes, got {size}")
        while size:
            piece = self._take_some(size)
            if not piece:
                raise NoDaemon(f"the daemon at {self._path} broke off in the middle of an answer")
            size -= len(piece)
            yield piece

    def _take_some(self, most: int = _READ_BYTES) -> bytes:
        """Return at most `most` bytes, from what was already read if there is any."""
        if not self._rest:
            self._rest = self._receive()
        piece, self._rest = self._rest[:most], self._rest[most:]
        return piece

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(_READ_BYTES)
        except OSError as error:
            raise self._lost(error) from None

    def _lost(self, error: OSError) -> NoDaemon:
        if isinstance(error, TimeoutError):
            return NoDaemon(
                f"the daemon at {self._path} did not answer in {self._socket.gettimeout():.0f} s"
            )
        return NoDaemon(f"the daemon at {self._path} went away: {error.strerror or error}")


def _number(text: str, base: int) -> int:
    try:
        return int(text.strip(), base)
    except ValueError:
        raise ClientError(f"expected a number from the daemon, got {text[:40]!r}") from None
