"""A throw-away pair: two real `linkd run` in a temporary directory, with a path between them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Self

import msgspec

from linkd.client.errors import ClientError
from linkd.clock import wall
from linkd.drill.asking import Daemon
from linkd.drill.bounds import Bounds
from linkd.drill.certificates import Authority
from linkd.drill.deadman import PREFIX, DrillFailed, Switch, admin_path
from linkd.drill.path import FilteredPath, RelayedPath
from linkd.drill.path import Path as PathBetween
from linkd.drill.place import HUB_NAME, Ground, Namespaces, Place, prepare
from linkd.drill.relay import Relay

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
    """How a drill wants its pair.

    Args:
        hub_absent: Only the edge is started.
        relay: The path goes through the relay, also where there are namespaces.
        by_name: The edge dials the hub by its name.
        nameless: That name has no address yet when the edge starts.
        clocks: Both live by wall clocks that can be stepped.
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
    """Return where libfaketime is, if it is anywhere."""
    return next((path for path in _FAKETIME if path.exists()), None)


def hold(directory: Path) -> int:
    """Mark a directory as that of a living process; return the descriptor that does so."""
    held = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    fcntl.flock(held, fcntl.LOCK_EX)
    return held


def remove_leftovers(top: Path, now: float) -> None:
    """Remove what drills have left whose command and switch were both killed.

    Args:
        top: Where drills make their directories.
        now: Unix seconds; a directory that has just been made may not be held yet.
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
    """Return the environment of a process that imports this very linkd, wherever it runs."""
    root = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PATH": admin_path(), "PYTHONPATH": paths}


class End:
    """One daemon of the pair.

    Attributes:
        name: `hub` or `edge`.
        role: `listener` or `dialer`.
        other: The other end's name.
        daemon: To ask it.
        directory: Its own; `state` in it is its state directory.
    """

    def __init__(self, name: str, place: Place, directory: Path, switch: Switch) -> None:
        self.name = name
        self.role = "listener" if name == "hub" else "dialer"
        self.other = "edge" if name == "hub" else "hub"
        self.place = place
        self.directory = directory
        self.daemon = Daemon(str(directory / "linkd.sock"))
        self.environment: dict[str, str] = {}
        self._switch = switch
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
            DrillFailed: It ended, or does not answer within 30 s; the message has its last words.
        """
        own = ["-m", "linkd.cli", "run", "-c", str(self.directory / "linkd.toml")]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self.place.prefix, sys.executable, *own],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=package_environment() | self.environment,
                start_new_session=True,
            )
        self._switch.keep(self._process.pid)
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
        """Send it a signal, if it runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """Kill it at once; again is harmless."""
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
        return " / ".join(lines[-5:]) or "it said nothing"

    def _reap(self, within: float) -> None:
        process = self._process
        if process is not None:
            process.wait(within)
            self._process = None
            with contextlib.suppress(DrillFailed):
                self._switch.forget(process.pid)


class Pair:
    """The two ends and the path between them; a context that ends everything.

    Attributes:
        hub, edge: The ends; the edge dials.
        ground: Where they stand.
        path: What can be spoiled.
        bare: Why they are not in namespaces; empty if they are.
        ends_at: When the hub's certificate ends, monotonic seconds; 0 without TLS.
    """

    def __init__(self, setup: Setup, bounds: Bounds, bare: bool = False) -> None:
        """Prepare it; entering starts it.

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
        self.path: PathBetween = FilteredPath(ground)
        self._dial = f"{ground.hub.address}:{ground.port}"
        if self.setup.relay or not ground.namespaces:
            relay = Relay((ground.hub.address, ground.port), ground.edge.prefix)
            self._stack.callback(relay.close)
            self.path = RelayedPath(relay)
            self._dial = f"127.0.0.1:{relay.port}"
        elif self.setup.by_name:
            self._dial = f"{HUB_NAME}:{ground.port}"
        self.hub = End("hub", ground.hub, self.directory / "hub", switch)
        self.edge = End("edge", ground.edge, self.directory / "edge", switch)
        self.clocks = {end.name: end.directory / "clock" for end in self.ends}
        self._configure()

    @property
    def ends(self) -> tuple[End, End]:
        """Both ends, the hub first."""
        return self.hub, self.edge

    def __enter__(self) -> Self:
        """Start the daemons, and wait until the link is up where both are to be there."""
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
        """End everything that was started, and remove it."""
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
        """Say whether the hub's name has an address from now on; only in namespaces."""
        if isinstance(self.ground, Namespaces):
            self.ground.name_known(known)

    def renew(self) -> None:
        """Give the hub a certificate that is valid for an hour, and have it reload."""
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
                said = " / ".join(end.last_words() for end in self.ends)
                raise DrillFailed(f"the pair did not come up within {START_SECONDS:.0f} s: {said}")
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
    """Return the environment of a process that lives by a wall clock of ours."""
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
    """Return settings as a TOML table; all of them are numbers, or absent."""
    values: Mapping[str, float | None] = msgspec.structs.asdict(settings)
    lines = [f"{key} = {value}" for key, value in values.items() if value is not None]
    return "\n".join([f"[{name}]", *lines])
