"""The host: state directory, stale socket, file limit, files written atomically."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import secrets
import socket
import stat
from contextlib import suppress
from pathlib import Path

from linkd.errors import ConfigError, LinkdError, Unavailable, unusable


class AlreadyRunning(LinkdError):
    """Another process holds what the daemon needs; the message has what, and how to find it."""


def lock_state_dir(path: str) -> int:
    """Create the state directory if it is missing, and lock it; return the lock, an open file.

    Its parent is not created: if that is missing, a file system is not mounted yet, and a new log
    would start on another disk, or a path is misspelled. The lock ends with the process, however
    that ends.

    Raises:
        ConfigError: It can't be created or written, or other users may write to it.
        Unavailable: Its disk fails, is full or read-only, or is not mounted; that may pass.
        AlreadyRunning: Another daemon holds it.
    """
    folder = Path(path)
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.stat()
        if status.st_mode & stat.S_IWOTH:
            raise ConfigError(
                f"node.state_dir: {path}: everyone may write to it: chmod 0700 {path}"
            )
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unusable_state(path, error) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.pread(lock, 32, 0).decode(errors="replace").strip()
        os.close(lock)
        raise AlreadyRunning(
            f"node.state_dir: {path}: another linkd uses it" + (f", pid {holder}" if holder else "")
        ) from None
    try:
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise _unusable_state(path, error) from None
    return lock


def _unusable_state(path: str, error: OSError) -> ConfigError | Unavailable:
    message = f"node.state_dir: {path}: can't be used"
    if isinstance(error, PermissionError):
        return ConfigError(
            f"{message}: {error.strerror}: run `chown -R` on it for the user that linkd runs as"
            f" (uid {os.geteuid()})"
        )
    if isinstance(error, FileNotFoundError):
        where = Path(path).parent
        return Unavailable(f"{message}: {where} is missing: mount its file system, or make it")
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        return ConfigError(f"{message}: it, or what is above it, is a file, not a directory")
    return unusable(message, error)


def listen_error(setting: str, address: str, error: Exception) -> ConfigError:
    """Return the error for an address that can't be listened on: setting, cause, what to do.

    Args:
        setting: The setting with the address, such as `listen.address`.
        address: Its value.
        error: An OSError, or Twisted's wrapper of one.
    """
    cause = getattr(error, "socketError", error)
    number = getattr(cause, "errno", None)
    hint = {
        errno.EADDRINUSE: "; `ss -ltnp` shows what listens there already: stop it, or set another",
        errno.EADDRNOTAVAIL: "; `ip address` lists the addresses that this host has",
        errno.EACCES: "; a port below 1024 needs root, or the unit, which may have them",
    }.get(number or 0, "")
    why = os.strerror(number) if number else str(cause)
    return ConfigError(f"{setting}: can't listen on {address}: {why}{hint}")


def remove_stale_socket(path: str, timeout: float = 1.0) -> None:
    """Create the directory of the API's socket, and remove the socket of a dead daemon.

    Only the last directory is created: a misspelled path must not become a tree of root's.

    Args:
        path: Of the socket.
        timeout: Seconds to wait for the answer of a live daemon.

    Raises:
        ConfigError: The path can't be used, or is not a socket.
        Unavailable: Its disk fails, is full or read-only; that may pass.
        AlreadyRunning: A live daemon listens there.
    """
    try:
        folder = Path(path).parent
        if not folder.parent.is_dir():
            missing = f"{folder.parent} is missing: make it, or set another path"
            raise ConfigError(f"api.socket: {path}: can't be used: {missing}")
        folder.mkdir(mode=0o750, exist_ok=True)
        if not stat.S_ISSOCK(Path(path).lstat().st_mode):
            raise ConfigError(f"api.socket: {path}: expected a free path, something else is there")
    except FileNotFoundError:
        return
    except OSError as error:
        raise unusable(f"api.socket: {path}: can't be used", error) from None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(timeout)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            _unlink_socket(path)
            return
        except OSError as error:
            raise AlreadyRunning(f"api.socket: {path}: in use: {error.strerror or error}") from None
    raise AlreadyRunning(f"api.socket: {path}: a running daemon listens there")


def _unlink_socket(path: str) -> None:
    try:
        Path(path).unlink(missing_ok=True)
    except OSError as error:
        raise unusable(f"api.socket: {path}: can't be replaced", error) from None


def raise_open_file_limit() -> int:
    """Raise the limit of open files as far as possible, and return it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def make_directory(path: Path, mode: int) -> None:
    """Create `path` if it is missing, owned by the owner of its parent directory."""
    if path.is_dir():
        return
    path.mkdir(mode=mode)
    path.chmod(mode)
    _adopt(path)


def write_atomically(path: Path, content: bytes, mode: int, durable: bool = True) -> None:
    """Write a file atomically: a crash leaves the old or the new one.

    Its owner is that of its directory, so that a command run by root writes for the daemon.
    Without `durable` it does not wait for the disk: a crash of the host may lose it.

    Raises:
        OSError: It can't be written; the old one stays.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            os.fchmod(descriptor, mode)
            file.flush()
            if durable:
                os.fsync(descriptor)
        _adopt(temporary)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    if durable:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _adopt(path: Path) -> None:
    """Change the owner of a file created by root to that of its directory."""
    if os.geteuid() == 0:
        above = path.parent.stat()
        os.chown(path, above.st_uid, above.st_gid)
