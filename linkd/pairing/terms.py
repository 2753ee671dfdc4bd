"""What both ends of pairing and the daemon say to each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
from cryptography import x509

from linkd.config import Config
from linkd.core.channels import is_pattern
from linkd.errors import LinkdError

MARK: Final = "# Written by linkd's pairing."


class PairingRefused(LinkdError):
    """An invitation, or what came with a code, is refused; the message says what to do."""


class PairedPeer(msgspec.Struct, frozen=True):
    """One line of `linkd peers`.

    Args:
        name: The peer.
        state: `invited`, `paired`, `revoked` or `expired`.
        expires_seconds: Seconds until the code or the certificate ends.
        configured: A `[[peer]]` of that name stands in the configuration.
    """

    name: str
    state: str
    expires_seconds: float
    configured: bool


@dataclass(frozen=True)
class Hooks:
    """What pairing needs of the daemon.

    Args:
        config: Returns the configuration in force.
        leaf: Returns the certificate that the listener shows now; None without TLS.
        reload: Reads the files anew, as SIGHUP does.
        revoked: Ends the connection of that peer at once, and has the listener's TLS reload.
    """

    config: Callable[[], Config]
    leaf: Callable[[], x509.Certificate | None]
    reload: Callable[[], None]
    revoked: Callable[[str], None]


def peer_table(
    name: str,
    send: Sequence[str],
    receive: Sequence[str],
    more: Sequence[tuple[str, bool | str | tuple[str, ...]]],
) -> str:
    """Return a file with one `[[peer]]`."""
    rows: list[tuple[str, object]] = [("name", name), ("send", send), ("receive", receive), *more]
    lines = [f"{key} = {msgspec.json.encode(value).decode()}" for key, value in rows]
    return "\n".join([MARK, "[[peer]]", *lines, ""])


class Terms(NamedTuple):
    """What a peer gets, what it may send, and whether it may pass on what began elsewhere."""

    send: tuple[str, ...]
    receive: tuple[str, ...]
    relay: bool

    def table(self, name: str) -> str:
        """Return the hub's file for a peer."""
        return peer_table(name, self.send, self.receive, (("relay", self.relay),))


def is_ours(file: Path) -> bool:
    """Tell whether pairing has written a file of the configuration, so that it may replace it."""
    return file.exists() and file.read_text().startswith(MARK)


def check_patterns(patterns: Sequence[str]) -> tuple[str, ...]:
    """Return `patterns`; raise PairingRefused if one is none."""
    for pattern in patterns:
        if not is_pattern(pattern):
            raise PairingRefused(f"{pattern[:80]!r} is no pattern of channels")
    return tuple(patterns)
