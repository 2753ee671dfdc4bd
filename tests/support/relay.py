"""A TCP relay that can be slow, late, frozen, rude or gone: a bad path in user space.

Runs as a process of its own (`python -m tests.support.relay ADDRESS PORT TARGET PORT`), so that it
can stand in a namespace; it is told what to do by JSON lines and answers each with its counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
import sys
import time
from collections.abc import Sequence
from typing import Any

from tests.support.child import Child
from tests.support.lab import Namespace

CHUNK = 4096


class _Path:
    """The relay inside its process."""

    def __init__(self, listen: tuple[str, int], target: tuple[str, int]) -> None:
        self.listen, self.target = listen, target
        self.rate: float | None = None
        self.delay = 0.0
        self.mode = "forward"
        self.thawed = asyncio.Event()
        self.thawed.set()
        self.accepted: list[float] = []
        self.passed = 0
        self.server: asyncio.Server | None = None
        self.open: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        listener = socket.socket(
            socket.AF_INET6 if ":" in self.listen[0] else socket.AF_INET, socket.SOCK_STREAM
        )
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * CHUNK)
        listener.bind(self.listen)
        self.listen = listener.getsockname()[:2]
        self.server = await asyncio.start_server(self._accept, sock=listener, limit=CHUNK)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted.append(time.monotonic())
        self.open.add(writer)
        try:
            if self.mode == "close":
                return
            if self.mode == "silent":
                while await reader.read(CHUNK):
                    pass
                return
            await self._forward(reader, writer)
        except OSError:
            pass
        finally:
            self.open.discard(writer)
            writer.close()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sock = socket.socket(
            socket.AF_INET6 if ":" in self.target[0] else socket.AF_INET, socket.SOCK_STREAM
        )
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * CHUNK)
        try:
            await asyncio.get_running_loop().sock_connect(sock, self.target)
        except BaseException:
            sock.close()
            raise
        far_reader, far_writer = await asyncio.open_connection(sock=sock, limit=CHUNK)
        self.open.add(far_writer)
        tasks = [
            asyncio.create_task(self._pump(reader, far_writer)),
            asyncio.create_task(self._pump(far_reader, writer)),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            self.open.discard(far_writer)
            far_writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for stream in (writer,):
            stream.transport.set_write_buffer_limits(high=CHUNK)
        late: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def deliver() -> None:
            while True:
                due, chunk = await late.get()
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                await self.thawed.wait()
                writer.write(chunk)
                await writer.drain()

        delivery = asyncio.create_task(deliver())
        try:
            with contextlib.suppress(OSError):
                while chunk := await reader.read(CHUNK):
                    self.passed += len(chunk)
                    if self.rate is not None:
                        await asyncio.sleep(len(chunk) / self.rate)
                    await self.thawed.wait()
                    if self.delay:
                        late.put_nowait((time.monotonic() + self.delay, chunk))
                        continue
                    writer.write(chunk)
                    await writer.drain()
        finally:
            delivery.cancel()

    async def obey(self, order: dict[str, Any]) -> dict[str, Any]:
        if "rate" in order:
            self.rate = order["rate"]
        if "delay" in order:
            self.delay = float(order["delay"])
        if "mode" in order:
            self.mode = str(order["mode"])
        if "frozen" in order:
            (self.thawed.clear if order["frozen"] else self.thawed.set)()
        if order.get("reset"):
            for writer in tuple(self.open):
                sock = writer.get_extra_info("socket")
                with contextlib.suppress(OSError):  # it may be closed already
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
        if "listening" in order:
            await self._listening(bool(order["listening"]))
        return {"accepted": self.accepted, "passed": self.passed, "port": self.listen[1]}

    async def _listening(self, wanted: bool) -> None:
        if not wanted and self.server is not None:
            self.server.close()
            self.server = None
        if wanted and self.server is None:
            await self.start()


async def _main(arguments: Sequence[str]) -> None:
    path = _Path((arguments[0], int(arguments[1])), (arguments[2], int(arguments[3])))
    await path.start()
    loop = asyncio.get_running_loop()
    print(json.dumps(await path.obey({})), flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        print(json.dumps(await path.obey(json.loads(line))), flush=True)
    os._exit(0)


class Relay(Child):
    """A relay process; a context that ends it and all its connections.

    Attributes:
        port: Where it listens.
    """

    _name = "relay"

    def __init__(
        self,
        target: tuple[str, int],
        listen: tuple[str, int] = ("127.0.0.1", 0),
        host: Namespace | None = None,
    ) -> None:
        """Start it, on this machine or inside a host; at first it forwards to `target`."""
        addresses = (listen[0], str(listen[1]), target[0], str(target[1]))
        super().__init__(("tests.support.relay", *addresses), host)
        try:
            self.port = int(self.answer()["port"])
        except BaseException:
            self.close()
            raise

    def tell(self, **order: Any) -> dict[str, Any]:
        """Give an order and return the counts.

        Orders: `rate` (bytes a second or None), `delay` (seconds, of what comes from now on),
        `frozen` (bool: nothing is read any more), `mode` (`forward`; `close`: accept, then close;
        `silent`: accept, never answer), `reset=True` (RST to both ends), `listening` (bool).

        Returns:
            `accepted` (monotonic seconds of each), `passed` (bytes), `port`.

        Raises:
            RuntimeError: The relay has gone, or did not answer within 10 s.
        """
        return self.ask(**order)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1:]))
