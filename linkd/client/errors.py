"""What can go wrong between an application and its daemon.

ClientError (a LinkdError)
├── NoDaemon        nobody answers at the socket or URL
├── Refused         the daemon said no; has `status`, `error` and, where it stored, `offset`
│   └── TimedOut    it is stored, but the peer that was waited for did not have it in time
├── OffsetUnknown   it is stored, but the daemon no longer knows where
├── Replaced        another subscriber took the consumer's name
└── Closed          the node was closed while something was under way
"""

from __future__ import annotations

from linkd.errors import LinkdError


class ClientError(LinkdError):
    """The base of the client's errors.

    Attributes:
        offset: Where the message lies, if it was stored all the same.
    """

    offset: int | None = None


class NoDaemon(ClientError):
    """Nobody answers at the socket or URL; the message says which, and what the system said."""


class Refused(ClientError):
    """The daemon refused a call; nothing was changed unless `offset` is set.

    Args:
        error: One word of docs/api.md's errors, such as `log-full`.
        message: One sentence for people.
        status: The HTTP status, or 0 where it came over a stream.
        offset: Where the message lies, if it was stored all the same.
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
    """The peer that was waited for did not have it in time; it is stored at `offset`."""


class OffsetUnknown(ClientError):
    """It is stored, once, but the daemon no longer knows its offset: do not publish it again.

    So ends what is sent again after a lost connection, with very much stored behind it meanwhile.
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
