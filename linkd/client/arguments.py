"""Checks of what applications pass in: a wrong argument is an error of the call that has it."""

from __future__ import annotations

import math
from typing import Any, Final

from linkd.core.batch import MAX_TTL_SECONDS
from linkd.errors import BadRecord

MAX_SECONDS: Final = 1e10
MAX_OFFSET: Final = 2**62
MAX_PRODUCER_LENGTH: Final = 128


def check_ttl(ttl: Any) -> float | None:
    """Return a time to live in seconds, or None for ever.

    Raises:
        TypeError: It is no number.
        BadRecord: The daemon takes no record that lives so long.
    """
    if ttl is None:
        return None
    seconds = _number("ttl", ttl)
    if not 0.0 < seconds <= MAX_TTL_SECONDS:
        raise BadRecord(f"expected a ttl above 0, at most {MAX_TTL_SECONDS:g} seconds, got {ttl}")
    return seconds


def check_wait(peer: Any, timeout: Any) -> None:
    """Raise TypeError or ValueError where `peer` is no name, or `timeout` no time to wait."""
    if peer is not None:
        if not isinstance(peer, str):
            raise TypeError(f"expected a peer's name, got {peer!r}")
        if len(peer) > 255 or not peer.isprintable():
            raise ValueError(f"expected a peer's name, got {peer[:80]!r}")
    if not 0.0 <= _number("timeout", timeout) <= MAX_SECONDS:
        raise ValueError(f"expected a timeout of 0 to {MAX_SECONDS:g} seconds, got {timeout}")


def check_next(next: Any) -> None:
    """Raise TypeError or ValueError where it is no offset."""
    if isinstance(next, bool) or not isinstance(next, int):
        raise TypeError(f"expected an offset, got {next!r}")
    if not 0 <= next <= MAX_OFFSET:
        raise ValueError(f"expected an offset of 0 to 2^62, got {next}")


def check_start(start: Any) -> None:
    """Raise TypeError or ValueError where a subscription can't start there."""
    if isinstance(start, str):
        if start not in ("earliest", "latest"):
            raise ValueError(f"expected a start of an offset, earliest or latest, got {start!r}")
    elif isinstance(start, bool) or not isinstance(start, int):
        raise TypeError(f"expected a start of an offset, earliest or latest, got {start!r}")
    elif not 0 <= start <= MAX_OFFSET:
        raise ValueError(f"expected a start of 0 to 2^62, got {start}")


def check_window(window: Any) -> None:
    """Raise TypeError or ValueError where it is no number of bytes that lets records come."""
    if isinstance(window, bool) or not isinstance(window, int):
        raise TypeError(f"expected a window in bytes, got {window!r}")
    if not 1 <= window <= MAX_OFFSET:
        raise ValueError(f"expected a window of at least 1 byte, got {window}")


def check_number(name: str, given: Any) -> None:
    """Raise TypeError or ValueError where it is no number of at least 1."""
    if isinstance(given, bool) or not isinstance(given, int):
        raise TypeError(f"expected {name} as a whole number, got {given!r}")
    if given < 1:
        raise ValueError(f"{name}: expected at least 1, got {given}")


def check_seconds(name: str, given: Any) -> None:
    """Raise TypeError or ValueError where it is no time above 0."""
    if not 0.0 < _number(name, given) <= MAX_SECONDS:
        raise ValueError(f"expected {name} above 0, at most {MAX_SECONDS:g} seconds, got {given}")


def check_function(name: str, given: Any) -> None:
    """Raise TypeError where it can't be called."""
    if not callable(given):
        raise TypeError(f"expected {name} to be a function, got {given!r}")


def check_producer(given: Any) -> None:
    """Raise TypeError or ValueError where it is no producer's name."""
    if not isinstance(given, str):
        raise TypeError(f"expected a producer's name, got {given!r}")
    if len(given) > MAX_PRODUCER_LENGTH or not given.isprintable():
        raise ValueError(f"expected a producer's name, got {given[:80]!r}")


def _number(name: str, given: Any) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise TypeError(f"expected a {name} in seconds, got {given!r}")
    try:
        seconds = float(given)
    except OverflowError:
        seconds = math.inf
    return seconds
