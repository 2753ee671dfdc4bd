"""What scripts/demo shows: two nodes, in network namespaces where they can be made."""

from __future__ import annotations

import json
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.support.daemon import Daemon, listen, peer
from tests.support.lab import Lab, Namespace
from tests.support.needs import packet_filter
from tests.support.relay import Relay

BEFORE, DURING = 200, 1000
LISTENER_SECONDS, DIALER_SECONDS, BACK_SECONDS = 7.1, 10.1, 3.0


class Filtered:
    """Two hosts as network namespaces, cut by the bundled scripts."""

    how = "scripts/drop.sh on the hub's host drops every packet in both directions"

    def __init__(self, stack: ExitStack, directory: Path) -> None:
        lab = stack.enter_context(Lab(directory))
        self._hub, self._edge = lab.host("hub"), lab.host("edge")
        self.hub = stack.enter_context(hub_node(self._hub.address, 9443, self._hub))
        self.edge = stack.enter_context(edge_node(f"{self._hub.address}:9443", self._edge))

    def cut(self) -> None:
        """Run scripts/drop.sh."""
        self._hub.drop(self._edge.address)

    def restore(self) -> None:
        """Run scripts/restore.sh."""
        self._hub.restore(self._edge.address)


class Relayed:
    """Both nodes on loopback, with a relay between them that can freeze."""

    how = "the relay between the two nodes passes nothing any more"

    def __init__(self, stack: ExitStack) -> None:
        self.hub = stack.enter_context(hub_node("127.0.0.1", free_port(), None))
        self._relay = stack.enter_context(Relay(("127.0.0.1", self.hub_port())))
        self.edge = stack.enter_context(edge_node(f"127.0.0.1:{self._relay.port}", None))

    def hub_port(self) -> int:
        """Return where the hub listens."""
        text = self.hub.config_file.read_text()
        return int(text.partition('address = "127.0.0.1:')[2].partition('"')[0])

    def cut(self) -> None:
        """Freeze the relay."""
        self._relay.tell(frozen=True)

    def restore(self) -> None:
        """Thaw the relay."""
        self._relay.tell(frozen=False)


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def hub_node(address: str, port: int, host: Namespace | None) -> Daemon:
    """Return the node that accepts."""
    settings = listen(port, address) + peer("edge", extra='receive = ["orders"]\n')
    return Daemon("hub", settings, host)


def edge_node(hub: str, host: Namespace | None) -> Daemon:
    """Return the node that dials."""
    return Daemon("edge", peer("hub", f"ws://{hub}/link", extra='send = ["orders"]\n'), host)


class Failed(Exception):
    """Something was not as promised."""


def say(text: str) -> None:
    """Print one line of progress."""
    print(f"{time.monotonic() - BEGUN:5.1f} s  {text}", flush=True)


def promise(kept: bool, text: str) -> None:
    """Print what was measured, and stop if it is not as promised."""
    say(("     ok  " if kept else "     NOT ") + text)
    if not kept:
        raise Failed(text)


def publish(node: Daemon, first: int, count: int) -> None:
    """Publish numbered messages, a hundred a call; returns once they are on disk."""
    for begin in range(first, first + count, 100):
        end = min(begin + 100, first + count)
        lines = "\n".join(json.dumps({"number": number}) for number in range(begin, end))
        node.call("POST", "/v1/channels/orders", lines.encode(), "application/x-ndjson", 10.0)


def arrived(node: Daemon, wanted: int, within: float) -> list[int]:
    """Read the numbers that have arrived, until so many are there or the time is over."""
    numbers: list[int] = []
    following, end = 1, time.monotonic() + within
    while len(numbers) < wanted and time.monotonic() < end:
        page = node.call("GET", f"/v1/channels/orders?from={following}&limit=500&wait=1")
        numbers += [record["data"]["number"] for record in page["records"]]
        following = page["next"]
    return numbers


def show(path: Filtered | Relayed) -> None:
    """Show it all.

    Raises:
        Failed: Something was not as promised.
    """
    hub, edge = path.hub, path.edge
    up = edge.wait_up("hub", 15.0)
    hub.wait_up("edge", 5.0)
    say("The edge has dialed the hub; the link is up.")
    publish(edge, 0, BEFORE)
    numbers = arrived(hub, BEFORE, 10.0)
    promise(
        numbers == list(range(BEFORE)),
        f"{len(numbers)} messages published on the edge are in the hub's log",
    )

    cut = time.monotonic()
    path.cut()
    say(f"The cut: {path.how}.")
    publish(edge, BEFORE, DURING)
    say(f"Meanwhile {DURING} more messages are published on the edge: its log holds them.")
    for node, name, bound in ((hub, "edge", LISTENER_SECONDS), (edge, "hub", DIALER_SECONDS)):
        line = node.wait_line(15.0, max(cut, up), peer=name, old="up")
        seconds = float(line.fields["noticed_after_seconds"])
        end = "listener" if node is hub else "dialer"
        promise(seconds <= bound, f"the {end} noticed {seconds:.2f} s after the last byte it heard")
    backlog = edge.link("hub")["backlog_records"]
    promise(backlog == DURING, f"`linkd status` on the edge says: backlog {backlog} records")

    restored = time.monotonic()
    path.restore()
    say("The path is back.")
    line = edge.wait_line(BACK_SECONDS + 5.0, restored, peer="hub", event="link.up")
    seconds = max(0.0, line.at - restored)
    promise(seconds <= BACK_SECONDS, f"the link is up again after {seconds:.2f} s")
    numbers = arrived(hub, BEFORE + DURING, 10.0)
    missing = len(set(range(BEFORE + DURING)) - set(numbers))
    doubled = len(numbers) - len(set(numbers))
    promise(
        numbers == list(range(BEFORE + DURING)),
        f"{len(numbers)} messages arrived: {missing} lost, {doubled} twice, "
        + ("in order" if numbers == sorted(numbers) else "not in order"),
    )


@contextmanager
def two_nodes() -> Iterator[Filtered | Relayed]:
    """Start two nodes on hosts of their own, or on loopback where the machine allows no more."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="linkd-demo-")))
        if packet_filter():
            say("Two nodes, `hub` and `edge`, each on a host of its own: a network namespace.")
            yield Filtered(stack, directory)
        else:
            say("This machine allows no network namespaces with iptables (root would have them).")
            say("So: two nodes, `hub` and `edge`, on loopback, with a relay between them.")
            yield Relayed(stack)


def main() -> int:
    """Show it, and say the verdict."""
    try:
        with two_nodes() as path:
            try:
                show(path)
            except (Failed, RuntimeError, OSError) as error:
                for node in (path.hub, path.edge):
                    print(f"\nThe last lines of {node.name}:\n{node.tail(8)}", file=sys.stderr)
                print(f"\nVerdict: NOT as promised: {error}", file=sys.stderr)
                return 1
    except KeyboardInterrupt:
        return 130
    except RuntimeError as error:
        print(f"\nVerdict: NOT as promised: a node did not start.\n{error}", file=sys.stderr)
        return 1
    print("\nVerdict: as promised: cut noticed, link back, nothing lost, nothing twice, in order.")
    return 0


BEGUN = time.monotonic()

if __name__ == "__main__":
    raise SystemExit(main())
