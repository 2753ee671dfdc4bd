"""nginx, HAProxy and Caddy as children of a test, with the files of conf/proxies."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from tests.support.needs import need, which

CONF = Path(__file__).resolve().parents[2] / "conf" / "proxies"


def shipped(name: str, changes: Mapping[str, str]) -> str:
    """Return a file of conf/proxies with its names, ports and paths replaced, all of them."""
    text = (CONF / name).read_text()
    for old, new in changes.items():
        assert old in text, f"{name} has no {old!r}"
        text = text.replace(old, new)
    return text


class Proxy:
    """A program that runs in the foreground; a context that starts it and ends it.

    Args:
        directory: For its configuration and what it writes.
        port: It is ready once it accepts there.
        command: The program and its arguments; {config} is its file.
        config: The content of that file.

    Attributes:
        name: The program's.
    """

    def __init__(self, directory: Path, port: int, command: tuple[str, ...], config: str) -> None:
        need(command[0])
        self.name = command[0]
        directory.mkdir(exist_ok=True)
        path, self._log = directory / "config", directory / "log"
        path.write_text(config)
        program, self._port = which(command[0]), port
        assert program is not None
        self._command = [program, *(each.format(config=path) for each in command[1:])]
        self._environment = {**os.environ, "HOME": str(directory), "XDG_DATA_HOME": str(directory)}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it accepts connections."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )
        end = time.monotonic() + 10.0
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self._port), 1.0).close()
                return
            assert self._process.poll() is None, self.log
            assert time.monotonic() < end, self.log
            time.sleep(0.02)

    def stop(self) -> None:
        """End it and its workers at once."""
        self.signal(signal.SIGKILL)
        process, self._process = self._process, None
        if process is not None:
            process.wait(10.0)

    def signal(self, number: signal.Signals) -> None:
        """Send it and its workers a signal."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    @property
    def log(self) -> str:
        """What it has written."""
        return self._log.read_text()

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self.stop()


def nginx(directory: Path, port: int, http: str, stream: str = "") -> Proxy:
    """Return nginx with the content of its `http` block, and text outside of it."""
    own = "".join(
        f"{kind}_temp_path {directory}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;\n" if os.geteuid() == 0 else ""
    module = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
    if stream:
        if not module.exists():
            need("libnginx-mod-stream")
        user += f"load_module {module};\n"
    config = (
        f"{user}daemon off; pid {directory}/pid; error_log stderr; worker_processes 1;\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{own}{http}\n}}\n{stream}"
    )
    return Proxy(directory, port, ("nginx", "-e", "stderr", "-c", "{config}"), config)


def haproxy(directory: Path, port: int, config: str) -> Proxy:
    """Return HAProxy."""
    return Proxy(directory, port, ("haproxy", "-db", "-f", "{config}"), config)


def caddy(directory: Path, port: int, config: str) -> Proxy:
    """Return Caddy, with no admin port and no authority of its own."""
    head = "{\n\tadmin off\n\tauto_https off\n\tskip_install_trust\n}\n"
    command = ("caddy", "run", "--adapter", "caddyfile", "--config", "{config}")
    return Proxy(directory, port, command, head + config)


class Caller:
    """A client's connection through a proxy; a context that closes it.

    Args:
        port: Of the proxy, on loopback.
        source: The address that it comes from.
        wrap: Begins TLS on the socket.
    """

    def __init__(self, port: int, source: str = "127.0.0.1", wrap: Any = None) -> None:
        raw = socket.create_connection(("127.0.0.1", port), 5.0, (source, 0))
        try:
            self.line = raw if wrap is None else wrap(raw)
        except OSError:
            raw.close()
            raise

    def ask(self, request: bytes) -> tuple[int, bytes]:
        """Return status and body of an answer; status 0 where the connection closes instead.

        The body of an answer without a length is what came with its head.
        """
        heard = b""
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            self.line.sendall(request)
            while not _is_whole(heard) and (piece := self.line.recv(65_536)):
                heard += piece
        head, _, body = heard.partition(b"\r\n\r\n")
        return int(head.split(b" ")[1]) if head else 0, body

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.line.close()


def _is_whole(heard: bytes) -> bool:
    """Return whether an answer has all of its body, as far as its head gives a length."""
    head, end, body = heard.partition(b"\r\n\r\n")
    found = re.search(rb"(?i)\r\ncontent-length: *([0-9]+)", head)
    return bool(end) and (found is None or len(body) >= int(found[1]))
