"""A relay between the two ends that can hold back bytes and forward them again.

No connection is closed when it stops or resumes: bytes wait meanwhile, as packets wait for
their retransmission, and so do new connections. This simulates a path that dies and recovers
without a packet filter.

It runs as a plain script with the standard library alone, one thread for each direction. Orders
are JSON lines on standard input (see `_Path.obey`); it ends when that input ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final, Literal

Way = Literal["both", "up", "down"]
"""`up` is from the dialer to the listener."""

CHUNK_BYTES: Final = 4096
_BUFFER_BYTES: Final = 16_384
_ESTABLISHED: Final = 1
_EVEN_SECONDS: Final = 0.05
_CONNECT_SECONDS: Final = 5.0
_RST_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class _Path:
    """The relay inside its process; `up` is from the dialer to the listener."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._address, self._target = ("127.0.0.1", 0), target
        self._accepted: list[float] = []
        self._passed = 0
        self._closing = False
        self._gates = {"up": threading.Event(), "down": threading.Event()}
        self._rate: float | None = None
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        for gate in self._gates.values():
            gate.set()
        self._begin()

    def obey(self, order: dict[str, Any]) -> dict[str, Any]:
        """Carry out an order, and return the answer.

        Orders: `pass` (`{"up": bool, "down": bool}`: whether bytes from the dialer, or to it,
        pass), `rate` (bytes a second each way, or None), `reset` (True: an RST to both ends of
        every connection), `listening` (bool: False refuses what is new), `closing` (bool: what is
        new is closed at once).

        Answer: `port`; `accepted`, when connections were accepted (monotonic); `passed`, in bytes.
        """
        for way, passes in order.get("pass", {}).items():
            (self._gates[way].set if passes else self._gates[way].clear)()
        if "rate" in order:
            self._rate = order["rate"]
        if "listening" in order:
            if order["listening"] and self._listener is None:
                self._begin()
            elif not order["listening"] and self._listener is not None:
                listener, self._listener = self._listener, None
                with contextlib.suppress(OSError):
                    listener.shutdown(socket.SHUT_RDWR)
                listener.close()
        self._closing = order.get("closing", self._closing)
        if order.get("reset"):
            self._reset()
        return {"port": self._address[1], "accepted": self._accepted, "passed": self._passed}

    def _begin(self) -> None:
        """Listen."""
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        listener.bind(self._address)
        listener.listen(16)
        self._address = listener.getsockname()
        self._listener = listener
        _thread(self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        """Accept connections until the listener is closed."""
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            self._accepted.append(time.monotonic())
            if self._closing:
                near.close()
            else:
                _thread(self._join, near)

    def _join(self, near: socket.socket) -> None:
        """Connect a connection to the target, once the path is open."""
        self._keep(near)
        for gate in self._gates.values():
            gate.wait()
        far = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._keep(far)  # before it is connected: a reset in between is for both ends
        try:
            if _state(near) != _ESTABLISHED:
                raise OSError("the dialer gave up meanwhile")
            far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
            far.settimeout(_CONNECT_SECONDS)
            far.connect(self._target)
            far.settimeout(None)
        except OSError:
            self._drop(far)
            self._drop(near)
            return
        _thread(self._pump, near, far, "up")
        _thread(self._pump, far, near, "down")

    def _pump(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        """Carry one direction until either end closes; then close both."""
        with contextlib.suppress(OSError):
            while True:
                piece = source.recv(self._most())
                self._gates[way].wait()
                if not piece:
                    break
                if self._rate is not None:
                    time.sleep(len(piece) / self._rate)
                self._passed += len(piece)
                sink.sendall(piece)
        self._gates[way].wait()
        self._drop(source)
        self._drop(sink)

    def _most(self) -> int:
        """Return how many bytes to carry at once: few on a slow path, for an even flow."""
        if self._rate is None:
            return CHUNK_BYTES
        return max(1, min(CHUNK_BYTES, int(self._rate * _EVEN_SECONDS)))

    def _keep(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        with self._lock:
            self._open.add(sock)

    def _drop(self, sock: socket.socket) -> None:
        with self._lock:
            self._open.discard(sock)
        with contextlib.suppress(OSError):
            linger = sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, len(_RST_ON_CLOSE))
            # shutting down what is to be reset would end it in order
            sock.shutdown(socket.SHUT_RD if linger == _RST_ON_CLOSE else socket.SHUT_RDWR)
        sock.close()

    def _reset(self) -> None:
        """Reset every connection, at both ends."""
        with self._lock:
            sockets, self._open = self._open, set()
        for sock in sockets:  # all of them first: a thread that wakes from one closes the other too
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST_ON_CLOSE)
        for sock in sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RD)
            with contextlib.suppress(OSError):
                sock.close()


def _thread(target: Callable[..., None], *arguments: Any) -> None:
    threading.Thread(target=target, args=arguments, daemon=True).start()


def _state(sock: socket.socket) -> int:
    """Return the kernel's state of a TCP connection."""
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


def _main() -> None:
    """Run as the relay."""
    path = _Path((sys.argv[1], int(sys.argv[2])))
    for line in sys.stdin:
        print(json.dumps(path.obey(json.loads(line))), flush=True)
    os._exit(0)


if __name__ == "__main__":
    _main()
