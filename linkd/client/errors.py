"""What can go wrong between an application and its daemon.

ClientError (a LinkdError)
├── NoDaemon        nothing answers at the socket or URL
├── Refused         the daemon refused; has `status`, `error` and, where it stored, `offset`
│   └── TimedOut    it is stored, but the peer did not receive it in time
├── OffsetUnknown   it is stored, but the daemon no longer knows where
├── Replaced        another subscriber took the consumer's name
└── Closed          the node was closed during the operation
"""

from __future__ import annotations

from linkd.errors import LinkdError


class ClientError(LinkdError):
    """The base of the client's errors.

    Attributes:
        offset: The offset of the message, if it was stored nevertheless.
    """

    offset: int | None = None


class NoDaemon(ClientError):
    """Nothing answers at the socket or URL; the message has it and the system's error."""


class Refused(ClientError):
    """The daemon refused a call; nothing was changed unless `offset` is set.

    Args:
        error: An error code of docs/api.md, such as `log-full`.
        message: One sentence for people.
        status: The HTTP status, or 0 for a stream.
        offset: The offset of the message, if it was stored nevertheless.
    """

    def __init__(
        self, error: str, message: str, status: int = 0, offset: int | None = None
    ) -> None:
        super().__init__(f"{error}: {message}" if message else error)
        self.error = error
        self.message = message
        self.status = status
        self.offset = offset


class TimedOut(Refused):
    """The peer did not receive the message in time; it is stored at `offset`."""


class OffsetUnknown(ClientError):
    """It is stored, once, but the daemon no longer knows its offset: do not publish it again.

    This can follow a lost connection, if very many records were stored before the resend.
    """


class Replaced(ClientError):
    """Another subscriber took the consumer's name."""


class Closed(ClientError):
    """The node was closed."""


def stored_at(error: ClientError, offset: int) -> ClientError:
    """Return an error that came after a publish was stored, with the offset of that publish."""
    if isinstance(error, Refused):
        return type(error)(error.error, error.message, error.status, offset)
    stored = type(error)(str(error))
    stored.offset = offset
    return stored
