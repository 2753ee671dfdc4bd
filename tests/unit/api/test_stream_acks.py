"""What a client is told of an ack that was not stored: no room is not called "not found"."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from linkd.api.stream import StreamSession
from linkd.protocol import client


def answers(error: Exception | None, version: int) -> list[Any]:
    session: Any = object.__new__(StreamSession)
    session._version = version
    kept = SimpleNamespace(ack=lambda _next, done: done(error))
    session._subscriptions = {1: SimpleNamespace(subscription=kept)}
    told: list[Any] = []
    session.send = told.append
    session._ack(client.ConsumerAck(1, 7))
    return told


def answer(error: Exception | None) -> Any:
    (frame,) = answers(error, client.VERSION)
    return frame


def test_a_stored_cursor_is_acknowledged() -> None:
    assert answer(None) == client.ConsumerAcked(1, 7)


@pytest.mark.parametrize(
    ("error", "word"),
    [(KeyError("billing"), "not-found"), (OSError("database or disk is full"), "log-full")],
)
def test_a_cursor_that_cannot_be_stored_is_refused(error: Exception, word: str) -> None:
    failed = answer(error)
    assert (type(failed), failed.id, failed.next) == (client.AckFailed, 1, 7)
    assert failed.error == word
    assert str(error) in failed.message


def test_a_client_of_version_1_gets_no_frame_that_it_does_not_know() -> None:
    """It would end the connection over it."""
    assert answers(OSError("database or disk is full"), 1) == []
    assert answers(None, 1) == [client.ConsumerAcked(1, 7)]
