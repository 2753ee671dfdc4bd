"""The packet filter's rules of a drill on a running pair: marked, narrow, and taken back exactly.

They match TCP between this host and the peer's address on the link's own port, and nothing else:
an ssh session between the same two hosts goes on.
"""

from __future__ import annotations

import ipaddress
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Final, Literal

import msgspec

from linkd.drill import deadman

MARK: Final = "linkd-drill"
Kind = Literal["blackhole", "oneway", "reset"]

_ESTABLISHED: Final = "01"
_VERSION_SECONDS: Final = 10.0


class Remote(msgspec.Struct, frozen=True):
    """The other end of a link's connection, as the packets name it.

    Args:
        address: Its IP address.
        port: The port that the link is known by: the peer's if we dial, our own if it dials us.
        ours: Whether the port is our own.
    """

    address: str
    port: int
    ours: bool


def remote(role: str, address: str) -> Remote:
    """Return what the packets of a link look like.

    Args:
        role: This end's.
        address: The peer's address and port, as the status gives it.

    Raises:
        ValueError: The address is none, or the connection is not among the kernel's.
    """
    host, _, digits = address.rpartition(":")
    parsed = ipaddress.ip_address(host.strip("[]"))
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    ip = str(mapped or parsed)
    if role == "dialer":
        return Remote(ip, int(digits), ours=False)
    ours = local_port(ip, int(digits))
    if ours is None:
        raise ValueError(f"there is no connection with {address} in this network")
    return Remote(ip, ours, ours=True)


def local_port(address: str, port: int, root: Path = Path("/proc/net")) -> int | None:
    """Return our port of the established TCP connection with an address and port, if there is one.

    Args:
        address: The other end's IP address.
        port: The other end's port.
        root: Where the kernel lists connections.
    """
    wanted = {_hexadecimal(address)}
    if ":" not in address:
        wanted.add(_hexadecimal(f"::ffff:{address}"))
    for name in ("tcp", "tcp6"):
        try:
            lines = (root / name).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            _, local, far, state, *_ = line.split()
            far_address, _, far_port = far.partition(":")
            if state == _ESTABLISHED and far_address in wanted and int(far_port, 16) == port:
                return int(local.partition(":")[2], 16)
    return None


def tool_for(address: str) -> str:
    """Return the tool for an IP address: iptables or ip6tables."""
    return "ip6tables" if ":" in address else "iptables"


def programs(tool: str, root: Path = Path("/proc/net")) -> list[str]:
    """Return the programs that list and change the rules of `tool`, none where it is missing.

    `iptables` is iptables-nft or iptables-legacy by the host's choice, and the choice may change
    while rules are in force (set-ups of containers do that). So rules are made and removed by a
    name that stays, and looked for in both. The first is the one that the host uses now; the other
    kind follows where it may hold rules. Listing legacy tables makes them, so they are left alone
    where there are none.

    Args:
        tool: iptables or ip6tables.
        root: Where the kernel lists its tables.
    """
    found = shutil.which(tool, path=deadman.admin_path())
    if found is None:
        return []
    try:
        done = subprocess.run(
            [found, "--version"], capture_output=True, text=True, timeout=_VERSION_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return [tool]
    kinds = ["legacy", "nft"] if "legacy" in done.stdout else ["nft", "legacy"]
    names = [f"{tool}-{kind}" for kind in kinds]
    there = [name for name in names if shutil.which(name, path=deadman.admin_path()) is not None]
    first = names[0] if names[0] in there else tool
    others = [name for name in there if name != first and _has_tables(name, root)]
    return [first, *others]


def _has_tables(program: str, root: Path) -> bool:
    """Return whether the kernel has tables of a program's kind."""
    if not program.endswith("legacy"):
        return True
    listed = root / ("ip6_tables_names" if program.startswith("ip6") else "ip_tables_names")
    try:
        return bool(listed.read_text().strip())
    except OSError:
        return False


def commands(
    kind: Kind, far: Remote, token: str, program: str
) -> tuple[list[list[str]], list[list[str]]]:
    """Return the commands that make a fault, and those that take exactly it back.

    Args:
        kind: What to make. `oneway`: what comes from the peer is dropped, what goes to it passes.
        far: The packets it concerns.
        token: Marks these rules, so that no other's are touched.
        program: Makes and removes them.
    """
    begin, undo = [], []
    for rule in _rules(kind, far):
        match = [*rule, "!", "--tcp-flags", "RST", "RST"] if kind == "reset" else rule
        marked = [*match, "-m", "comment", "--comment", f"{MARK}:{token}"]
        target = (
            ["-j", "REJECT", "--reject-with", "tcp-reset"] if kind == "reset" else ["-j", "DROP"]
        )
        begin.append([program, "-w", "5", "-I", *marked, *target])
        undo.append([program, "-w", "30", "-D", *marked, *target])
    return begin, undo


def _rules(kind: Kind, far: Remote) -> list[list[str]]:
    """Return chain and match of every rule: what comes in, and what goes out."""
    come, go = ("--dport", "--sport") if far.ours else ("--sport", "--dport")
    inward = ["INPUT", "-p", "tcp", "-s", far.address, come, str(far.port)]
    outward = ["OUTPUT", "-p", "tcp", "-d", far.address, go, str(far.port)]
    return [inward] if kind == "oneway" else [inward, outward]


def _hexadecimal(address: str) -> str:
    """Return an IP address as the kernel writes it: words of four bytes, each in host order."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    packed = socket.inet_pton(family, address)
    words = (packed[index : index + 4][::-1] for index in range(0, len(packed), 4))
    return b"".join(words).hex().upper()
