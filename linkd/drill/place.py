"""Where a throw-away pair stands: in network namespaces, or plainly on this machine's loopback.

A namespace lives as long as its holder, a process that reads from a pipe of ours, and as what runs
in it: nothing is left when this process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from linkd.drill.deadman import DrillFailed, admin_path

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
    """Where one end stands.

    Attributes:
        address: Where the other end reaches it.
        prefix: The command that runs what follows it here.
    """

    def __init__(self, address: str, prefix: Sequence[str] = ()) -> None:
        self.address = address
        self.prefix = list(prefix)

    def sh(self, script: str) -> str:
        """Run a shell script here to its end and return what it printed.

        Raises:
            DrillFailed: It failed; the message has what it said.
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
            said = (done.stderr or done.stdout).strip()
            raise DrillFailed(f"{script.strip()}: exit {done.returncode}: {said}")
        return done.stdout


class Ground:
    """Two places with a path between them, on loopback: nothing can be done to that path.

    Attributes:
        hub, edge: The places; the edge dials.
        port: Where the hub is to listen.
        namespaces: Whether each place has a network of its own.
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
        """Say whether HUB_NAME has an address from now on."""
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
            said = holder.stderr.read(400).decode(errors="replace").strip()
            raise DrillFailed(f"no network namespace can be made here: {said}")
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
    """Return where a pair can stand, and in a few words why it is not in namespaces.

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
