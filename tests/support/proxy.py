"""A proxy on loopback with a mood: HTTP CONNECT and SOCKS5, in threads of its own."""

from __future__ import annotations

import contextlib
import socket
import threading
from base64 import b64encode
from collections.abc import Callable
from typing import Final, Literal

Mood = Literal[
    "good", "refusing", "mute", "slow", "closing", "headers", "garbage", "unable", "talking"
]
"""How it answers: as it should; 403 or reply 2; not at all; after `SLOW` seconds; by closing; with
1 MB of headers; with what is no answer; 503 or reply 4; with words behind the answer."""

SLOW: Final = 0.4
MEGABYTE: Final = 1 << 20
SOCKS: Final = {"good": 0, "slow": 0, "refusing": 2, "unable": 4}


class Proxy:
    """A proxy; a context that ends it.

    Args:
        login: `USER:PASSWORD` that it asks for, or None.
        route: Returns where it connects to for the host and port that a client asked for.

    Attributes:
        asked: The hosts and ports that clients asked for.
        port: Where it listens; a restart keeps it.
        flowing: Cleared, the tunnels pass nothing on and stay open.
        tunnels: How many tunnels are open.
    """

    def __init__(
        self,
        login: str | None = None,
        route: Callable[[str, int], tuple[str, int]] = lambda host, port: (host, port),
        mood: Mood = "good",
    ) -> None:
        self.mood: Mood = mood
        self.login = login
        self.asked: list[tuple[str, int]] = []
        self.port = 0
        self.tunnels = 0
        self.flowing = threading.Event()
        self.flowing.set()
        self._route = route
        self._lock = threading.Lock()
        self._listening: socket.socket | None = None
        self._open: set[socket.socket] = set()

    def __enter__(self) -> Proxy:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen, on the port of before if there was one."""
        self._listening = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listening,), daemon=True).start()

    def stop(self) -> None:
        """End all connections and stop listening."""
        assert self._listening is not None
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        with self._lock:
            for each in self._open:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """Serve a client until one of both ends closes."""
        with self._lock:
            self._open.add(client)
        try:
            with client, contextlib.suppress(OSError, EOFError):
                first = _exactly(client, 1)
                asked = self._socks(client) if first == b"\x05" else self._http(client, first)
                if asked is not None:
                    self._relay(client, asked)
        finally:
            with self._lock:
                self._open.discard(client)

    def _http(self, client: socket.socket, head: bytes) -> socket.socket | None:
        while not head.endswith(b"\r\n\r\n"):
            head += _exactly(client, 1)
        lines = head.decode().split("\r\n")
        host, _, port = lines[0].split(" ")[1].rpartition(":")
        self.asked.append((host.strip("[]"), int(port)))
        given = [line[21:] for line in lines if line.lower().startswith("proxy-authorization: ")]
        if self.login is not None and given != [f"Basic {b64encode(self.login.encode()).decode()}"]:
            # It repeats in its words what it got: nobody may print them.
            words = f"\r\nProxy-Authenticate: Basic\r\nX-Got: {given}\r\nContent-Length: 0\r\n\r\n"
            client.sendall(f"HTTP/1.1 407 No {self.login}{words}".encode())
            return None
        status = {"refusing": b"403 No", "unable": b"503 Unable"}.get(self.mood)
        if status is not None:
            client.sendall(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")
        elif self._answers(client):
            target = self._connect()
            client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            return target
        return None

    def _socks(self, client: socket.socket) -> socket.socket | None:
        methods = _exactly(client, _exactly(client, 1)[0])
        method = 0 if self.login is None else 2
        if method not in methods:
            client.sendall(b"\x05\xff")
            return None
        client.sendall(bytes((5, method)))
        if self.login is not None:
            _exactly(client, 1)
            user, password = (_exactly(client, _exactly(client, 1)[0]) for _ in range(2))
            is_known = b":".join((user, password)).decode() == self.login
            client.sendall(b"\x01\x00" if is_known else b"\x01\x01")
            if not is_known:
                return None
        kind = _exactly(client, 4)[3]
        if kind == 3:
            host = _exactly(client, _exactly(client, 1)[0]).decode()
        else:
            family, size = (socket.AF_INET, 4) if kind == 1 else (socket.AF_INET6, 16)
            host = socket.inet_ntop(family, _exactly(client, size))
        self.asked.append((host, int.from_bytes(_exactly(client, 2), "big")))
        if self.mood in SOCKS:
            if not self._answers(client):
                return None
            reply = SOCKS[self.mood]
            target = self._connect() if reply == 0 else None
            client.sendall(bytes((5, reply, 0, 1)) + bytes(6))
            return target
        self._answers(client)
        return None

    def _answers(self, client: socket.socket) -> bool:
        """Act as the mood is; return whether it answers as it should."""
        if self.mood == "mute":
            client.recv(1)
        elif self.mood == "slow":
            threading.Event().wait(SLOW)
        elif self.mood == "headers":
            client.sendall(b"HTTP/1.1 200 OK\r\n" + b"X-Long: 0123456789\r\n" * (MEGABYTE // 20))
        elif self.mood == "talking":
            client.sendall(b"HTTP/1.1 200 OK\r\n\r\nwelcome")
        elif self.mood == "garbage":
            client.sendall(b"220 mail.example.net ESMTP\r\n")
        return self.mood not in ("mute", "closing", "headers", "garbage", "talking")

    def _connect(self) -> socket.socket:
        return socket.create_connection(self._route(*self.asked[-1]), 5.0)

    def _relay(self, client: socket.socket, target: socket.socket) -> None:
        """Pass bytes both ways until one end closes."""
        target.settimeout(None)
        with self._lock:
            self._open.add(target)
            self.tunnels += 1
        back = threading.Thread(target=self._copy, args=(target, client), daemon=True)
        back.start()
        self._copy(client, target)
        back.join()
        with self._lock:
            self.tunnels -= 1
            self._open.discard(target)
        target.close()

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        """Pass bytes on until there are no more; then shut down both directions of both."""
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                self.flowing.wait()
                sink.sendall(data)
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


def _exactly(client: socket.socket, size: int) -> bytes:
    """Return the next bytes of a client; raise EOFError at its end."""
    data = b""
    while len(data) < size:
        more = client.recv(size - len(data))
        if not more:
            raise EOFError
        data += more
    return data
