"""A wrong argument is an error of its call: what passes the checks, every daemon can read."""

from __future__ import annotations

import decimal
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linkd.client.options import check_next, check_start, check_ttl, check_wait, check_window
from linkd.client.record import encoded
from linkd.client.session import DaemonSession
from linkd.errors import BadRecord
from linkd.protocol import client

ANYTHING = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**62, 2**62 + 1, 2**70, -(2**70), 10**400])
    | st.floats()
    | st.text()
    | st.sampled_from(["\ud800", "earliest", "latest", "hub", "x" * 256])
    | st.binary()
    | st.decimals()
    | st.lists(st.integers(), max_size=2)
    | st.builds(object)
)


def raises(check: Callable[..., object], *arguments: object) -> bool:
    try:
        check(*arguments)
    except (TypeError, ValueError, BadRecord):
        return True
    return False


@given(ANYTHING)
def test_a_ttl_is_refused_or_read_by_the_daemon(ttl: Any) -> None:
    if not raises(check_ttl, ttl):
        frame = client.encode_frame(client.Publish(1, "a", 1, b"x", check_ttl(ttl), ()))
        (read,) = client.decode_from_client(client.join([client.renumbered(frame, 2**40)], 1))
        assert read == client.Publish(2**40, "a", 1, b"x", ttl)


@given(ANYTHING, ANYTHING, ANYTHING)
def test_a_wait_is_refused_or_read_by_the_daemon(peer: Any, next_: Any, timeout: Any) -> None:
    if peer is not None and not raises(check_wait, peer, timeout) and not raises(check_next, next_):
        client.checked(client.WaitForPeer(1, peer, "a", next_, timeout))


@given(ANYTHING, ANYTHING, ANYTHING)
def test_a_subscription_is_refused_or_read_by_the_daemon(
    start: Any, window: Any, consumer: Any
) -> None:
    session = DaemonSession("p")
    if raises(check_start, start) or raises(check_window, window):
        return
    if not raises(session.subscribe, ["a"], start, consumer, window):
        session.connected()
        (hello,) = session.take(0.0)
        assert isinstance(client.decode_from_client(hello)[0], client.Open)
        session.received(client.encode((client.Opened(1, "n", "s", "L", 1, 1, 1),)))
        (message,) = session.take(0.0)
        assert isinstance(client.decode_from_client(message)[1], client.Subscribe)


@pytest.mark.parametrize("wrong", ["5", decimal.Decimal(5), object(), True])
def test_seconds_are_numbers(wrong: Any) -> None:
    with pytest.raises(TypeError, match="seconds"):
        check_ttl(wrong)
    with pytest.raises(TypeError, match="seconds"):
        check_wait("hub", wrong)


@pytest.mark.parametrize("wrong", [("text", ""), (b"x", None), (1, 2)])
def test_an_encoder_returns_bytes_and_a_content_type(wrong: Any) -> None:
    with pytest.raises(TypeError, match="encode"):
        encoded(lambda _: wrong, "x")


def test_a_producer_is_a_name() -> None:
    for wrong in ("x" * 129, 5, "\ud800"):
        with pytest.raises(ValueError, match="open"):
            DaemonSession(wrong)  # type: ignore[arg-type]
