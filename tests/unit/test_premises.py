"""An address that can't be had: by its setting, why, and what to do."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import NoReturn

import pytest
from twisted.internet.error import CannotListenError

from linkd import host
from linkd.config import ApiKey, ApiSettings, Config, NodeSettings
from linkd.errors import ConfigError, Unavailable
from linkd.host import listen_error, lock_state_dir, remove_stale_socket
from linkd.preflight import check_files


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
        told = listen_error("api.http", "127.0.0.1:9480", raised)
        assert isinstance(told, ConfigError)
        assert str(told).startswith(f"api.http: can't listen on 127.0.0.1:9480: {words}")


PASSING = [errno.EROFS, errno.ENOSPC, errno.EIO, errno.EMFILE, errno.ESTALE]


def failing(number: int) -> NoReturn:
    raise OSError(number, os.strerror(number))


@pytest.mark.parametrize("number", PASSING)
def test_a_disk_that_is_not_ready_is_no_wrong_configuration(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(host.os, "open", lambda *_: failing(number))
        with pytest.raises(Unavailable, match=f"node.state_dir: .*: {os.strerror(number)}"):
            lock_state_dir(str(tmp_path))
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: failing(number))
    with pytest.raises(Unavailable, match=f"api.socket: .*: {os.strerror(number)}"):
        remove_stale_socket(str(tmp_path / "run/linkd.sock"))


def test_a_state_that_another_user_owns_is_a_wrong_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        host.os, "open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "denied"))
    )
    with pytest.raises(ConfigError, match="denied: run `chown -R`"):
        lock_state_dir(str(tmp_path))


def test_a_state_in_a_directory_that_is_missing_waits_for_its_disk(tmp_path: Path) -> None:
    """No new log begins on the root disk because another one was not mounted."""
    state = tmp_path / "disk" / "linkd"
    with pytest.raises(Unavailable, match=r"disk is missing: mount its file system, or make it"):
        lock_state_dir(str(state))
    assert not state.parent.exists()
    state.parent.mkdir()
    os.close(lock_state_dir(str(state)))


def test_a_disk_that_takes_no_number_is_no_obstacle_when_it_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host.os, "pwrite", lambda *_: failing(errno.ENOSPC))
    os.close(lock_state_dir(str(tmp_path)))
    monkeypatch.setattr(host.os, "pwrite", lambda *_: failing(errno.EIO))
    with pytest.raises(Unavailable):
        lock_state_dir(str(tmp_path))


def with_secret(path: Path) -> Config:
    key = ApiKey(name="shop", secret_file=str(path), subscribe=(">",))
    return Config(node=NodeSettings(name="a"), api=ApiSettings(http="127.0.0.1:0", keys=(key,)))


def test_a_missing_file_may_come_with_a_mount_and_a_wrong_one_stays_wrong(tmp_path: Path) -> None:
    (missing,) = check_files(with_secret(tmp_path / "late/secret"))
    assert isinstance(missing, Unavailable)
    assert str(missing).startswith("api.key (shop).secret_file: ")
    (tmp_path / "short").touch(0o600)
    (wrong,) = check_files(with_secret(tmp_path / "short"))
    assert isinstance(wrong, ConfigError)
    (below_a_file,) = check_files(with_secret(tmp_path / "short/secret"))
    assert isinstance(below_a_file, ConfigError)


def test_a_file_that_cannot_be_read_now_may_be_read_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "open", lambda *_, **__: failing(errno.EIO))
    (trouble,) = check_files(with_secret(tmp_path / "secret"))
    assert isinstance(trouble, Unavailable)
