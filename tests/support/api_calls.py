"""Calls on the API from a thread: plain HTTP over loopback and the unix socket."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from twisted.internet import reactor as installed
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from linkd.api.server import ApiServer
from tests.support.fake_node import KEY, FakeNode, make_config
from tests.support.unix_http import UnixConnection

reactor: Any = installed
Result = TypeVar("Result")
LIMIT = 20.0


class Answered:
    """An answer: status, headers by lower-case name, body."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    def json(self) -> Any:
        return json.loads(self.body)


class Served:
    """An API on a fake node, and how to call it."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.config = make_config(directory, **settings)
        self.node = FakeNode(self.config, reactor)
        self.api = ApiServer(self.node, self.config, reactor)
        self.api.listen()
        self.path = self.config.api.socket

    @property
    def port(self) -> int:
        _, http = self.api._ports
        port: int = http.getHost().port
        return port

    def fetch(
        self,
        method: str,
        target: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        local: bool = True,
    ) -> Answered:
        """Make one call; blocks, for a thread."""
        if local:
            connection: http.client.HTTPConnection = UnixConnection(self.path, LIMIT)
        else:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT)
        try:
            connection.request(method, target, body, dict(headers or {}))
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Answered(answer.status, found, answer.read())
        finally:
            connection.close()

    def call(self, method: str, target: str, *args: Any, **rest: Any) -> Deferred[Answered]:
        """Make one call on the unix socket."""
        return thread(lambda: self.fetch(method, target, *args, **rest))

    def keyed(
        self,
        method: str,
        target: str,
        body: bytes | None = None,
        key: str | None = KEY,
        **headers: str,
    ) -> Deferred[Answered]:
        """Make one call over TCP with a key; `_` in the name of a header stands for `-`."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if key is not None:
            given["Authorization"] = f"Bearer {key}"
        return thread(lambda: self.fetch(method, target, body, given, local=False))

    def raw(self, data: bytes, local: bool = False, wait: float = LIMIT) -> bytes:
        """Send bytes and return all that comes until the end; blocks."""
        if local:
            wire = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            wire.settimeout(wait)
            wire.connect(self.path)
        else:
            wire = socket.create_connection(("127.0.0.1", self.port), timeout=wait)
        with wire:
            wire.sendall(data)
            got = b""
            while piece := wire.recv(65_536):
                got += piece
            return got

    def stop(self) -> Deferred[None]:
        """Stop the API."""
        return self.api.stop()


def thread(call: Callable[[], Result]) -> Deferred[Result]:
    """Run something that blocks in a thread, for 30 s at most."""
    return deferToThread(call).addTimeout(30.0, reactor)


def pause(seconds: float) -> Deferred[None]:
    """Wait."""
    done: Deferred[None] = Deferred()
    reactor.callLater(seconds, done.callback, None)
    return done


async def until(true: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait until something is true; fail when it is not in time."""
    end = reactor.seconds() + seconds
    while not true():
        assert reactor.seconds() < end, "it did not become true in time"
        await pause(0.01)
