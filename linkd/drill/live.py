"""Drills on a running pair: packet-filter rules that are narrow, short-lived and removed.

They match TCP between this host and the peer's address on the link's own port, and nothing else:
an ssh session between the same two hosts continues.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import secrets
import shlex
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Final, Literal

import msgspec

from linkd.client.errors import ClientError
from linkd.client.http import call, expect
from linkd.drill import deadman
from linkd.drill.deadman import DrillFailed, Switch, admin_path
from linkd.drill.monitor import DaemonClient, LinkMonitor, Publisher, Tally, received_numbers
from linkd.drill.report import LATE_SECONDS, Bounds, Check, Expectation, Report, judge, silent_for
from linkd.drill.runner import DRAIN_SECONDS, GRACE_SECONDS, Course, Progress
from linkd.status import LinkStatus

MARK: Final = "linkd-drill"
Kind = Literal["blackhole", "oneway", "reset"]

_ESTABLISHED: Final = "01"
_VERSION_SECONDS: Final = 10.0


class PacketMatch(msgspec.Struct, frozen=True):
    """The other end of a link's connection, as its packets show it.

    Args:
        address: Its IP address.
        port: The port that the link is known by: the peer's if we dial, our own if it dials us.
        ours: Whether the port is our own.
    """

    address: str
    port: int
    ours: bool


def remote(role: str, address: str) -> PacketMatch:
    """Return the match for the packets of a link.

    Args:
        role: This end's.
        address: The peer's address and port, as the status gives it.

    Raises:
        ValueError: The address is malformed, or the kernel has no such connection.
    """
    host, _, digits = address.rpartition(":")
    parsed = ipaddress.ip_address(host.strip("[]"))
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    ip = str(mapped or parsed)
    if role == "dialer":
        return PacketMatch(ip, int(digits), ours=False)
    ours = local_port(ip, int(digits))
    if ours is None:
        raise ValueError(f"there is no connection with {address} in this network")
    return PacketMatch(ip, ours, ours=True)


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
    """Return the programs that list and change the rules of `tool`; none if it is missing.

    `iptables` is iptables-nft or iptables-legacy by the host's choice, which may change while
    rules are in force (container set-ups do that). So rules are added and removed by a fixed
    name, and searched in both. The first program is the one that the host uses now; the other
    follows if it may have rules. Listing legacy tables creates them, so they are skipped if there
    are none.

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
    kind: Kind, far: PacketMatch, token: str, program: str
) -> tuple[list[list[str]], list[list[str]]]:
    """Return the commands that inject a fault, and those that remove exactly it.

    Args:
        kind: The fault. `oneway`: packets from the peer are dropped, packets to it pass.
        far: The packets it concerns.
        token: Marks these rules, so that no others are touched.
        program: Adds and removes them.
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


def _rules(kind: Kind, far: PacketMatch) -> list[list[str]]:
    """Return chain and match of every rule: incoming and outgoing."""
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


MAX_SECONDS: Final = 120.0
ABOUT: Final[dict[Kind, str]] = {
    "blackhole": "every packet of the link is dropped, both ways",
    "oneway": "what the peer sends is dropped, what goes to it passes",
    "reset": "every connection of the link is reset, and new ones are refused",
}
_NO_LINK_SECONDS: Final = 2.0
_BACKUP_SECONDS: Final = 3.0


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """The operator's request.

    Args:
        kind: The fault.
        peer: Whose link.
        seconds: How long, at most 120.
        channel: The channel of numbered messages meanwhile; None: no messages.
        far_socket: The peer's own socket, if it is reachable from here.
    """

    kind: Kind
    peer: str
    seconds: float
    channel: str | None = None
    far_socket: str | None = None


class Plan(msgspec.Struct, frozen=True):
    """What will be done, for the operator to confirm.

    Args:
        node: This node's name.
        link: The link as it is.
        far: The packets it concerns.
        token: Marks the rules.
        begin, undo: The commands.
    """

    node: str
    link: LinkStatus
    far: PacketMatch
    token: str
    begin: list[list[str]]
    undo: list[list[str]]

    def lines(self, request: Request) -> list[str]:
        """Return it for people."""
        return [
            f"{ABOUT[request.kind]} between {self.node} and {request.peer} "
            f"({self.link.address}), for {request.seconds:g} s, by",
            *(f"  {shlex.join(command)}" for command in self.begin),
            "taken back by a process of its own, also if this command or terminal dies.",
        ]


def plan(request: Request, daemon: DaemonClient) -> Plan:
    """Return what will be done; nothing is changed.

    Raises:
        DrillFailed: The link is unknown or down, or its packets can't be distinguished.
        ClientError: The daemon does not answer.
    """
    status = daemon.status()
    link = next((link for link in status.links if link.peer == request.peer), None)
    if link is None:
        names = ", ".join(link.peer for link in status.links) or "none"
        raise DrillFailed(f"there is no peer {request.peer!r} here; there is {names}")
    if link.state != "up" or link.address is None:
        raise DrillFailed(f"the link to {request.peer} is {link.state}: a drill needs it up")
    try:
        far = remote(link.role, link.address)
    except ValueError as error:
        raise DrillFailed(str(error)) from None
    token = secrets.token_hex(6)
    tool = tool_for(far.address)
    begin, undo = commands(request.kind, far, token, (programs(tool) or [tool])[0])
    return Plan(status.node, link, far, token, begin, undo)


def run(
    request: Request,
    made: Plan,
    daemon: DaemonClient,
    bounds: Bounds,
    progress: Progress,
) -> Report:
    """Carry out a plan and return its report; the fault is removed in any case.

    The local daemon is notified, so that its log and events show that the outage was deliberate.

    Raises:
        DrillFailed: The fault could not be injected or removed; the message has what is left.
        ClientError: The daemon no longer answers.
    """
    verdict = None
    daemon.drill_began(request.peer, request.kind, request.seconds)
    try:
        report = _LiveRun(request, made, daemon, bounds, progress).run()
        verdict = report.verdict
    finally:
        with contextlib.suppress(ClientError):  # the report has more than that a daemon is gone
            daemon.drill_ended(request.peer, request.kind, verdict)
    return report


class _LiveRun(Course):
    """The course of a drill on a running pair: watch, inject the fault, wait, judge."""

    def __init__(
        self,
        request: Request,
        made: Plan,
        daemon: DaemonClient,
        bounds: Bounds,
        progress: Progress,
    ) -> None:
        self._request, self._plan, self._daemon, self._bounds = request, made, daemon, bounds
        monitors, publishers = [LinkMonitor(made.node, daemon, request.peer)], []
        if request.far_socket is not None:
            far = DaemonClient(request.far_socket)
            monitors.append(LinkMonitor(request.peer, far, made.node))
        if request.channel is not None:
            mark = f"{MARK}-{made.token}"
            publishers.append(Publisher(daemon.socket, request.channel, mark))
        super().__init__(monitors, publishers, progress)

    def run(self) -> Report:
        """Run it to its end."""
        request, delivered = self._request, list[Check]()
        messages: dict[str, Tally] = {}
        with self:
            time.sleep(1.0)
            removed = self._fault()
            expected = self._expected()
            self.wait_up(expected.back)
            time.sleep(1.0)
            for publisher in self.publishers:
                delivered.append(self._delivered(publisher))
                delivered += self._counted(publisher, messages)
        checks = judge(self.measure(), (), messages, expected, self._bounds) + delivered
        why = self._why()
        if removed:
            why = f"somebody else removed rules of this drill before its time was over; {why}"
        about = f"{ABOUT[request.kind]}; the peer is {request.peer}"
        return self.report(request.kind, about, "running", why, messages, checks)

    def _why(self) -> str:
        """Return the source of the bounds, and the limits of the verdict."""
        bounds, lasts, note = self._bounds, self._request.seconds, ""
        if self._request.kind == "reset":
            ping = bounds.heartbeat.ping_interval
            if lasts < ping + LATE_SECONDS:
                note = f"; no longer than from ping to ping, {ping:g} s: an idle link need not fall"
        elif lasts < bounds.slowest + LATE_SECONDS:
            note = f"; shorter than {bounds.slowest:g} s, so not both ends had to notice"
        return f"bounds: {bounds.source}{note}"

    def _fault(self) -> bool:
        """Inject the fault and wait for its removal; return whether others had removed it."""
        request, made = self._request, self._plan
        _backup(request, made)
        with Switch() as switch:
            self.fault = switch.fault(made.begin, made.undo, request.seconds)
            until = self.fault + request.seconds
            ended = None
            while ended is None:
                left = until - time.monotonic()
                self.progress(f"fault: {ABOUT[request.kind]}, {max(0.0, left):.0f} s left")
                if left < -GRACE_SECONDS:
                    tool = made.begin[0][0]
                    raise DrillFailed(f"the fault was not taken back: look at {tool} -S")
                ended = switch.over(0.5)
            self.restored = ended
            return switch.was_gone

    def _expected(self) -> Expectation:
        """Return the expected result."""
        bounds = self._bounds
        if self._request.kind == "reset":
            # On an idle link the first packet to be reset is the listener's next ping.
            shown = self.lasted >= bounds.heartbeat.ping_interval + LATE_SECONDS
            falls = ("listener", "dialer") if shown else ()
            return Expectation(falls=falls, back=bounds.back_broken)
        return silent_for(bounds, self.lasted)

    def _delivered(self, publisher: Publisher) -> Check:
        """Return whether the peer confirms in time that all messages are on its disk."""
        publisher.end()
        self.progress("waiting until the peer has the numbered messages")
        peer = self._request.peer
        within = DRAIN_SECONDS if self.monitors[0].up else _NO_LINK_SECONDS
        what = f"{peer} has acknowledged all that was published on {publisher.channel}"
        got = f"{publisher.published:,} published, {publisher.refused:,} refused"
        target = f"/v1/channels/{publisher.channel}?wait={peer}&timeout={within:g}"
        last = msgspec.json.encode({"drill": publisher.mark, "last": True})
        headers = {"Content-Type": "application/json"}
        try:
            socket = self._daemon.socket
            expect(call(socket, "POST", target, last, headers, timeout=within + 10.0))
        except ClientError as error:  # the daemon may be gone: the report has that too
            return Check(what, False, f"{got}; {error}")
        return Check(what, publisher.published > 0, got)

    def _counted(self, publisher: Publisher, messages: dict[str, Tally]) -> list[Check]:
        """Count the messages at the peer; return a failed check if it does not answer."""
        far_socket, channel = self._request.far_socket, publisher.channel
        if far_socket is None:
            return []
        try:
            messages[channel] = publisher.judge(
                received_numbers(far_socket, channel, publisher.mark)
            )
        except ClientError as error:
            what = f"{self._request.peer} reports what it has of {channel}"
            return [Check(what, False, str(error))]
        return []


def _backup(request: Request, made: Plan) -> None:
    """Have systemd, if there is one, remove the fault too, a little later.

    With KillUserProcesses it ends every process of a closed session, even the switch, but not what
    it starts itself.
    """
    if not Path("/run/systemd/system").is_dir() or shutil.which("systemd-run") is None:
        return
    try:
        if Path("/proc/self/ns/net").readlink() != Path("/proc/1/ns/net").readlink():
            return
    except OSError:
        return
    undo = "; ".join(f"{shlex.join(command)} 2>/dev/null" for command in made.undo)
    subprocess.run(
        [
            "systemd-run",
            "--quiet",
            "--collect",
            f"--unit={MARK}-{made.token}",
            f"--setenv=PATH={admin_path()}",
            "/bin/sh",
            "-c",
            f"sleep {request.seconds + _BACKUP_SECONDS:g}; {undo}; true",
        ],
        capture_output=True,
        timeout=10,
        env={**os.environ, "PATH": admin_path()},
    )
