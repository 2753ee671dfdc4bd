"""The systems side by side: two nodes of each, linked over loopback, as durable as each can be.

Each is a context: on entry its daemons run and the link is up; on exit they are gone, and their
directories too.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from linkd.drill.testbed import free_port
from linkd.version import VERSION

SECRET = "a secret of the benchmark, long enough for linkd"
TICKS = os.sysconf("SC_CLK_TCK")


def wait(what: str, true: Callable[[], object], within: float = 30.0) -> None:
    """Wait until something is true; errors of a connection count as not yet.

    Raises:
        RuntimeError: It is not in time.
    """
    end = time.monotonic() + within
    while True:
        try:
            if true():
                return
        except (OSError, http.client.HTTPException, KeyError):
            pass
        if time.monotonic() > end:
            raise RuntimeError(f"{what}: not within {within:g} s")
        time.sleep(0.02)


class Process:
    """A daemon under measurement.

    Args:
        command: Its command line.
        folder: Where its output goes.
        name: Of the file for it.
    """

    def __init__(self, command: Sequence[str], folder: Path, name: str) -> None:
        self.output = folder / f"{name}.out"
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
        with self.output.open("ab") as out:
            self._process = subprocess.Popen(
                command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, env=environment
            )
        self.pid = self._process.pid

    def cpu_seconds(self) -> float:
        """Return the processor time that all its threads have used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def resident_bytes(self) -> int:
        """Return its resident memory."""
        text = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) * 1024  # type: ignore[index]

    def stop(self) -> None:
        """End it, and wait for that."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(15)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None


class System(ABC):
    """Two nodes of one system, `edge` and `hub`, or a hub and many.

    Attributes:
        title: For tables.
        protocol: Of the load.
        source: The port where the load publishes.
        sinks: The ports where it receives.
        options: What the load needs besides.
        window: The most messages that the load has under way: where the system is fastest.
    """

    title = ""
    protocol = ""
    window = 1000
    qos = 1

    def __init__(self, peers: int = 1, fan_out: bool = False) -> None:
        """Prepare; `fan_out`: publish at the hub and receive at all peers, else the other way."""
        self.folder = Path(tempfile.mkdtemp(prefix="linkd-bench-"))
        self.peers = peers
        self.fan_out = fan_out
        ports: set[int] = set()
        while len(ports) < 2 + peers:  # of a hundred, two are often equal
            ports.add(free_port())
        self.hub_port, self.link_port, *self.edge_ports = ports
        self.hub: Process | None = None
        self.edges: list[Process] = []

    @classmethod
    @abstractmethod
    def version(cls) -> str | None:
        """Return what is installed, or None."""

    @property
    def source(self) -> int:
        """Where the load publishes."""
        return self.hub_port if self.fan_out else self.edge_ports[0]

    @property
    def sinks(self) -> str:
        """Where the load receives."""
        ports = self.edge_ports if self.fan_out else [self.hub_port]
        return ",".join(map(str, ports))

    def __enter__(self) -> Self:
        try:
            self.start_hub()
            for number in range(self.peers):
                self.edges.append(self.start_edge(number))
            self.linked()
        except BaseException as error:
            error.add_note("\n".join(self._said()))
            self.close()
            raise
        return self

    def _said(self) -> list[str]:
        """Return the last that daemons have written, of those without a link first."""
        said = [f"{out.name}: {out.read_text()[-400:]}" for out in self.folder.glob("*.out")]
        return [each for each in said if "link.up" not in each][:10] or said[:10]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all and remove all."""
        for process in (*self.edges, self.hub):
            if process is not None:
                process.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    @abstractmethod
    def start_hub(self) -> None:
        """Start the hub."""

    @abstractmethod
    def start_edge(self, number: int) -> Process:
        """Start one that dials the hub."""

    @abstractmethod
    def linked(self) -> None:
        """Wait until messages pass."""

    def processes(self) -> list[Process]:
        """All daemons."""
        return [*self.edges, *([self.hub] if self.hub else [])]

    def cpu_seconds(self) -> float:
        """Return the processor time of all daemons."""
        return sum(process.cpu_seconds() for process in self.processes())

    def resident_bytes(self) -> int:
        """Return the resident memory of all daemons."""
        return sum(process.resident_bytes() for process in self.processes())


class Linkd(System):
    """linkd with its default settings: durable, fsync on both ends before it acknowledges."""

    title = "linkd"
    protocol = "linkd"
    window = 20_000

    def __init__(self, peers: int = 1, fan_out: bool = False, groups: int = 0) -> None:
        """Prepare; `groups`: peer number n gets the channels of group n alone, of so many."""
        super().__init__(peers, fan_out)
        self.groups = groups
        self.secret = self.folder / "secret"
        self.secret.touch(0o600)
        self.secret.write_text(SECRET)

    @classmethod
    def version(cls) -> str | None:
        return f"linkd {VERSION}"

    def _run(self, name: str, port: int, rest: str) -> Process:
        """Start a node."""
        config = self.folder / f"{name}.toml"
        config.write_text(
            f'[node]\nname = "{name}"\nstate_dir = "{self.folder / name}"\n'
            f'[api]\nsocket = "{self.folder / name}.sock"\nhttp = "127.0.0.1:{port}"\n'
            f"require_key = false\n{rest}"
        )
        return self._start(config, name)

    def _start(self, config: Path, name: str) -> Process:
        command = [sys.executable, "-m", "linkd", "run", "-c", str(config)]
        return Process(command, self.folder, name)

    def _peer(self, name: str, patterns: str, dial: str = "") -> str:
        dial = f'dial = ["{dial}"]\n' if dial else ""
        return (
            f'[[peer]]\nname = "{name}"\n{dial}secret_file = "{self.secret}"\n'
            f"send = {patterns}\nreceive = {patterns}\n"
        )

    def settled(self) -> bool:
        """Whether the hub's peers have acknowledged all."""
        return not any(link["backlog_records"] for link in self.status(self.hub_port)["links"])

    def _patterns(self, number: int) -> str:
        if not self.groups:
            return '["bench.>"]'
        return f'["bench.{number}.>"]'

    def start_hub(self) -> None:
        peers = "".join(
            self._peer(f"edge-{number + 1}", self._patterns(number)) for number in range(self.peers)
        )
        most = "[limits]\nhandshakes_per_second_per_address = 200.0\npending_per_address = 1000\n"
        listen = f'[listen]\naddress = "127.0.0.1:{self.link_port}"\n'
        self.hub = self._run("hub", self.hub_port, most + listen + peers)
        wait("the hub of linkd", lambda: self.status(self.hub_port))

    def start_edge(self, number: int) -> Process:
        name = f"edge-{number + 1}"
        dial = f"ws://127.0.0.1:{self.link_port}/link"
        patterns = self._patterns(number)
        return self._run(name, self.edge_ports[number], self._peer("hub", patterns, dial))

    def linked(self) -> None:
        def up() -> bool:
            links = self.status(self.hub_port)["links"]
            return all(link["state"] == "up" for link in links)

        wait("the links of linkd", up, 60.0 + 3 * self.peers)
        for port in self.edge_ports:
            wait("an edge of linkd", partial(self.status, port))

    def status(self, port: int) -> dict[str, Any]:
        """Return a node's `/v1/status`."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/v1/status")
            found: dict[str, Any] = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        return found


class Mosquitto(System):
    """Two mosquitto brokers with a bridge, persistence on."""

    title = "mosquitto, QoS 1"
    protocol = "mqtt"
    window = 100

    @classmethod
    def version(cls) -> str | None:
        found = shutil.which("mosquitto", path=_PATH)
        if found is None:
            return None
        out = subprocess.run([found, "-h"], capture_output=True, text=True).stdout
        return out.splitlines()[0]

    def _run(self, name: str, port: int, rest: str = "") -> Process:
        store = self.folder / name
        store.mkdir(exist_ok=True)
        config = self.folder / f"{name}.conf"
        config.write_text(
            f"listener {port} 127.0.0.1\nallow_anonymous true\nuser root\npersistence true\n"
            f"persistence_location {store}/\nmax_inflight_messages 0\nmax_queued_messages 0\n"
            f"set_tcp_nodelay true\nlog_type error\nlog_type warning\n{rest}"
        )
        program = shutil.which("mosquitto", path=_PATH) or "mosquitto"
        return Process([program, "-c", str(config)], self.folder, name)

    def start_hub(self) -> None:
        self.hub = self._run("hub", self.hub_port)
        wait("mosquitto", lambda: listens(self.hub_port))

    def start_edge(self, number: int) -> Process:
        way = "in" if self.fan_out else "out"
        return self._run(
            f"edge{number}",
            self.edge_ports[number],
            f"connection edge{number}\naddress 127.0.0.1:{self.hub_port}\n"
            f"topic bench/# {way} {self.qos}\nremote_clientid edge{number}\n"
            "cleansession false\nrestart_timeout 1\nnotifications false\n",
        )

    def linked(self) -> None:
        for port in self.edge_ports:
            wait("mosquitto", partial(listens, port))
        time.sleep(1.5)


class MosquittoTwice(Mosquitto):
    """The same with QoS 2: each message once."""

    title = "mosquitto, QoS 2"
    qos = 2


class Nats(System):
    """A NATS server and leaf nodes, JetStream with files on both ends: a stream and its mirror."""

    title = "NATS, JetStream"
    protocol = "nats"

    @classmethod
    def version(cls) -> str | None:
        found = shutil.which("nats-server", path=_PATH)
        if found is None:
            return None
        return subprocess.run([found, "-v"], capture_output=True, text=True).stdout.strip()

    def _run(self, name: str, port: int, rest: str) -> Process:
        config = self.folder / f"{name}.conf"
        config.write_text(
            f'server_name: {name}\nlisten: "127.0.0.1:{port}"\nmax_payload: 8388608\n'
            f"max_pending: 1073741824\n"
            f'jetstream {{ store_dir: "{self.folder / name}", domain: {name}, '
            f"max_mem: 1073741824, max_file: 20737418240 }}\n{rest}"
        )
        program = shutil.which("nats-server", path=_PATH) or "nats-server"
        return Process([program, "-c", str(config)], self.folder, name)

    def start_hub(self) -> None:
        listen = f'leafnodes {{ listen: "127.0.0.1:{self.link_port}" }}\n'
        self.hub = self._run("hub", self.hub_port, listen)
        wait("NATS", lambda: listens(self.hub_port))

    def start_edge(self, number: int) -> Process:
        remote = f'leafnodes {{ remotes: [ {{ url: "nats://127.0.0.1:{self.link_port}" }} ] }}\n'
        return self._run(f"edge{number}", self.edge_ports[number], remote)

    def linked(self) -> None:
        for port in self.edge_ports:
            wait("NATS", partial(listens, port))
        if self.fan_out:
            from_port, from_domain = self.hub_port, "hub"
            mirrors = [(port, f"edge{n}") for n, port in enumerate(self.edge_ports)]
        else:
            from_port, from_domain = self.edge_ports[0], "edge0"
            mirrors = [(self.hub_port, "hub")]
        self._create_streams(from_port, from_domain, mirrors)

    def _create_streams(self, port: int, domain: str, mirrors: Sequence[tuple[int, str]]) -> None:
        time.sleep(1.0)
        most = 4 << 30
        stream = {
            "name": "BENCH",
            "subjects": ["bench.>"],
            "storage": "file",
            "num_replicas": 1,
            "max_bytes": most,
        }
        _nats_call(port, "$JS.API.STREAM.CREATE.BENCH", stream)
        for number, (there, _) in enumerate(mirrors):
            name = f"MIRROR{number}"
            mirror = {
                "name": name,
                "storage": "file",
                "num_replicas": 1,
                "max_bytes": most,
                "mirror": {
                    "name": "BENCH",
                    "external": {
                        "api": f"$JS.{domain}.API",
                        "deliver": f"mirrored.{number}.{os.urandom(4).hex()}",
                    },
                },
            }
            _nats_call(there, f"$JS.API.STREAM.CREATE.{name}", mirror)
            consumer = {
                "stream_name": name,
                "config": {
                    "durable_name": "load",
                    "deliver_subject": "deliver.bench",
                    "deliver_policy": "all",
                    "ack_policy": "none",
                },
            }
            _nats_call(there, f"$JS.API.CONSUMER.DURABLE.CREATE.{name}.load", consumer)


_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin"


def listens(port: int) -> bool:
    """Whether somebody listens."""
    with socket.create_connection(("127.0.0.1", port), 1):
        return True


def _nats_call(port: int, subject: str, body: dict[str, Any]) -> dict[str, Any]:
    """Ask JetStream for something.

    Raises:
        RuntimeError: It refuses.
    """
    payload = json.dumps(body).encode()
    with socket.create_connection(("127.0.0.1", port), 10) as wire:
        lines = wire.makefile("rb")
        lines.readline()
        wire.sendall(
            b'CONNECT {"verbose":false}\r\nSUB answer 1\r\n'
            + f"PUB {subject} answer {len(payload)}\r\n".encode()
            + payload
            + b"\r\n"
        )
        while True:
            line = lines.readline()
            if not line:
                raise RuntimeError("NATS closed the connection")
            if line.startswith(b"PING"):
                wire.sendall(b"PONG\r\n")
            elif line.startswith(b"MSG"):
                answer: dict[str, Any] = json.loads(lines.read(int(line.split()[-1])))
                if "error" in answer:
                    raise RuntimeError(f"JetStream refuses {subject}: {answer['error']}")
                return answer


ALL: tuple[type[System], ...] = (Linkd, Mosquitto, MosquittoTwice, Nats)
