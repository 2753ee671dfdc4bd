"""An address that can't be had: by its setting, why, and what to do."""

from __future__ import annotations

import errno

import pytest
from twisted.internet.error import CannotListenError

from linkd.errors import ConfigError
from linkd.premises import unlistenable


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EADDRINUSE, "x"), "Address already in use; `ss -ltnp` shows"),
        (OSError(errno.EADDRNOTAVAIL, "x"), "Cannot assign requested address; `ip address` lists"),
        (OSError(errno.EACCES, "x"), "Permission denied; a port below 1024 needs root"),
        (OSError(errno.ENOMEM, "x"), "Cannot allocate memory"),
        (OSError("another daemon answers there"), "another daemon answers there"),
    ],
)
def test_an_address_that_cannot_be_had(error: OSError, words: str) -> None:
    for raised in (error, CannotListenError("127.0.0.1", 9480, error)):
        told = unlistenable("api.http", "127.0.0.1:9480", raised)
        assert isinstance(told, ConfigError)
        assert str(told).startswith(f"api.http: can't listen on 127.0.0.1:9480: {words}")
