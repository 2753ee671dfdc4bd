"""Whole nodes, on real disks and loopback sockets, in the test's own reactor."""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable
from pathlib import Path

import msgspec
from twisted.internet import reactor, threads
from twisted.internet.task import deferLater

from linkd.config import Config, ListenSettings, NodeSettings, PeerSettings
from linkd.log import open_cursors, open_log
from linkd.net.connect import Resolver, look_up
from linkd.net.dialer import DialerContext, LinkDialer
from linkd.net.listener import Listener
from linkd.node import Node, Stores
from linkd.node.outages import Outages

SECRET = "a secret of the tests, long enough for linkd"


def peer(folder: Path, name: str, port: int | None = None, **rest: object) -> PeerSettings:
    """Return the settings of a peer: one that we dial at `port`, or one that dials us."""
    secret = folder / "secret"
    if not secret.exists():
        secret.touch(0o600)
        secret.write_text(SECRET)
    dial = () if port is None else (f"ws://127.0.0.1:{port}/link",)
    return PeerSettings(name=name, dial=dial, secret_file=str(secret), **rest)  # type: ignore[arg-type]


class RealNode:
    """A node, and a listener where it has one."""

    def __init__(
        self,
        folder: Path,
        name: str,
        peers: tuple[PeerSettings, ...],
        listens: bool = False,
        **sections: object,
    ) -> None:
        listen = ListenSettings(address="127.0.0.1:0") if listens else None
        state = folder / name
        state.mkdir(exist_ok=True)
        config = Config(
            node=NodeSettings(name=name, state_dir=str(state)),
            listen=listen,
            peers=peers,
            **sections,
        )  # type: ignore[arg-type]
        post: Callable[[Callable[[], None]], None] = reactor.callFromThread
        self.log = open_log(config.log, state, name, post)
        self.cursors = open_cursors(self.log, state, post)
        resolver = Resolver(reactor, lambda host: threads.deferToThread(look_up, host))
        origin = DialerContext(name, secrets.token_hex(8), reactor, resolver)
        timeout = config.reconnect.connect_timeout
        self.node = Node(
            config,
            Stores(self.log, self.cursors, Outages(self.cursors)),
            reactor,
            lambda node, driver: LinkDialer(driver, driver.settings, origin, timeout),
            random.Random(),
        )
        self.listener: Listener | None = None
        self.port = 0
        if listens:
            self.listen()
        self.node.start()

    def listen(self) -> None:
        """Listen, after `deafen` at the same port again."""
        address = ListenSettings(address=f"127.0.0.1:{self.port}")
        config = msgspec.structs.replace(self.node.config, listen=address)
        self.listener = Listener(self.node, config, reactor, None, None)
        self.listener.start()
        self.port = self.listener.port_number

    async def deafen(self, name: str) -> None:
        """Listen no more, and drop the connection of a peer."""
        assert self.listener is not None
        await self.listener.stop()
        link = self.node.link(name)
        assert link is not None
        if link.connection is not None:
            link.connection.abort("closed", "cut by the test")

    async def stop(self) -> None:
        """End it and all that it has open; once."""
        if self.node.stopping:
            return
        if self.listener is not None:
            await self.listener.stop()
        await self.node.stop("the test ends")


async def until(true: Callable[[], bool], within: float = 30.0) -> None:
    """Wait until something is true.

    Raises:
        AssertionError: It is not within so many seconds.
    """
    end = reactor.seconds() + within
    while not true():
        assert reactor.seconds() < end, "not in time"
        await deferLater(reactor, 0.01)
