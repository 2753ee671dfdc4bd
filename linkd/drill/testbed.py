"""A temporary pair of daemons: namespaces or loopback, the path between, certificates.

A namespace exists as long as its holder, a process that reads from our pipe, and as long as the
processes in it: nothing is left when this process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Self

import msgspec

from linkd import clock
from linkd.client.errors import ClientError
from linkd.clock import wall
from linkd.drill import relay
from linkd.drill.deadman import MARK, ChildProcess, DrillFailed, Switch, admin_path
from linkd.drill.expectations import Bounds
from linkd.drill.monitor import DaemonClient
from linkd.drill.relay import Way
from linkd.net import certificates
from linkd.net.certificates import Issuer, Subject, Validity

_AUTHORITY_BACK_SECONDS: Final = 3600.0
_AUTHORITY_SECONDS: Final = 86_400.0
_LEAF_BACK_SECONDS: Final = 600.0


class Authority:
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


class Place:
    """The network location of one end.

    Attributes:
        address: Its address for the other end.
        prefix: The command prefix that runs a command here.
    """

    def __init__(self, address: str, prefix: Sequence[str] = ()) -> None:
        self.address = address
        self.prefix = list(prefix)

    def sh(self, script: str) -> str:
        """Run a shell script here to its end and return what it printed.

        Raises:
            DrillFailed: It failed; the message has its output.
        """
        try:
            done = subprocess.run(
                [*self.prefix, "sh", "-euc", script],
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
                timeout=30,
                env={**os.environ, "PATH": admin_path()},
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise DrillFailed(str(error)) from None
        if done.returncode != 0:
            output = (done.stderr or done.stdout).strip()
            raise DrillFailed(f"{script.strip()}: exit {done.returncode}: {output}")
        return done.stdout


class Ground:
    """Two locations on loopback; the path between them cannot be disturbed.

    Attributes:
        hub, edge: The locations; the edge dials.
        port: The hub's port.
        namespaces: Whether each location has a network of its own.
    """

    def __init__(self) -> None:
        self.hub = Place("127.0.0.1")
        self.edge = Place("127.0.0.1")
        self.port = _free_port()
        self.namespaces = False

    def close(self) -> None:
        """Nothing to end."""


class Namespaces(Ground):
    """Two network namespaces, joined by a veth pair; rootless in a user namespace.

    Args:
        directory: For small files; it outlives this.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.namespaces = True
        self.port = PORT
        self._holders: list[subprocess.Popen[bytes]] = []
        user = os.geteuid() != 0
        try:
            self.hub = self._place(HUB_ADDRESS, ["-U", "-r"] if user else [], None)
            self.edge = self._place(EDGE_ADDRESS, [], self._holders[0].pid if user else None)
            self._join()
            self._hosts = directory / "hosts"
            self.name_known(True)
            resolver = directory / "resolv.conf"
            resolver.write_text("nameserver 127.0.0.1\n")
            self.edge.sh(
                f"mount --bind '{self._hosts}' /etc/hosts; "
                f"mount --bind '{resolver}' /etc/resolv.conf"
            )
            for place in (self.hub, self.edge):
                place.sh("iptables -w 5 -S INPUT")
        except BaseException:
            self.close()
            raise

    def name_known(self, known: bool) -> None:
        """Set whether HUB_NAME has an address from now on."""
        line = f"{HUB_ADDRESS} {HUB_NAME}\n" if known else ""
        self._hosts.write_text(f"127.0.0.1 localhost\n{line}")

    def close(self) -> None:
        """End the holders; each namespace goes when the last process in it ends."""
        for holder in reversed(self._holders):
            for stream in (holder.stdin, holder.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
            try:
                holder.wait(5)
            except subprocess.TimeoutExpired:
                holder.kill()
                holder.wait(5)
        self._holders = []

    def _place(self, address: str, options: Sequence[str], within: int | None) -> Place:
        """Make a namespace, inside the user namespace of process `within` where that is given."""
        user = bool(options) or within is not None
        enter = [] if within is None else _enter(within, True, "-U")
        holder = subprocess.Popen(
            [*enter, "unshare", *options, "-n", "-m", "sh", "-c", "echo ready; exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            start_new_session=True,
            env={**os.environ, "PATH": admin_path()},
        )
        self._holders.append(holder)
        assert holder.stdout is not None
        assert holder.stderr is not None
        select.select([holder.stdout], [], [], _WAIT_SECONDS)
        if holder.poll() is not None or os.read(holder.stdout.fileno(), 16) != b"ready\n":
            output = holder.stderr.read(400).decode(errors="replace").strip()
            raise DrillFailed(f"no network namespace can be made here: {output}")
        holder.stderr.close()
        return Place(address, _enter(holder.pid, user, "-n", "-m"))

    def _join(self) -> None:
        """Join the two by a veth pair."""
        edge = self._holders[1].pid
        self.hub.sh(
            f"ip link set lo up; ip link add path type veth peer name path netns {edge};"
            f"ip addr add {HUB_ADDRESS}/24 dev path; ip link set path up"
        )
        self.edge.sh(
            f"ip link set lo up; ip addr add {EDGE_ADDRESS}/24 dev path; ip link set path up"
        )


def prepare(directory: Path, bare: bool = False) -> tuple[Ground, str]:
    """Return the network for a pair, and in a few words why it has no namespaces.

    Args:
        directory: For small files.
        bare: Use loopback in any case.
    """
    if bare:
        return Ground(), "loopback was asked for"
    missing = [tool for tool in _TOOLS if shutil.which(tool, path=admin_path()) is None]
    if missing:
        packages = " ".join(dict.fromkeys(_TOOLS[tool] for tool in missing))
        return Ground(), f"{' and '.join(missing)} missing (Debian: apt install {packages})"
    try:
        return Namespaces(directory), ""
    except (DrillFailed, OSError) as error:
        return Ground(), str(error)


def _enter(pid: int, user: bool, *spaces: str) -> list[str]:
    """Return the command that enters namespaces of a process."""
    options = ["-U", "--preserve-credentials"] if user and "-U" not in spaces else []
    keep = ["--preserve-credentials"] if "-U" in spaces else []
    return ["nsenter", "-t", str(pid), *options, *spaces, *keep, "--"]


def _free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


class FilteredPath:
    """A path with a packet filter at either end; both are the pair's own.

    It has the methods of `Relay`: each replaces what the previous one did.

    Packets are dropped where they arrive: the sender can't know, as on a real path.
    """

    def __init__(self, ground: Ground) -> None:
        self._ground = ground

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
        for place in (self._ground.hub, self._ground.edge):
            place.sh("iptables -w 5 -F INPUT")

    def _rules(self, rest: str, way: Way) -> None:
        self.heal()
        hub, edge = self._ground.hub, self._ground.edge
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
        certificate_seconds: TLS, with a certificate of the hub that is valid for so long.
    """

    hub_absent: bool = False
    relay: bool = False
    by_name: bool = False
    nameless: bool = False
    clocks: bool = False
    small_disk: bool = False
    certificate_seconds: float | None = None


def faketime() -> Path | None:
    """Return the path of libfaketime, if it is installed."""
    return next((path for path in _FAKETIME if path.exists()), None)


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


class End:
    """One daemon of the pair.

    Attributes:
        name: `hub` or `edge`.
        role: `listener` or `dialer`.
        other: The other end's name.
        daemon: Its client.
        directory: Its own; `state` in it is its state directory.
    """

    def __init__(self, name: str, place: Place, directory: Path, mark: str) -> None:
        self.name = name
        self.role = "listener" if name == "hub" else "dialer"
        self.other = "edge" if name == "hub" else "hub"
        self.place = place
        self.directory = directory
        self.daemon = DaemonClient(str(directory / "linkd.sock"))
        self.environment: dict[str, str] = {}
        self._mark = mark
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
        own = ["-m", "linkd.cli", "run", "-c", str(self.directory / "linkd.toml")]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self.place.prefix, sys.executable, *own],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=package_environment() | self.environment | {MARK: self._mark},
                start_new_session=True,
            )
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


class Testbed:
    """The two ends and the path between them; a context that removes everything.

    Attributes:
        hub, edge: The ends; the edge dials.
        ground: Their network.
        path: The path, which can be disturbed.
        bare: Why there are no namespaces; empty if there are.
        ends_at: When the hub's certificate expires, monotonic seconds; 0 without TLS.
    """

    def __init__(self, setup: Setup, bounds: Bounds, bare: bool = False) -> None:
        """Prepare the pair; entering the context starts it.

        Raises:
            DrillFailed: It can't be made; nothing is left.
        """
        self.setup = setup
        self._bounds = bounds
        self._stack = contextlib.ExitStack()
        self.ends_at = 0.0
        try:
            self._prepare(bare)
        except BaseException:
            self._stack.close()
            raise

    def _prepare(self, bare: bool) -> None:
        remove_leftovers(Path(tempfile.gettempdir()), wall())
        self.directory = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
        self._stack.callback(os.close, hold(self.directory))
        switch = self._stack.enter_context(Switch())
        switch.remove(str(self.directory))
        self.ground, self.bare = prepare(self.directory, bare)
        self._stack.callback(self.ground.close)
        ground: Ground = self.ground
        self.path: FilteredPath | Relay = FilteredPath(ground)
        self._dial = f"{ground.hub.address}:{ground.port}"
        if self.setup.relay or not ground.namespaces:
            self.path = Relay((ground.hub.address, ground.port), ground.edge.prefix)
            self._stack.callback(self.path.close)
            self._dial = f"127.0.0.1:{self.path.port}"
        elif self.setup.by_name:
            self._dial = f"{HUB_NAME}:{ground.port}"
        self.hub = End("hub", ground.hub, self.directory / "hub", switch.mark)
        self.edge = End("edge", ground.edge, self.directory / "edge", switch.mark)
        self.clocks = {end.name: end.directory / "clock" for end in self.ends}
        self._configure()

    @property
    def ends(self) -> tuple[End, End]:
        """Both ends, the hub first."""
        return self.hub, self.edge

    def __enter__(self) -> Self:
        """Start the daemons, and wait until the link is up if both are to run."""
        try:
            if self.setup.small_disk:
                state = self.hub.directory / "state"
                state.mkdir()
                self.hub.place.sh(f"mount -t tmpfs -o size={SMALL_DISK},mode=700 tmpfs '{state}'")
            if self.setup.nameless:
                self.know_hub(False)
            for end in self.ends:
                if not (self.setup.hub_absent and end.name == "hub"):
                    self._stack.callback(end.close)
                    end.start()
            if not (self.setup.hub_absent or self.setup.nameless):
                self._await_up()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop and remove everything."""
        self._stack.close()

    def end(self, name: str) -> End:
        """Return the end of that name."""
        return self.hub if name == "hub" else self.edge

    def start(self, name: str) -> None:
        """Start an end that was absent or has been killed."""
        end = self.end(name)
        self._stack.callback(end.close)
        end.start()

    def know_hub(self, known: bool) -> None:
        """Set whether the hub's name has an address from now on; only in namespaces."""
        if isinstance(self.ground, Namespaces):
            self.ground.name_known(known)

    def renew(self) -> None:
        """Give the hub a certificate that is valid for an hour, and make it reload."""
        self._authority.issue(self._dial.rpartition(":")[0], 3600.0)
        self.hub.signal(signal.SIGHUP)

    def step_clock(self, name: str, seconds: float) -> None:
        """Set an end's wall clock to the true time plus so many seconds."""
        clock = self.clocks[name]
        following = clock.with_suffix(".new")
        following.write_text(f"{seconds:+.3f}\n")
        following.replace(clock)

    def _await_up(self) -> None:
        until = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(ClientError):
                links = [end.daemon.link(end.other) for end in self.ends]
                if all(link is not None and link.state == "up" for link in links):
                    return
            if time.monotonic() > until:
                output = " / ".join(end.last_words() for end in self.ends)
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
        listen = f'[listen]\naddress = "{self.ground.hub.address}:{self.ground.port}"\n'
        scheme, trust = "ws", "insecure = true\n"
        if self.setup.certificate_seconds is not None:
            self._authority = Authority(self.directory)
            address = self._dial.rpartition(":")[0]
            certificate, key = self._authority.issue(address, self.setup.certificate_seconds)
            self.ends_at = time.monotonic() + self.setup.certificate_seconds
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
        if self.setup.clocks:
            for end in self.ends:
                self.step_clock(end.name, 0.0)
                end.environment = _faked(self.clocks[end.name])


def _faked(clock: Path) -> dict[str, str]:
    """Return the environment of a process with a faked wall clock."""
    return {
        "LD_PRELOAD": str(faketime() or ""),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
        # Else its waits on conditions stall for seconds, steps or none: the interpreter's own lock.
        "FAKETIME_FORCE_MONOTONIC_FIX": "0",
    }


def _table(name: str, settings: msgspec.Struct) -> str:
    """Return settings as a TOML table; all values are numbers or absent."""
    values: Mapping[str, float | None] = msgspec.structs.asdict(settings)
    lines = [f"{key} = {value}" for key, value in values.items() if value is not None]
    return "\n".join([f"[{name}]", *lines])
