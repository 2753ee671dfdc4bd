"""A line between two hosts, packet by packet: slow, late, uneven, lossy.

What `tc netem` does, for kernels without it: a TUN device in each of two network namespaces, and a
process of its own that carries IP packets between them. TCP sees what it would see on such a line.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import selectors
import struct
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

from linkd.drill.deadman import ChildProcess
from linkd.drill.testbed import Namespace
from tests.support.lab import python

NEAR, FAR = "10.98.0.1", "10.98.0.2"
DEVICE = "line"
MTU = 1500
_TUNSETIFF = 0x400454CA
_TUN_WITHOUT_HEADER = 0x0001 | 0x1000
_NEW_NET = 0x40000000
_UNEVEN_SECONDS = (0.05, 0.5)
"""How long a delay lasts before another is drawn."""


@dataclass(frozen=True)
class Shape:
    """What a line is like, the same in both directions.

    Args:
        rate: Bytes a second; 0: not limited.
        buffer: Seconds that a packet may wait for its turn; what would wait longer is dropped.
        delay: Seconds of travel.
        jitter: Seconds by which the travel is longer or shorter, drawn anew a few times a second;
            packets keep their order.
        loss: Share of the packets that don't arrive.
        seed: Of what is random.
    """

    rate: float = 0.0
    buffer: float = 0.2
    delay: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0
    seed: int = 0


class Way:
    """One direction; pure.

    Attributes:
        passed, overflowed, lost: Packets.
    """

    def __init__(self, shape: Shape, rng: Random) -> None:
        self._shape = shape
        self._rng = rng
        self._free = self._last = self._redraw_at = 0.0
        self._uneven = 0.0
        self.passed = self.overflowed = self.lost = 0

    def due(self, size: int, now: float) -> float | None:
        """Return when a packet of so many bytes arrives at the other end; None: never."""
        shape = self._shape
        start = max(now, self._free)
        if shape.rate:
            if start - now > shape.buffer:
                self.overflowed += 1
                return None
            start += size / shape.rate
        self._free = start
        if shape.loss and self._rng.random() < shape.loss:
            self.lost += 1
            return None
        if shape.jitter and now >= self._redraw_at:
            self._uneven = self._rng.uniform(-shape.jitter, shape.jitter)
            self._redraw_at = now + self._rng.uniform(*_UNEVEN_SECONDS)
        self.passed += 1
        self._last = max(self._last, start + shape.delay + self._uneven)
        return self._last


class _Carrier:
    """The process that carries packets."""

    def __init__(self, devices: tuple[int, int], shape: Shape) -> None:
        rng = Random(shape.seed)
        self._devices = devices
        self._ways = {devices[0]: Way(shape, rng), devices[1]: Way(shape, rng)}
        self._under_way: dict[int, deque[tuple[float, bytes]]] = {fd: deque() for fd in devices}
        self._cut = False
        self._worst = 0.0

    def serve(self) -> None:
        """Carry until the orders end."""
        ready = selectors.DefaultSelector()
        for fd in self._devices:
            os.set_blocking(fd, False)
            ready.register(fd, selectors.EVENT_READ)
        ready.register(sys.stdin, selectors.EVENT_READ)
        while True:
            for key, _ in ready.select(self._patience()):
                if key.fd in self._ways:
                    self._take(key.fd)
                elif not (line := sys.stdin.readline()):
                    return
                else:
                    self._cut = bool(json.loads(line).get("cut", self._cut))
                    print(json.dumps(self.counts()), flush=True)
            self._deliver()

    def _patience(self) -> float | None:
        """Return for how long nothing is due."""
        next_due = min((queue[0][0] for queue in self._under_way.values() if queue), default=None)
        return None if next_due is None else max(0.0, next_due - time.monotonic())

    def _take(self, fd: int) -> None:
        """Take what has been sent into one end."""
        for _ in range(64):
            try:
                packet = os.read(fd, 65_536)
            except BlockingIOError:
                return
            if self._cut:
                continue
            due = self._ways[fd].due(len(packet), time.monotonic())
            if due is not None:
                self._under_way[fd].append((due, packet))

    def _deliver(self) -> None:
        """Hand out what is due at the other end."""
        one, two = self._devices
        for fd, other in ((one, two), (two, one)):
            queue = self._under_way[fd]
            while queue and queue[0][0] <= (now := time.monotonic()):
                due, packet = queue.popleft()
                self._worst = max(self._worst, now - due)
                try:
                    os.write(other, packet)
                except BlockingIOError:
                    self._ways[fd].overflowed += 1

    def counts(self) -> dict[str, float]:
        """Return what has happened to the packets of both directions."""
        ways = self._ways.values()
        return {
            "passed": sum(way.passed for way in ways),
            "overflowed": sum(way.overflowed for way in ways),
            "lost": sum(way.lost for way in ways),
            "worst_late_seconds": round(self._worst, 4),
        }


def _device() -> int:
    """Make a TUN device in the network namespace that this process is in."""
    fd = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH", DEVICE.encode(), _TUN_WITHOUT_HEADER))
    return fd


def _main(arguments: Sequence[str]) -> None:
    near = _device()
    with Path(f"/proc/{arguments[0]}/ns/net").open() as other:
        if ctypes.CDLL(None, use_errno=True).setns(other.fileno(), _NEW_NET):
            raise OSError(ctypes.get_errno(), "cannot enter the other network namespace")
    _Carrier((near, _device()), Shape(**json.loads(arguments[1]))).serve()


class Line(ChildProcess):
    """A line between two hosts; a context that ends it. `NEAR` and `FAR` are their addresses.

    Order: `cut` (bool: nothing passes). Answer: the counts of packets.
    """

    def __init__(self, near: Namespace, far: Namespace, shape: Shape) -> None:
        """Make the devices and begin to carry."""
        command = python("-m", "tests.chaos.line", str(far.pid), json.dumps(asdict(shape)))
        super().__init__([*near.prefix, *command], "line")
        try:
            self.order()
            for host, own, other in ((near, NEAR, FAR), (far, FAR, NEAR)):
                host.sh(
                    f"ip addr add {own} peer {other} dev {DEVICE}\n"
                    f"ip link set {DEVICE} up mtu {MTU} txqueuelen 1000"
                )
        except BaseException:
            self.close()
            raise


if __name__ == "__main__":
    _main(sys.argv[1:])
