"""How a command ends: the exit codes of docs/clients/cli.md, and the error that carries one."""

from __future__ import annotations

FINE = 0
ANSWER_IS_NO = 1
USAGE = 2
NO_DAEMON = 3
REFUSED = 4
TIMED_OUT = 5
INTERRUPTED = 130


class ReaderGone(Exception):
    """Nobody reads the output any more: the command ends quietly.

    No OSError, so that nothing takes it for the daemon's connection.
    """


class Ended(Exception):
    """A command ends with a sentence for the person who typed it.

    Args:
        code: The exit code.
        message: What was expected and got, without the leading `linkd:`.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
