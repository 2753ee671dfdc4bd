"""Hosts on one machine: each a network namespace, joined by a router in the middle.

Needs root, or user namespaces; never touches the machine's own network. A namespace lives as long
as its holder process, and a holder and all that runs inside end when the process that made it ends,
even by kill -9 (tests/support/leash.py): nothing is left behind.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from linkd.drill.testbed import Namespace
from tests.support import leash

Way = Literal["both", "in", "out"]
ROOT = Path(__file__).resolve().parents[2]
WITHOUT_DAD = "echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad"
"""Without duplicate address detection IPv6 works as soon as its link is up."""


class LabHost(Namespace):
    """A host of the lab, with an IPv4 and an IPv6 address of its own.

    Attributes:
        address, address6: Where others reach it.
    """

    def __init__(self, name: str, number: int, middle: Namespace, hosts_file: Path) -> None:
        """Make host `number` (1 to 250) and join it to the router."""
        super().__init__(name, f"10.99.{number}.2", middle)
        self.number = number
        self.address6 = f"fd99:0:0:{number:x}::2"
        self._hosts_file = hosts_file
        near, far = f"v{number}", "eth0"
        try:
            self.sh(WITHOUT_DAD)
            middle.sh(
                f"ip link add {near} type veth peer name {far} netns {self.pid}\n"
                f"ip addr add 10.99.{number}.1/24 dev {near}\n"
                f"ip addr add fd99:0:0:{number:x}::1/64 dev {near} nodad\n"
                f"ip link set {near} up"
            )
            self.sh(
                f"ip addr add {self.address}/24 dev {far}\n"
                f"ip addr add {self.address6}/64 dev {far} nodad\n"
                f"ip link set {far} up\n"
                f"ip route add default via 10.99.{number}.1\n"
                f"ip -6 route add default via fd99:0:0:{number:x}::1"
            )
            self.names({})
            # A name that is not in the file is unknown at once: no name server is asked.
            resolver = hosts_file.with_suffix(".resolv")
            resolver.write_text("nameserver 127.0.0.1\n")
            self.sh(
                f"mount --bind {hosts_file} /etc/hosts\nmount --bind {resolver} /etc/resolv.conf"
            )
        except BaseException:
            self.close()
            raise

    def names(self, names: Mapping[str, str | Sequence[str]]) -> None:
        """Say what names mean on this host from now on: name to address, or to several."""
        lines = ["127.0.0.1 localhost", "::1 localhost"]
        for name, found in names.items():
            addresses = [found] if isinstance(found, str) else found
            lines += [f"{address} {name}" for address in addresses]
        self._hosts_file.write_text("\n".join(lines) + "\n")

    @contextmanager
    def serving(self, code: str, *arguments: str) -> Iterator[None]:
        """Run a Python program inside, from when it prints `ready` to the end of the context."""
        process = self.popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE)
        assert process.stdout is not None
        try:
            if process.stdout.readline() != b"ready\n":
                raise RuntimeError(f"{self.name}: it does not serve: exit {process.wait(5)}")
            yield
        finally:
            process.kill()
            process.wait()
            process.stdout.close()

    def slow(self, kilobits: int) -> None:
        """Let this host send so little a second, as over a slow line of its own."""
        # Several segments in one packet would pass, or not, as one.
        self.sh("ip link set eth0 gso_max_segs 1")
        self.sh(f"tc qdisc replace dev eth0 root tbf rate {kilobits}kbit burst 4k latency 300ms")

    def drop(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run scripts/drop.sh here."""
        return self.run("sh", str(ROOT / "scripts" / "drop.sh"), *arguments, check=check)

    def restore(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run scripts/restore.sh here."""
        return self.run("sh", str(ROOT / "scripts" / "restore.sh"), *arguments, check=check)

    def rules(self) -> list[str]:
        """Return the rules that drop.sh has put here, of both address families."""
        listed = self.sh("iptables -w 5 -S; ip6tables -w 5 -S").splitlines()
        return [line for line in listed if "linkd-drop:" in line]


class Fault:
    """Rules in the middle that spoil what passes there, until `end`. Ends itself as a context."""

    def __init__(self, middle: Namespace, rules: Sequence[str]) -> None:
        """Put the rules (`iptables -A FORWARD …` without the first three words) in force."""
        self._middle = middle
        self._rules = list(rules)
        self._middle.sh("\n".join(f"{tool(rule)} -w 5 -I FORWARD {rule}" for rule in rules))

    def end(self) -> None:
        """Take the rules away; again is harmless."""
        rules, self._rules = self._rules, []
        if rules:
            self._middle.sh("\n".join(f"{tool(rule)} -w 5 -D FORWARD {rule}" for rule in rules))

    def __enter__(self) -> Fault:
        """Return self."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self.end()


def tool(rule: str) -> str:
    """Return the program for a rule: by its address family."""
    return "ip6tables" if ":" in rule.split(" -m ", 1)[0] else "iptables"


class Lab:
    """Hosts, and a router in the middle that joins them; a context that ends everything.

    Attributes:
        middle: The router's namespace.
    """

    def __init__(self, directory: Path) -> None:
        """Make the router; `directory` is for small files."""
        leash.hold()
        self._directory = directory
        self._hosts: list[LabHost] = []
        self.middle = Namespace("middle")
        try:
            self.middle.sh(
                f"{WITHOUT_DAD}\n"
                "echo 1 > /proc/sys/net/ipv4/ip_forward\n"
                "echo 1 > /proc/sys/net/ipv6/conf/all/forwarding"
            )
        except BaseException:
            self.middle.close()
            raise

    def host(self, name: str) -> LabHost:
        """Make another host."""
        number = len(self._hosts) + 1
        host = LabHost(name, number, self.middle, self._directory / f"hosts-{number}")
        self._hosts.append(host)
        return host

    def cut(self, a: LabHost, b: LabHost, way: Way = "both") -> Fault:
        """Drop in the middle what passes between two hosts: `in` is what goes to `a`."""
        return self._fault(a, b, way, "-j DROP")

    def loss(self, a: LabHost, b: LabHost, probability: float, way: Way = "both") -> Fault:
        """Drop packets between two hosts at random, with a probability of 0 to 1 each way."""
        match = f"-m statistic --mode random --probability {probability:.3f}"
        return self._fault(a, b, way, f"{match} -j DROP")

    def drop_large(
        self, a: LabHost, b: LabHost, over_bytes: int = 1000, way: Way = "both"
    ) -> Fault:
        """Drop IP packets that are longer than so many bytes."""
        return self._fault(a, b, way, f"-m length --length {over_bytes + 1}:65535 -j DROP")

    def _fault(self, a: LabHost, b: LabHost, way: Way, rest: str) -> Fault:
        rules = []
        for one, two in ((a.address, b.address), (a.address6, b.address6)):
            if way in ("both", "in"):
                rules.append(f"-s {two} -d {one} {rest}")
            if way in ("both", "out"):
                rules.append(f"-s {one} -d {two} {rest}")
        return Fault(self.middle, rules)

    def close(self) -> None:
        """End all namespaces."""
        for namespace in (*reversed(self._hosts), self.middle):
            namespace.close()

    def __enter__(self) -> Lab:
        """Return self."""
        return self

    def __exit__(self, *_: object) -> None:
        """End all namespaces."""
        self.close()


def python(*arguments: str) -> list[str]:
    """Return a command line of this Python where `linkd` and `tests` can be imported."""
    return ["env", f"PYTHONPATH={ROOT}", sys.executable, *arguments]
