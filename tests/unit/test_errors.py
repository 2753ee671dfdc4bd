"""Errors of the system, sorted by who can act."""

from __future__ import annotations

import errno
import os

import pytest

from linkd.errors import ConfigError, Unavailable, is_passing, unusable

PASSING = ("EMFILE", "ENFILE", "ENOMEM", "EIO", "ESTALE", "EROFS", "ENOSPC", "EDQUOT", "ENOTCONN")
STANDING = ("EACCES", "EPERM", "ENOENT", "ENOTDIR", "EISDIR", "ELOOP", "ENAMETOOLONG", "EINVAL")


def system_error(name: str) -> OSError:
    number: int = getattr(errno, name)
    return OSError(number, os.strerror(number))


@pytest.mark.parametrize("name", PASSING)
def test_shortages_and_failing_disks_pass(name: str) -> None:
    error = system_error(name)
    assert is_passing(error)
    assert isinstance(unusable("/etc/x: cannot read it", error), Unavailable)


@pytest.mark.parametrize("name", STANDING)
def test_wrong_paths_and_permissions_stay(name: str) -> None:
    error = system_error(name)
    assert not is_passing(error)
    assert isinstance(unusable("/etc/x: cannot read it", error), ConfigError)


def test_an_unknown_error_is_tried_again() -> None:
    assert is_passing(OSError("no number"))


def test_the_message_holds_what_the_system_returned() -> None:
    assert str(unusable("/x: cannot read it", system_error("EIO"))).endswith(os.strerror(errno.EIO))
    assert str(unusable("/x: cannot read it", OSError("odd"))) == "/x: cannot read it: odd"
