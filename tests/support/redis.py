"""A Redis server of the tests' own: on loopback, in a temporary directory, never the system's."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from linkd.drill.testbed import free_port

try:
    import redis
except ImportError:
    redis = None  # type: ignore[assignment]

needs_redis = pytest.mark.skipif(
    shutil.which("redis-server") is None or redis is None,
    reason="redis-server or redis-py is not installed",
)


class Redis:
    """A server that can be killed and started again.

    Args:
        arguments: Of its command, such as `--requirepass`.
        tls: Its certificate, key and authority; it speaks nothing but TLS then.
    """

    def __init__(self, *arguments: str, tls: tuple[Path, Path, Path] | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="linkd-redis-"))
        self.port = free_port()
        self._arguments = ["--port", str(self.port)]
        if tls is not None:
            certificate, key, ca = map(str, tls)
            self._arguments = ["--port", "0", "--tls-port", str(self.port)]
            self._arguments += ["--tls-cert-file", certificate, "--tls-key-file", key]
            self._arguments += ["--tls-ca-cert-file", ca, "--tls-auth-clients", "no"]
        self._arguments += arguments
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        """Where it is, without TLS."""
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and wait until it accepts connections."""
        command = ["redis-server", "--bind", "127.0.0.1", "--dir", str(self.folder)]
        command += ["--save", "", "--appendonly", "no", "--loglevel", "warning"]
        self._process = subprocess.Popen(
            [*command, *self._arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 10.0
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1.0).close()
            except OSError:
                assert time.monotonic() < deadline, "redis-server did not start"
                assert self._process.poll() is None, "redis-server ended"
                time.sleep(0.02)
            else:
                return

    def signal(self, number: signal.Signals) -> None:
        """Freeze it, or let it go on."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """Kill it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def remove(self) -> None:
        """Kill it, and remove its directory."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
