"""A real `linkd run` as a process: on this machine, or on a host of the lab."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from linkd.drill.testbed import Namespace
from tests.support import leash
from tests.support.lab import python
from tests.support.queueing import Queueing
from tests.support.unix_http import UnixConnection

T = TypeVar("T")
COMMAND = ("-c", "from linkd.cli import main; raise SystemExit(main())")
SECRET = "a-secret-for-the-lab-0123456789-0123456789"


class Line(NamedTuple):
    """One line that the daemon has written: when it came (monotonic, ours), and its fields.

    A line that is no JSON object has the one field `text`. `queued` are the seconds, just before,
    that the daemon was ready to run and got no processor: no bound of its own includes them.
    """

    at: float
    fields: dict[str, Any]
    queued: float = 0.0


class Daemon:
    """A daemon with a directory of its own; a context that starts it and ends it.

    Attributes:
        name: Of the node.
        directory: Short-lived; has `linkd.toml`, `state/`, `linkd.sock`, `secret`.
        lines: What it has written, oldest first, over all its starts.
        pid: Of the process under way, or of the last one.
        program: Of this Python, which is `linkd`; may be replaced before a start.
    """

    def __init__(
        self,
        name: str,
        config: str,
        host: Namespace | None = None,
        environment: Mapping[str, str] | None = None,
        command: Sequence[str] | None = None,
    ) -> None:
        """Prepare it.

        `config` is TOML without `[node]` and `[api]`, {secret} and {directory} are filled in.
        `command` replaces the whole command line (for the tests of this class).
        """
        self.name = name
        self.host = host
        self.directory = Path(tempfile.mkdtemp(prefix="linkd-"))
        leash.hold(self.directory)
        self.directory.chmod(0o755)
        self.config_file = self.directory / "linkd.toml"
        self.socket = self.directory / "linkd.sock"
        secret = self.directory / "secret"
        secret.touch(0o600)
        secret.write_text(SECRET)
        self.environment = dict(environment or {})
        self.lines: list[Line] = []
        self.pid = 0
        self.program: Sequence[str] = COMMAND
        self._command = command
        self._came = threading.Condition()
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._notices: socket.socket | None = None
        self.notices: list[tuple[float, str]] = []
        self.configure(config)

    def configure(self, config: str) -> None:
        """Write the configuration file; takes effect at the next start or reload."""
        config = config.replace("{secret}", str(self.directory / "secret"))
        config = config.replace("{directory}", str(self.directory))
        head = (
            f'[node]\nname = "{self.name}"\nstate_dir = "{self.directory / "state"}"\n'
            f'[api]\nsocket = "{self.socket}"\n'
        )
        self.config_file.write_text(head + config)

    # Life and death

    def start(self, ready_within: float | None = 20.0) -> None:
        """Start it and wait for READY; None: do not wait.

        Raises:
            RuntimeError: It ended, or said no READY in time; the message has its last lines.
        """
        path = self.directory / "notify"
        path.unlink(missing_ok=True)
        self._notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notices.bind(str(path))
        path.chmod(0o777)
        self.notices.clear()
        command = self._command or python(
            *self.program, "run", "-c", str(self.config_file), "--log-format", "json"
        )
        environment = {"NOTIFY_SOCKET": str(path), "PYTHONUNBUFFERED": "1", **self.environment}
        if self.host is None:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **environment},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        else:
            self._process = self.host.popen(
                command, environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        self.pid = self._process.pid
        reading = (self._process, Queueing(self.pid))
        self._reader = threading.Thread(target=self._read, args=reading, daemon=True)
        self._reader.start()
        threading.Thread(target=self._notified, args=(self._notices,), daemon=True).start()
        if ready_within is not None:
            try:
                self.wait_notice("READY=1", ready_within)
            except BaseException:
                self.kill()
                raise

    def _read(self, process: subprocess.Popen[bytes], queueing: Queueing) -> None:
        assert process.stdout is not None
        for raw in process.stdout:
            at, queued = time.monotonic(), queueing.recent()
            text = raw.decode(errors="replace").rstrip("\n")
            try:  # after a journal priority
                fields = json.loads(text[3:] if text[:1] == "<" else text)
            except ValueError:
                fields = None
            found = fields if isinstance(fields, dict) else {"text": text}
            with self._came:
                self.lines.append(Line(at, found, queued))
                self._came.notify_all()
        with self._came:
            self._came.notify_all()

    def _notified(self, notices: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                said = notices.recv(4096).decode(errors="replace")
                if not said:
                    return
                with self._came:
                    self.notices += [(time.monotonic(), line) for line in said.splitlines()]
                    self._came.notify_all()

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it runs."""
        if self.running and self._process is not None:
            self._process.send_signal(number)

    def freeze(self) -> None:
        """Stop it in its tracks; its kernel goes on answering."""
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill it at once and wait until it is gone; again is harmless."""
        self.signal(signal.SIGKILL)
        self.wait(10.0)

    def stop(self, within: float = 10.0) -> int:
        """Ask it to end; return its exit status.

        Raises:
            subprocess.TimeoutExpired: It did not end in time.
        """
        self.signal(signal.SIGTERM)
        return self.wait(within)

    def wait(self, within: float) -> int:
        """Wait for its end; return its exit status (negative: the signal).

        Raises:
            subprocess.TimeoutExpired: It did not end in time.
        """
        if self._process is None:
            return 0
        status = self._process.wait(within)
        if self._reader is not None:
            self._reader.join(15.0)
        if self._process.stdout is not None and not self._process.stdout.closed:
            self._process.stdout.close()
        if self._notices is not None:
            with contextlib.suppress(OSError):
                self._notices.shutdown(socket.SHUT_RDWR)
            self._notices.close()
            self._notices = None
        return status

    def close(self) -> None:
        """Kill it and remove its directory."""
        try:
            self.kill()
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Daemon:
        """Start it and wait for READY."""
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self.close()

    # What it says

    def wait_notice(self, line: str, within: float) -> float:
        """Wait until it has told its supervisor a line, and return when it did (monotonic).

        Raises:
            RuntimeError: It ended, or did not say so in time.
        """

        def look() -> float | None:
            return next((at for at, said in self.notices if said == line), None)

        return self._await(look, within, line)

    def wait_line(self, within: float, after: float = 0.0, **fields: Any) -> Line:
        """Wait for a line that came after a time (monotonic) and has these fields.

        Raises:
            RuntimeError: It ended, or there was no such line in time.
        """

        def look() -> Line | None:
            return next(self.matching(after, **fields), None)

        return self._await(look, within, repr(fields))

    def matching(self, after: float = 0.0, **fields: Any) -> Iterator[Line]:
        """Return the lines that came after a time and have these fields."""
        for line in tuple(self.lines):
            if line.at > after and all(line.fields.get(k) == v for k, v in fields.items()):
                yield line

    def _await(self, look: Callable[[], T | None], within: float, what: str) -> T:
        end = time.monotonic() + within
        with self._came:
            while (found := look()) is None:
                left = end - time.monotonic()
                if left <= 0 or not self.running:
                    state = "runs" if self.running else f"has ended: {self.wait(1.0)}"
                    raise RuntimeError(f"{self.name} ({state}): no {what}\n{self.tail()}")
                self._came.wait(min(left, 0.5))
        return found

    def tail(self, count: int = 30) -> str:
        """Return its last lines, for a message."""
        return "\n".join(
            str(line.fields.get("text") or json.dumps(line.fields)) for line in self.lines[-count:]
        )

    # Asking it

    def call(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        content_type: str = "application/json",
        timeout: float = 5.0,
    ) -> Any:
        """Call its local API on the socket; return the decoded JSON, or the text.

        Raises:
            RuntimeError: A status of 400 or more (but 503, which /readyz answers when not ready).
            OSError: Nobody answers.
        """
        connection = UnixConnection(str(self.socket), timeout)
        try:
            headers = {"Content-Type": content_type} if body is not None else {}
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            text = response.read().decode()
        finally:
            connection.close()
        if response.status >= 400 and response.status != 503:
            raise RuntimeError(f"{method} {path}: {response.status} {text}")
        try:
            return json.loads(text)
        except ValueError:
            return text

    def status(self) -> dict[str, Any]:
        """Return what /v1/status says."""
        answer: dict[str, Any] = self.call("GET", "/v1/status")
        return answer

    def link(self, peer: str) -> dict[str, Any]:
        """Return the status of the link to one peer.

        Raises:
            KeyError: There is no such link.
        """
        for link in self.status()["links"]:
            if link["peer"] == peer:
                found: dict[str, Any] = link
                return found
        raise KeyError(peer)

    def wait_up(self, peer: str, within: float = 15.0) -> float:
        """Wait until the link to a peer is up; return when that was seen (monotonic).

        Raises:
            RuntimeError: It was not up in time.
        """
        end = time.monotonic() + within
        while True:
            with contextlib.suppress(OSError):
                if self.link(peer)["state"] == "up":
                    return time.monotonic()
            if time.monotonic() > end or not self.running:
                raise RuntimeError(
                    f"{self.name}: no link to {peer} within {within} s\n{self.tail()}"
                )
            time.sleep(0.05)


def listen(port: int = 9443, address: str = "0.0.0.0") -> str:
    """Return a `[listen]` in the clear."""
    at = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    return f'[listen]\naddress = "{at}"\ninsecure = true\n'


def peer(name: str, *urls: str, extra: str = "") -> str:
    """Return a `[[peer]]`: one that we dial, or without URLs one that dials us."""
    dial = f"dial = {json.dumps(list(urls))}\ninsecure = true\n" if urls else ""
    return f'[[peer]]\nname = "{name}"\n{dial}secret_file = "{{secret}}"\n{extra}'
