"""Any argument of any public call: it raises in that call, or settles, and harms no other."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import linkd.client
from linkd.client.options import ConnectSettings, address
from linkd.errors import LinkdError
from tests.support.stream_daemon import StreamDaemon

SCALARS: Final[st.SearchStrategy[Any]] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([-(2**63), 2**62, 2**62 + 1, 2**64, 2**70, 10**400]),
    st.floats(),
    st.sampled_from([math.nan, math.inf, -math.inf, -0.0, 1e300]),
    st.text(st.characters(codec=None), max_size=8),
    st.sampled_from(["", "a", "a.b", "a.*", ">", "hub", "\ud800", "x" * 300, "\0", "a b"]),
    st.binary(max_size=8),
    st.builds(object),
)
ANYTHING: Final = st.one_of(
    SCALARS,
    st.lists(SCALARS, max_size=3),
    st.dictionaries(st.text(max_size=4), SCALARS, max_size=3),
    st.just(b"x" * 1000),
    st.just(lambda *_: None),
)
CHANNELS: Final = st.one_of(st.just("a"), ANYTHING)
PUBLISHED: Final = ("type", "ttl", "headers", "wait", "timeout")


def options(*names: str) -> st.SearchStrategy[dict[str, Any]]:
    """Return a strategy for some of these options with any values."""
    return st.dictionaries(st.sampled_from(names), ANYTHING, max_size=3)


Call = Callable[[Any], Any]


async def subscribe(node: Any, patterns: list[Any], more: dict[str, Any], next_: Any) -> None:
    """Subscribe, acknowledge, and leave."""
    subscription = node.subscribe(*patterns, **more)
    try:
        subscription.ack(next_)
        await asyncio.wait_for(anext(subscription), 0.01)
    finally:
        await subscription.close()


async def react(node: Any, type_: Any, function: Any, channel: Any) -> None:
    """Register a function, and forget it."""
    node.on(type_, function, channel)
    node.off(type_, function)


CALLS: Final[st.SearchStrategy[Call]] = st.one_of(
    st.builds(
        lambda channel, value, more: lambda node: node.publish(channel, value, **more),
        CHANNELS,
        ANYTHING,
        options(*PUBLISHED, "id"),
    ),
    st.builds(
        lambda channel, values, more: lambda node: node.publish_many(channel, values, **more),
        CHANNELS,
        ANYTHING,
        options(*PUBLISHED),
    ),
    st.builds(
        lambda peer, channel, next_, seconds: (
            lambda node: node.wait_for(peer, channel, next_, seconds)
        ),
        st.one_of(st.just("hub"), ANYTHING),
        CHANNELS,
        ANYTHING,
        ANYTHING,
    ),
    st.builds(
        lambda patterns, more, next_: lambda node: subscribe(node, patterns, more, next_),
        st.lists(CHANNELS, max_size=3),
        options("consumer", "start", "window", "on_gap"),
        ANYTHING,
    ),
    st.builds(
        lambda type_, function, channel: lambda node: react(node, type_, function, channel),
        ANYTHING,
        ANYTHING,
        CHANNELS,
    ),
)


@pytest.fixture(scope="module")
def connected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any, Any]]:
    """Run one client and its daemon over all examples."""
    path: Path = tmp_path_factory.mktemp("daemon") / "d.sock"
    with asyncio.Runner() as runner:
        fake = StreamDaemon(path)
        runner.run(fake.start())
        node = linkd.client.connect(path, on_error=lambda _: None)

        async def start() -> None:
            node.start()
            await node.opened(5)

        runner.run(start())
        yield runner, fake, node
        runner.run(node.close())
        runner.run(fake.stop())


@given(CALLS)
@settings(max_examples=400, suppress_health_check=list(HealthCheck), deadline=None)
@example(lambda node: node.publish("a", "x", type="\ud800"))
@example(lambda node: node.publish("a", "x", ttl=10**400))
@example(lambda node: node.wait_for("hub", "a", 2**70))
def test_a_call_raises_or_settles_and_one_behind_it_settles(connected: Any, call: Call) -> None:
    runner, fake, node = connected

    async def check() -> None:
        before = fake.opened
        try:
            await asyncio.wait_for(call(node), 0.5)
        except (TypeError, ValueError, LinkdError):  # a TimeoutError of a long wait is an OSError
            pass
        except TimeoutError:
            pass
        offset = await asyncio.wait_for(node.publish("behind", "x"), 5)
        assert offset > 0
        assert fake.opened == before

    runner.run(check())


@given(
    st.one_of(st.none(), ANYTHING),
    options(*ConnectSettings.__struct_fields__),
)
@settings(max_examples=200, suppress_health_check=list(HealthCheck), deadline=None)
def test_connect_refuses_what_can_only_hang(where: Any, more: dict[str, Any]) -> None:
    """What it takes can be started and closed."""

    async def check() -> None:
        try:
            node = linkd.client.connect(where, **more)
        except (TypeError, ValueError):
            return
        assert address(where)
        node.start()
        failed = asyncio.ensure_future(node.opened(0.02))
        await asyncio.wait([failed])
        assert isinstance(failed.exception(), LinkdError | TypeError)  # TypeError: of `tls`
        assert more.get("max_attempts") is not None or not node._upkeep.failed
        await asyncio.wait_for(node.close(), 5)

    asyncio.run(check())
