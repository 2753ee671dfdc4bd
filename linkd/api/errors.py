"""The errors that callers get: each with one status, one code and one sentence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from linkd.errors import (
    BadRecord,
    BodyTooLarge,
    ChannelRefused,
    LinkdError,
    LogClosed,
    LogDamaged,
    LogFull,
    LogUnavailable,
    PublishError,
    SequenceUnproven,
)

ERRORS: dict[str, tuple[int, str]] = {
    "malformed": (400, "The request is malformed; see `message`."),
    "unauthorized": (
        401,
        "No key, or none that is known; a token that is used, expired or forged.",
    ),
    "channel-refused": (403, "The key may not use this channel or pattern."),
    "origin-refused": (403, "A web page of another origin may not call; see `api.origins`."),
    "forbidden": (403, "The key may not do this."),
    "not-found": (404, "There is no such path, peer, consumer or record."),
    "method-not-allowed": (405, "The path knows other methods; see `Allow`."),
    "not-sent": (409, "The peer does not get this channel."),
    "in-use": (409, "The name is in use, or its owner may have no further one."),
    "diverged": (409, "The call does not fit the state of the link."),
    "pairing-refused": (409, "This node can't be paired with like that; see `message`."),
    "sequence-unproven": (
        409,
        "The producer's number is so old that nothing proves whether it is stored.",
    ),
    "gap": (410, "The record is no longer in the log."),
    "body-too-large": (
        413,
        "The body is larger than `log.max_body_bytes`, the request than 16 MiB, its lines are too"
        " many, or the call takes no body.",
    ),
    "unsupported-type": (
        415,
        "The body does not match its Content-Type, or the type is unknown.",
    ),
    "misdirected": (421, "The Host is not one of this node's; see `api.hosts`."),
    "too-many": (
        429,
        "Too many wrong keys, subscriptions, bytes of patterns or unsettled publishes.",
    ),
    "internal": (500, "linkd made a mistake; its log has the details."),
    "pairing-failed": (500, "Pairing could not write its files; `message` names them."),
    "unavailable": (
        503,
        "The node is starting or stopping, or too many bytes of the caller are on their way.",
    ),
    "log-unavailable": (
        503,
        "The database of the log does not answer. With `outcome` `unknown` the message may be"
        " stored, now or later: repeat it with the same id or number. Else nothing was stored.",
    ),
    "timeout": (504, "It is stored at `offset`, but the peer did not have it in time."),
    "log-full": (507, "The log or its disk has no room; nothing was stored."),
}
"""Every word that `error` may have: its HTTP status and meaning."""


class ApiError(LinkdError):
    """A call is refused.

    Args:
        error: One of `ERRORS`.
        message: One sentence for people; never a secret.
        headers: Further headers of the answer.
        more: Further fields of the answer's body.
    """

    def __init__(
        self,
        error: str,
        message: str,
        headers: Mapping[str, str] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.error = error
        self.status = ERRORS[error][0]
        self.message = message
        self.headers = dict(headers or {})
        self.more = dict(more or {})

    def body(self) -> dict[str, Any]:
        """Return the body of the error response."""
        return {"error": self.error, "message": self.message, **self.more}


_KINDS: tuple[tuple[type[LinkdError], str], ...] = (
    (ChannelRefused, "channel-refused"),
    (BodyTooLarge, "body-too-large"),
    (LogFull, "log-full"),
    (LogClosed, "unavailable"),
    (LogUnavailable, "log-unavailable"),
    (LogDamaged, "log-full"),
    (BadRecord, "malformed"),
    (SequenceUnproven, "sequence-unproven"),
    (PublishError, "too-many"),
)


_PASSING = ("unavailable", "log-unavailable")


def _outcome(error: LinkdError) -> dict[str, str] | None:
    """Return the field that says that nobody knows whether a publish is stored."""
    is_unknown = isinstance(error, LogUnavailable) and error.is_unknown
    return {"outcome": "unknown"} if is_unknown else None


def refusal_of(error: LinkdError) -> ApiError:
    """Return the API error for one of linkd's errors.

    It has no traceback: that refers to the frame, and a frame that keeps the error in a variable
    would live, with the message that was refused, until the garbage collector finds both.
    """
    if isinstance(error, ApiError):
        return error.with_traceback(None)
    for kind, word in _KINDS:
        if isinstance(error, kind):
            headers = {"Retry-After": "1"} if word in _PASSING else None
            return ApiError(word, str(error), headers, _outcome(error))
    return ApiError("internal", "linkd made a mistake; its log has the details")


@contextmanager
def known_peer(peer: str) -> Iterator[None]:
    """Turn the node's KeyError into `not-found`, its other errors into `diverged`."""
    try:
        yield
    except KeyError:
        raise ApiError("not-found", f"there is no peer {peer[:63]}") from None
    except ApiError:
        raise
    except LinkdError as error:
        raise ApiError("diverged", str(error)) from None
