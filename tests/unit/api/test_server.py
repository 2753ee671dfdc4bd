"""The API's socket file comes back where something removes it."""

from __future__ import annotations

import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import globalLogPublisher

from linkd.api.server import SocketFile

reactor: Any = global_reactor


class Listening:
    """A socket file, what was logged of it, and callers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        factory = Factory.forProtocol(Protocol)
        factory.noisy = False
        self.file = SocketFile(reactor, path, factory)
        self.lines: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(self.lines.append)

    def answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as caller:
            try:
                caller.connect(str(self.path))
            except OSError:
                return False
            return True

    def logged(self) -> list[tuple[str, str]]:
        found = [
            (line["log_level"].name, line["detail"])
            for line in self.lines
            if line.get("event") == "api.socket-lost"
        ]
        self.lines.clear()
        return found


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[Listening]:
    made = Listening(tmp_path / "l.sock")
    yield made
    globalLogPublisher.removeObserver(made.lines.append)
    pytest_twisted.blockon(made.file.stopListening())


async def turn() -> None:
    """Let the reactor end what was closed."""
    later: Deferred[None] = Deferred()
    reactor.callLater(0.01, later.callback, None)
    await later


def test_an_existing_socket_file_is_left_alone(listening: Listening) -> None:
    inode = listening.path.stat().st_ino
    listening.file.check()
    assert listening.path.stat().st_ino == inode
    assert listening.logged() == []


@pytest_twisted.ensureDeferred
async def test_a_removed_socket_file_is_created_again(listening: Listening) -> None:
    listening.path.unlink()
    assert not listening.answers()
    listening.file.check()
    await turn()
    assert listening.answers()
    assert stat.S_IMODE(listening.path.stat().st_mode) == 0o660
    assert listening.logged() == [("warn", "it was made again")]
    listening.file.check()
    assert listening.logged() == []


@pytest_twisted.ensureDeferred
async def test_a_removed_directory_of_the_socket_is_created_again(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    listening = Listening(tmp_path / "run" / "l.sock")
    listening.path.unlink()
    listening.path.parent.rmdir()
    listening.file.check()
    await turn()
    assert listening.answers()
    globalLogPublisher.removeObserver(listening.lines.append)
    await listening.file.stopListening()
    assert not listening.path.exists()


@pytest_twisted.ensureDeferred
async def test_a_foreign_file_at_the_sockets_path_stays(listening: Listening) -> None:
    listening.path.unlink()
    listening.path.write_text("precious")
    listening.file.check()
    listening.file.check()
    ((level, detail),) = listening.logged()
    message = f"api.socket: {listening.path}: expected a free path, something else is there"
    assert (level, detail) == ("error", message)
    assert listening.path.read_text() == "precious"
    listening.path.unlink()
    listening.file.check()
    await turn()
    assert listening.answers()
    assert [level for level, _ in listening.logged()] == ["warn"]


@pytest_twisted.ensureDeferred
async def test_the_socket_of_another_daemon_stays(tmp_path: Path) -> None:
    listening = Listening(tmp_path / "l.sock")
    listening.path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(listening.path))
        other.listen()
        listening.file.check()
        ((level, detail),) = listening.logged()
        message = f"api.socket: {listening.path}: a running daemon listens there"
        assert (level, detail) == ("error", message)
        await listening.file.stopListening()
        assert listening.answers()
    globalLogPublisher.removeObserver(listening.lines.append)
