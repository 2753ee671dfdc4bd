"""Errors of the API: what a refusal keeps."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator

import pytest

from linkd.api.errors import ApiError, refusal_of
from linkd.errors import LinkdError, LogFull, LogUnavailable


class Message:
    """What was refused."""


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


def refused(make: Callable[[], LinkdError]) -> weakref.ref[Message]:
    """Refuse a message, as a session does that keeps the refusal in a variable."""
    message = Message()
    try:
        raise make()
    except LinkdError as caught:
        refusal = refusal_of(caught)
    assert refusal.error
    return weakref.ref(message)


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("make", [lambda: ApiError("too-many", "no room"), lambda: LogFull("full")])
def test_what_was_refused_is_freed_at_once(make: Callable[[], LinkdError]) -> None:
    """One client that sent 15 MiB of patterns again and again took 1 GB a second."""
    assert refused(make)() is None


def test_a_database_that_does_not_answer_may_have_stored_it_or_not() -> None:
    unknown = refusal_of(LogUnavailable("it may be stored", is_unknown=True))
    assert (unknown.status, unknown.headers) == (503, {"Retry-After": "1"})
    assert unknown.body() == {
        "error": "log-unavailable",
        "message": "it may be stored",
        "outcome": "unknown",
    }
    assert "outcome" not in refusal_of(LogUnavailable("nothing", is_unknown=False)).body()
