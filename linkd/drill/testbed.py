"""A temporary pair of daemons: namespaces or loopback, the path between, certificates.

A namespace exists as long as its holder, a process that reads from our pipe, and as long as the
processes in it: nothing is left when this process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

import msgspec

from linkd import clock
from linkd.client.errors import ClientError
from linkd.clock import wall
from linkd.drill import relay
from linkd.drill.deadman import MARK, ChildProcess, DrillFailed, Switch, admin_path
from linkd.drill.monitor import DaemonClient
from linkd.drill.relay import Way
from linkd.drill.report import Bounds
from linkd.net import certificates
from linkd.net.certificates import Issuer, Subject, Validity

_AUTHORITY_BACK_SECONDS: Final = 3600.0
_AUTHORITY_SECONDS: Final = 86_400.0
_LEAF_BACK_SECONDS: Final = 600.0


class DrillAuthority:
    """An authority with a certificate of one day.

    Attributes:
        file: Its certificate, PEM.
    """

    def __init__(self, directory: Path) -> None:
        key = certificates.make_key()
        validity = Validity.around(clock.wall(), _AUTHORITY_BACK_SECONDS, _AUTHORITY_SECONDS)
        self._issuer = Issuer(certificates.make_authority(key, "linkd drill", validity), key)
        self._directory = directory
        self.file = directory / "ca.crt"
        self.file.write_bytes(certificates.pem(self._issuer.certificate))

    def issue(self, address: str, seconds: float) -> tuple[Path, Path]:
        """Write a certificate of a listener and its key, `hub.crt` and `hub.key`.

        Args:
            address: The IP address it is for.
            seconds: How long it is valid from now.

        Returns:
            The paths of the two files, which replace those written before.
        """
        key = certificates.make_key()
        subject = Subject("hub", [certificates.general_name(address)], key.public_key())
        validity = Validity.around(clock.wall(), _LEAF_BACK_SECONDS, seconds)
        certificate = certificates.issue(
            self._issuer, subject, certificates.FOR_LISTENING, validity
        )
        files = self._directory / "hub.crt", self._directory / "hub.key"
        files[1].touch(0o600)
        files[1].write_bytes(certificates.key_pem(key))
        files[0].write_bytes(certificates.pem(certificate))
        return files


HUB_ADDRESS: Final = "10.213.7.1"
EDGE_ADDRESS: Final = "10.213.7.2"
HUB_NAME: Final = "hub.drill.invalid"
PORT: Final = 9443
_WAIT_SECONDS: Final = 10.0
_TOOLS: Final = {
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "ip": "iproute2",
    "iptables": "iptables",
}
"""What namespaces take: program, and the Debian package that has it."""


class Host:
    """A place where commands run: this machine.

    Attributes:
        name: For messages.
        address: Where others reach it.
        prefix: The command that runs a command here.
    """

    def __init__(self, name: str, address: str = "127.0.0.1") -> None:
        self.name, self.address = name, address
        self.prefix: list[str] = []

    def run(
        self, *command: str, check: bool = True, timeout: float = 30.0, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a command here to its end.

        Raises:
            DrillFailed: It failed, and `check` is set, or it took longer than `timeout` seconds.
        """
        try:
            done = subprocess.run(
                [*self.prefix, *command],
                capture_output=True,
                text=True,
                timeout=timeout,
                input=stdin,
                env=self._environment(),
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise DrillFailed(f"{self.name}: {error}") from None
        if check and done.returncode != 0:
            output = (done.stderr or done.stdout).strip()
            command_line = " ".join(command)
            raise DrillFailed(f"{self.name}: {command_line}: exit {done.returncode}: {output}")
        return done

    def sh(self, script: str) -> str:
        """Run a shell script here, stop at its first error, and return its output."""
        return self.run("sh", "-euc", script).stdout

    def popen(
        self,
        command: Sequence[str],
        env: Mapping[str, str] | None = None,
        stdout: int | IO[Any] | None = None,
        stderr: int | IO[Any] | None = None,
        stdin: int | IO[Any] | None = subprocess.DEVNULL,
    ) -> subprocess.Popen[bytes]:
        """Start a command here, in a session of its own; the process id is the command's own."""
        return subprocess.Popen(
            [*self.prefix, *command],
            env=self._environment() | dict(env or {}),
            cwd="/",
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )

    def close(self) -> None:
        """End it, if it was made for us."""

    @staticmethod
    def _environment() -> dict[str, str]:
        return {**os.environ, "PATH": admin_path()}


class Namespace(Host):
    """A network and mount namespace; in a user namespace of its own without root.

    It exists as long as its holder, which ends with this process, and the processes in it.

    Args:
        name: For messages.
        address: The address that it is to have.
        parent: Without root: the namespace whose user namespace it joins.

    Attributes:
        pid: The holder's process id.

    Raises:
        DrillFailed: It can't be made.
    """

    def __init__(self, name: str, address: str = "", parent: Namespace | None = None) -> None:
        super().__init__(name, address)
        user = os.geteuid() != 0
        options = ["-U", "-r"] if user and parent is None else []
        self._holder = subprocess.Popen(
            [
                *(parent.prefix if user and parent is not None else []),
                *("unshare", *options, "-n", "-m", "sh", "-c", "echo ready; exec cat"),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            start_new_session=True,
            env=self._environment(),
        )
        self.pid = self._holder.pid
        own = ["-U", "--preserve-credentials"] if user else []
        self.prefix = ["nsenter", "-t", str(self.pid), *own, "-n", "-m", "--"]
        assert self._holder.stdout is not None
        assert self._holder.stderr is not None
        try:
            select.select([self._holder.stdout], [], [], _WAIT_SECONDS)
            if self._holder.poll() is not None or os.read(self._holder.stdout.fileno(), 16) == b"":
                output = self._holder.stderr.read(400).decode(errors="replace").strip()
                raise DrillFailed(f"no network namespace can be made here: {output}")
            self._holder.stderr.close()
            self.sh("ip link set lo up")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the holder; the namespace goes when the last process in it ends."""
        for stream in (self._holder.stdin, self._holder.stdout, self._holder.stderr):
            assert stream is not None
            with contextlib.suppress(OSError):
                stream.close()
        try:
            self._holder.wait(5)
        except subprocess.TimeoutExpired:
            self._holder.kill()
            self._holder.wait(5)


class Loopback:
    """Two hosts on loopback; the path between them cannot be disturbed.

    Attributes:
        hub, edge: The hosts; the edge dials.
        port: The hub's port.
        namespaces: Whether each host has a network of its own.
    """

    namespaces = False

    def __init__(self) -> None:
        self.hub, self.edge = Host("hub"), Host("edge")
        self.port = free_port()

    def name_known(self, known: bool) -> None:
        """Set whether HUB_NAME has an address from now on: only in namespaces."""

    def close(self) -> None:
        """End both hosts."""
        self.edge.close()
        self.hub.close()


class Namespaces(Loopback):
    """Two network namespaces, joined by a veth pair.

    Args:
        directory: For small files; it outlives this.
    """

    namespaces = True

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.port = PORT
        self._hosts = directory / "hosts"
        resolver = directory / "resolv.conf"
        resolver.write_text("nameserver 127.0.0.1\n")
        try:
            self.hub = hub = Namespace("hub", HUB_ADDRESS)
            self.edge = edge = Namespace("edge", EDGE_ADDRESS, hub)
            hub.sh(f"ip link add path type veth peer name path netns {edge.pid}")
            for host in (hub, edge):
                host.sh(f"ip addr add {host.address}/24 dev path; ip link set path up")
            self.name_known(True)
            edge.sh(
                f"mount --bind '{self._hosts}' /etc/hosts; "
                f"mount --bind '{resolver}' /etc/resolv.conf"
            )
            for host in (hub, edge):
                host.sh("iptables -w 5 -S INPUT")
        except BaseException:
            self.close()
            raise

    def name_known(self, known: bool) -> None:
        """Set whether HUB_NAME has an address from now on."""
        line = f"{HUB_ADDRESS} {HUB_NAME}\n" if known else ""
        self._hosts.write_text(f"127.0.0.1 localhost\n{line}")


def prepare(directory: Path, bare: bool = False) -> tuple[Loopback, str]:
    """Return the network for a pair, and in a few words why it has no namespaces.

    Args:
        directory: For small files.
        bare: Use loopback in any case.
    """
    if bare:
        return Loopback(), "loopback was asked for"
    missing = [tool for tool in _TOOLS if shutil.which(tool, path=admin_path()) is None]
    if missing:
        packages = " ".join(dict.fromkeys(_TOOLS[tool] for tool in missing))
        return Loopback(), f"{' and '.join(missing)} missing (Debian: apt install {packages})"
    try:
        return Namespaces(directory), ""
    except (DrillFailed, OSError) as error:
        return Loopback(), str(error)


def free_port() -> int:
    """Return an unused port of loopback, outside the range of ephemeral ports.

    An outgoing connection might take one of those first.
    """
    while True:
        port = random.randrange(16_384, 32_768)
        with contextlib.suppress(OSError):
            socket.create_server(("127.0.0.1", port)).close()
            return port


class FilteredPath:
    """A path with a packet filter at either end; both are the pair's own.

    It has the methods of `Relay`: each replaces what the previous one did.

    Packets are dropped where they arrive: the sender can't know, as on a real path.
    """

    def __init__(self, network: Loopback) -> None:
        self._network = network

    def block(self, way: Way) -> None:
        """Drop all packets in this direction."""
        self._rules("-j DROP", way)

    def reject(self) -> None:
        """Answer all TCP by a reset; the resets themselves must pass."""
        self._rules("-p tcp ! --tcp-flags RST RST -j REJECT --reject-with tcp-reset", "both")

    def lose(self, share: float) -> None:
        """Drop packets at random, 0 to 1, as they arrive, each way."""
        self._rules(f"-m statistic --mode random --probability {share:.3f} -j DROP", "both")

    def heal(self) -> None:
        """Remove all rules: there are no others here."""
        for host in (self._network.hub, self._network.edge):
            host.sh("iptables -w 5 -F INPUT")

    def _rules(self, rest: str, way: Way) -> None:
        self.heal()
        hub, edge = self._network.hub, self._network.edge
        if way in ("both", "up"):
            hub.sh(f"iptables -w 5 -A INPUT -s {edge.address} {rest}")
        if way in ("both", "down"):
            edge.sh(f"iptables -w 5 -A INPUT -s {hub.address} {rest}")


class Relay(ChildProcess):
    """A path through a relay process on loopback, which can be disturbed; a context that ends it.

    Attributes:
        port: Where it listens.
    """

    def __init__(self, target: tuple[str, int], prefix: Sequence[str] = ()) -> None:
        """Start it before `target`; `prefix` is a command that enters a namespace.

        Raises:
            DrillFailed: The relay did not start.
        """
        own = [sys.executable, "-I", str(Path(relay.__file__).resolve()), target[0], str(target[1])]
        super().__init__([*prefix, *own], "relay")
        try:
            self.port = int(self.order()["port"])
        except BaseException:
            self.close()
            raise

    def block(self, way: Way) -> None:
        """Let nothing pass in this direction, and close no connection."""
        self.order(**{"pass": {"up": way == "down", "down": way == "up"}})

    def reject(self) -> None:
        """Reset every open connection and refuse new ones."""
        self.order(listening=False, reset=True)

    def slow(self, rate: float) -> None:
        """Let about so many bytes a second pass in each direction."""
        self.order(rate=rate)

    def heal(self) -> None:
        """Forward everything again."""
        passes = {"up": True, "down": True}
        self.order(**{"pass": passes, "rate": None, "listening": True, "closing": False})


PREFIX: Final = "linkd-drill-"
"""The names of temporary pairs' directories begin so."""

UP_CHANNEL: Final = "drill.up"
DOWN_CHANNEL: Final = "drill.down"
SMALL_DISK: Final = "48m"
START_SECONDS: Final = 30.0
HOUR_SECONDS: Final = 3600.0
_STOP_SECONDS: Final = 8.0
_FRESH_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.05
_FAKETIME: Final = tuple(
    Path(root) / "faketime" / "libfaketimeMT.so.1"
    for root in (
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
        "/usr/lib64",
        "/usr/lib",
    )
)


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """The set-up of a drill's pair.

    Args:
        hub_absent: Only the edge is started.
        relay: The path goes through the relay, even with namespaces.
        by_name: The edge dials the hub by its name.
        nameless: That name has no address yet when the edge starts.
        clocks: Both use wall clocks that can be stepped.
        small_disk: The hub's disk is small.
        tls: The link is encrypted.
    """

    hub_absent: bool = False
    relay: bool = False
    by_name: bool = False
    nameless: bool = False
    clocks: bool = False
    small_disk: bool = False
    tls: bool = False


def faketime() -> Path | None:
    """Return the path of libfaketime, if it is installed."""
    return next((path for path in _FAKETIME if path.exists()), None)


class SteppedClock:
    """A wall clock that can be stepped while processes use it; their monotonic clocks are right.

    Attributes:
        environment: For the processes that use it.
    """

    def __init__(self, directory: Path) -> None:
        """Make one that shows the right time; raise DrillFailed without libfaketime."""
        self._file = directory / "clock"
        library = faketime()
        if library is None:
            raise DrillFailed("libfaketime is not installed")
        self.step(0.0)
        self.environment = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
            # Else its waits on conditions stall for seconds: the interpreter's own lock.
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",
        }

    def step(self, seconds: float) -> None:
        """Set it to the true time plus so many seconds."""
        following = self._file.with_suffix(".new")
        following.write_text(f"{seconds:+.3f}\n")
        following.replace(self._file)


def hold(directory: Path) -> int:
    """Lock a directory as one in use; return the descriptor that holds the lock."""
    held = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    fcntl.flock(held, fcntl.LOCK_EX)
    return held


def remove_leftovers(top: Path, now: float) -> None:
    """Remove the leftovers of drills whose command and switch were both killed.

    Args:
        top: Where drills make their directories.
        now: Unix seconds; a new directory may not be locked yet.
    """
    for path in top.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            found = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                made = os.fstat(found)
                if made.st_uid == os.geteuid() and now - made.st_ctime > _FRESH_SECONDS:
                    fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(found)


def package_environment() -> dict[str, str]:
    """Return the environment of a process that imports this installation of linkd."""
    root = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PATH": admin_path(), "PYTHONPATH": paths}


class DrillNode:
    """One daemon of the pair.

    Args:
        name: `hub` or `edge`.
        host: Where it runs.
        directory: Its own; `state` in it is its state directory.
        mark: What marks its processes, so that the switch ends them.

    Attributes:
        role: `listener` or `dialer`.
        other: The other node's name.
        daemon: Its client.
        environment: What its process gets beside ours.
    """

    def __init__(self, name: str, host: Host, directory: Path, mark: str) -> None:
        self.name, self.host, self.directory = name, host, directory
        self.role, self.other = ("listener", "edge") if name == "hub" else ("dialer", "hub")
        self.daemon = DaemonClient(str(directory / "linkd.sock"))
        self.environment = {MARK: mark}
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir()

    def configure(self, lines: Sequence[str]) -> None:
        """Write its configuration: `[node]` and `[api]`, then these lines."""
        head = [
            f'[node]\nname = "{self.name}"\nstate_dir = "{self.directory / "state"}"',
            f'[api]\nsocket = "{self.daemon.socket}"',
        ]
        (self.directory / "linkd.toml").write_text("\n".join([*head, *lines]) + "\n")

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            DrillFailed: It ended, or does not answer within 30 s; the message has its last lines.
        """
        own = [sys.executable, "-m", "linkd", "run", "-c", str(self.directory / "linkd.toml")]
        environment = package_environment() | self.environment
        with (self.directory / "log").open("ab") as log:
            self._process = self.host.popen(own, environment, stdout=log, stderr=log)
        until = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(ClientError):
                self.daemon.status()
                return
            if self._process.poll() is not None or time.monotonic() > until:
                self.kill()
                raise DrillFailed(f"{self.name} did not start: {self.last_words()}")
            time.sleep(_POLL_SECONDS)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """Kill it at once; idempotent."""
        self.signal(signal.SIGKILL)
        self._reap(_STOP_SECONDS)

    def close(self) -> None:
        """Ask it to end, and kill it if it does not."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        try:
            self._reap(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()

    def last_words(self) -> str:
        """Return the last lines that it wrote."""
        log = self.directory / "log"
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        return " / ".join(lines[-5:]) or "no output"

    def _reap(self, within: float) -> None:
        if self._process is not None:
            self._process.wait(within)
            self._process = None


@contextlib.contextmanager
def running_pair(setup: Setup, bounds: Bounds, bare: bool = False) -> Iterator[Testbed]:
    """Yield a pair whose link is up, if both nodes are to run; remove everything at the end.

    Raises:
        DrillFailed: It can't be made; nothing is left.
    """
    with contextlib.ExitStack() as stack:
        pair = Testbed(setup, bounds, bare, stack)
        pair.start_all()
        yield pair


class Testbed:
    """The two nodes and the path between them.

    Attributes:
        hub, edge: The nodes; the edge dials.
        nodes: Both, the hub first.
        network: Their hosts.
        path: The path, which can be disturbed.
        bare: Why there are no namespaces; empty if there are.
        clocks: The wall clocks of the nodes by their names, if they can be stepped.
    """

    def __init__(
        self, setup: Setup, bounds: Bounds, bare: bool, stack: contextlib.ExitStack
    ) -> None:
        """Prepare the pair; `stack` receives what removes it again.

        Raises:
            DrillFailed: It can't be made.
        """
        self.setup = setup
        self._bounds = bounds
        self._stack = stack
        self.clocks: dict[str, SteppedClock] = {}
        self.path: FilteredPath | Relay
        remove_leftovers(Path(tempfile.gettempdir()), wall())
        self.directory = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
        self._stack.callback(os.close, hold(self.directory))
        switch = self._stack.enter_context(Switch())
        switch.remove(str(self.directory))
        network, self.bare = prepare(self.directory, bare)
        self._stack.callback(network.close)
        self.network, self.path = network, FilteredPath(network)
        self._dial = f"{network.hub.address}:{network.port}"
        if self.setup.relay or not network.namespaces:
            self.path = Relay((network.hub.address, network.port), network.edge.prefix)
            self._stack.callback(self.path.close)
            self._dial = f"127.0.0.1:{self.path.port}"
        elif self.setup.by_name:
            self._dial = f"{HUB_NAME}:{network.port}"
        self.hub = DrillNode("hub", network.hub, self.directory / "hub", switch.mark)
        self.edge = DrillNode("edge", network.edge, self.directory / "edge", switch.mark)
        self.nodes = self.hub, self.edge
        if self.setup.clocks:
            self.clocks = {node.name: SteppedClock(node.directory) for node in self.nodes}
            for node in self.nodes:
                node.environment |= self.clocks[node.name].environment
        self._configure()

    def start_all(self) -> None:
        """Start the daemons, and wait until the link is up if both are to run."""
        if self.setup.small_disk:
            state = self.hub.directory / "state"
            state.mkdir()
            self.hub.host.sh(f"mount -t tmpfs -o size={SMALL_DISK},mode=700 tmpfs '{state}'")
        if self.setup.nameless:
            self.network.name_known(False)
        for node in self.nodes:
            if not (self.setup.hub_absent and node is self.hub):
                self.start(node.name)
        if not (self.setup.hub_absent or self.setup.nameless):
            self._await_up()

    def node(self, name: str) -> DrillNode:
        """Return the node of that name."""
        return self.hub if name == "hub" else self.edge

    def start(self, name: str) -> None:
        """Start a node."""
        node = self.node(name)
        self._stack.callback(node.close)
        node.start()

    def certify(self, seconds: float) -> None:
        """Give the hub a certificate that is valid for so long, and make it reload."""
        self._authority.issue(self._dial.rpartition(":")[0], seconds)
        self.hub.signal(signal.SIGHUP)

    def _await_up(self) -> None:
        until = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(ClientError):
                links = [node.daemon.link(node.other) for node in self.nodes]
                if all(link is not None and link.state == "up" for link in links):
                    return
            if time.monotonic() > until:
                output = " / ".join(node.last_words() for node in self.nodes)
                raise DrillFailed(
                    f"the pair did not come up within {START_SECONDS:.0f} s: {output}"
                )
            time.sleep(_POLL_SECONDS)

    def _configure(self) -> None:
        """Write both configurations."""
        secret = self.directory / "secret"
        secret.touch(0o600)
        secret.write_text(secrets.token_urlsafe(48))
        common = [_table("heartbeat", self._bounds.heartbeat)]
        common.append(_table("reconnect", self._bounds.reconnect))
        listen = f'[listen]\naddress = "{self.network.hub.address}:{self.network.port}"\n'
        scheme, trust = "ws", "insecure = true\n"
        if self.setup.tls:
            self._authority = DrillAuthority(self.directory)
            certificate, key = self._authority.issue(self._dial.rpartition(":")[0], HOUR_SECONDS)
            listen += f'certificate = "{certificate}"\nkey = "{key}"\n'
            scheme, trust = "wss", f'ca = "{self._authority.file}"\n'
        else:
            listen += "insecure = true\n"
        log = "[log]\nmin_free_bytes = 4194304\nsegment_bytes = 1048576\nmax_bytes = 33554432\n"
        shared = f'secret_file = "{secret}"\n'
        to_edge = f'send = ["{DOWN_CHANNEL}"]\nreceive = ["{UP_CHANNEL}"]\n'
        to_hub = f'send = ["{UP_CHANNEL}"]\nreceive = ["{DOWN_CHANNEL}"]\n'
        dial = f'dial = ["{scheme}://{self._dial}/link"]\n'
        small = [log] if self.setup.small_disk else []
        self.hub.configure([*common, *small, listen, f'[[peer]]\nname = "edge"\n{shared}{to_edge}'])
        self.edge.configure([*common, f'[[peer]]\nname = "hub"\n{dial}{shared}{trust}{to_hub}'])


def _table(name: str, settings: msgspec.Struct) -> str:
    """Return settings as a TOML table; all values are numbers or absent."""
    values: Mapping[str, float | None] = msgspec.structs.asdict(settings)
    lines = [f"{key} = {value}" for key, value in values.items() if value is not None]
    return "\n".join([f"[{name}]", *lines])
