"""The errors that linkd raises, split by who must act.

LinkdError
├── ConfigError            the operator: correct the configuration
├── Unavailable            this host, for now: it lacks descriptors, room or a disk; retried
├── LocalProtocolError     us: a bug in linkd
├── RemoteProtocolError    the peer: it broke the protocol; has `close_code`
├── AttemptFailed          nobody: its `kind` decides when the dialer tries again
├── PublishError           the publisher
│   ├── ChannelRefused     the channel is not one that it may use
│   ├── BodyTooLarge       the body exceeds `max_body_bytes`
│   ├── LogFull            the log or its disk has no room
│   ├── LogClosed          nobody: the node stops, and its next run accepts the publish
│   └── BadRecord          a record, an id or a number of it is malformed
├── LogUnavailable         nobody: the database of the log does not answer; retried
├── LogLost                the operator: another linkd has the log, or its database went back
├── LogDamaged             the operator: a file of the log cannot be read
├── Gap                    the reader: offsets that it wants are gone
├── OutOfStep              nobody: the link resumes from what is on disk
└── StateTooNew            the operator: state was written by a newer linkd
"""

from __future__ import annotations

import errno
from typing import Final, Literal

FailureKind = Literal["unreachable", "refused", "broken", "busy", "rejected"]
"""What a failure means for the next attempt; docs/protocol.md, "When a dialer comes back"."""

Reason = Literal[
    "ping-timeout",
    "silence",
    "unreachable",
    "refused",
    "dns",
    "tls",
    "rejected",
    "busy",
    "protocol",
    "closed",
    "replaced",
    "duplicate",
    "stopped",
]
"""Why a link last left `up`, or why the last attempt failed, in one word."""


class LinkdError(Exception):
    """The base of all errors that linkd raises on purpose."""


class ConfigError(LinkdError):
    """The configuration can't be used; the message names file, key, what was expected and got."""


class Unavailable(LinkdError):
    """A file can't be used for a temporary reason of this host: a retry may succeed.

    It is never a reason to give up: neither for exit status 2 nor to count a peer as rejected.
    """


_STANDING: Final = frozenset(
    {
        errno.EACCES,
        errno.EEXIST,
        errno.EINVAL,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EPERM,
    }
)
"""OSErrors that stay until an operator changes a path, its owner or its permissions."""


def is_passing(error: OSError) -> bool:
    """Return whether an OSError may be temporary, so that the same call can succeed later.

    EMFILE, ENFILE, ENOMEM, EIO, ESTALE, EROFS, ENOSPC and all that are not known to be permanent:
    an unknown error is retried rather than treated as an error in the configuration. Only a
    missing or forbidden path, or one of the wrong kind, is permanent.
    """
    return error.errno not in _STANDING


def unusable(message: str, error: OSError) -> ConfigError | Unavailable:
    """Return the error to raise if a file or directory of the configuration can't be used.

    Args:
        message: What was tried; the system's text for `error` is appended.
        error: What the system returned.

    Returns:
        `Unavailable` for a temporary error (`is_passing`), else `ConfigError`.
    """
    kind = Unavailable if is_passing(error) else ConfigError
    return kind(f"{message}: {error.strerror or error}")


class LocalProtocolError(LinkdError):
    """linkd itself broke a rule of the protocol or of a state machine: a bug."""


class RemoteProtocolError(LinkdError):
    """The peer broke the protocol.

    Args:
        message: What was expected and what was received.
        close_code: The WebSocket close code to answer with.
    """

    def __init__(self, message: str, close_code: int = 3002) -> None:
        super().__init__(message)
        self.close_code = close_code


class AttemptFailed(LinkdError):
    """One attempt to reach a peer failed.

    Args:
        kind: What it means for the next attempt.
        reason: A word of `Reason`.
        detail: One sentence for people.
        retry_after: Seconds that the peer asked to wait, or None.

    Attributes:
        return_spread: Seconds over which the dialers of this URL's peer come back, or None.
    """

    def __init__(
        self, kind: FailureKind, reason: Reason, detail: str, retry_after: float | None = None
    ) -> None:
        self.return_spread: float | None = None
        super().__init__(detail)
        self.kind = kind
        self.reason = reason
        self.detail = detail
        self.retry_after = retry_after


class PublishError(LinkdError):
    """A publish was refused and nothing of it was stored."""


class ChannelRefused(PublishError):
    """The channel's name is malformed, or the caller may not use it."""


class BodyTooLarge(PublishError):
    """A body is larger than `max_body_bytes`."""


class LogFull(PublishError):
    """The log has reached its limit, or the disk is full."""


class LogClosed(PublishError):
    """The node stops; repeat the publish once it is back."""


class BadRecord(PublishError):
    """A record, its id or a producer's number is malformed."""


class SequenceUnproven(PublishError):
    """A producer's number is so old that the log no longer knows whether it is stored."""


class LogUnavailable(LinkdError):
    """The database of the log has not answered in time.

    Args:
        message: Why.
        is_unknown: The publish may be stored, now or later; else nothing of it is.
    """

    def __init__(self, message: str, is_unknown: bool) -> None:
        super().__init__(message)
        self.is_unknown = is_unknown


class LogLost(LinkdError):
    """The log in the database is no longer what this daemon knows: it must start again.

    Args:
        event: `log.fenced` or `log.went-back`.
        message: What was found.
    """

    def __init__(self, event: str, message: str) -> None:
        super().__init__(message)
        self.event = event


class LogDamaged(LinkdError):
    """A file of the log can't be read; the message has its name and what to do."""


class Gap(LinkdError):
    """Offsets that a reader wants are no longer in the log.

    Args:
        wanted: The requested offset.
        first: The oldest offset that still exists.
    """

    def __init__(self, wanted: int, first: int) -> None:
        super().__init__(f"offsets {wanted} to {first - 1} are no longer in the log")
        self.wanted = wanted
        self.first = first


class OutOfStep(LinkdError):
    """A received batch would leave a hole in the stored part of its peer's log.

    Args:
        expected: Where the cursor in the peer's log is.
        previous: Where the batch begins.
        next: Where it ends, beyond `expected`.
    """

    def __init__(self, expected: int, previous: int, next: int) -> None:
        super().__init__(
            f"a step from offset {previous} to {next} came, expected one from {expected}: storing"
            " it would leave a hole"
        )


class PeerMoved(LinkdError):
    """A newer connection of the peer is at another instance of this node."""


class StateTooNew(LinkdError):
    """State on disk was written by a newer linkd; the message names the version needed.

    It begins with "PATH was written by a newer linkd": by these words `scripts/install` finds the
    files to put back when it returns to the version before.
    """
