"""`/ws`: text and binary messages, given to a session on a node in memory."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

from linkd.api.auth import SOCKET, Caller
from linkd.api.call import Call
from linkd.api.errors import ApiError
from linkd.api.text import TextSession
from linkd.protocol.channels import Patterns
from tests.fuzz.reading import Input
from tests.fuzz.serving import Bench, Socket

BENCH = Bench()
_NARROW = Caller("shop", (Patterns(("orders",)),), (Patterns(("orders", "news.*")),), False)
_CHANNELS = ("orders", "news.a", "telemetry.x", "", "a..b", ">")


def one(content: bytes) -> None:
    """Play a session of at most 48 messages; what it sends as text is UTF-8."""
    _play(Input(content))
    BENCH.finish()


def _play(given: Input) -> None:
    socket = Socket()
    query = b"/ws?channel=%b&from=%b&envelope=%b&status=1&presence=%b%b" % (
        given.choice(_CHANNELS).encode(), given.choice((b"earliest", b"latest", b"3", b"-1")),
        given.choice((b"0", b"1", b"2")), given.choice((b"0", b"1", b"text")),
        given.choice((b"", b"&private=1", b"&resume=a", b"&consumer=c", b"&name=x")),
    )  # fmt: skip
    request: Any = SimpleNamespace(uri=query)
    try:
        call = Call(request, _NARROW if given.byte() & 1 else SOCKET, {})
        session = TextSession(BENCH.api, call, socket)
        session.opened()
    except ApiError:
        return
    for _ in range(48):
        if not given:
            break
        what = given.byte() % 8
        if what == 0:
            socket.paused = not socket.paused
            if not socket.paused:
                session.on_writable()
        elif what == 1:
            BENCH.node.change("hub", given.choice(("up", "connecting")))
            BENCH.clock.advance(0.0)
        elif what < 5:
            session.message(given.piece(), what == 2)
        else:
            session.message(json.dumps(_frame(given)).encode(), False)
        session.on_read_end()
    for payload, binary in socket.sent:
        assert binary or payload.decode() is not None
    session.closed()


def _frame(given: Input) -> dict[str, Any]:
    """Return an object that is near to a frame."""
    types = ("made", "ping", "pong", "subscribe", "unsubscribe", "ack", "", "t" * 256, 5)
    frame: dict[str, Any] = {"type": given.choice(types)}
    if given.byte() % 4:
        start = given.choice(("earliest", "latest", 0, 3, -1, 2**70, None))
        follow = {"channel": given.choice(_CHANNELS), "from": start}
        frame["data"] = given.choice((follow, follow, {}, 5, None, "text", [[]]))
    if given.byte() & 1:
        frame["id"] = given.choice((1, "a", "", None, 2**70, "i" * 256, True, 0.5))
    if given.byte() & 1:
        frame["channel"] = given.choice(_CHANNELS)
    return frame
