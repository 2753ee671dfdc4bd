"""Several paths between real daemons, added and removed while records are owed."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import msgspec
import pytest

from linkd.cli.status import check_line
from linkd.drill.testbed import free_port
from linkd.status import NodeStatus
from tests.support import figures
from tests.support.daemon import Daemon, listen, peer

pytestmark = pytest.mark.slow

ALL = 'send = [">"]\nreceive = [">"]\n'

Links = Sequence[tuple[str, str]]


class Paths:
    """Daemons on loopback, and the links between them.

    Args:
        stack: Ends them.
        names: Of the nodes.
        upward: The later name dials, not the earlier one.
        both: Both ends dial.
    """

    def __init__(
        self, stack: ExitStack, names: Sequence[str], *, upward: bool = False, both: bool = False
    ) -> None:
        self.ports = {name: free_port() for name in names}
        self.nodes = {name: Daemon(name, "") for name in names}
        self._upward, self._both = upward, both
        for node in self.nodes.values():
            stack.callback(node.close)

    def set(self, links: Links, extra: dict[str, str] | None = None) -> None:
        """Let these be all links, at once where a daemon runs."""
        for name, node in self.nodes.items():
            found = listen(self.ports[name], "127.0.0.1")
            for link in links:
                if name in link:
                    other = link[name == link[0]]
                    dials = self._both or (name < other) is not self._upward
                    urls = [f"ws://127.0.0.1:{self.ports[other]}/link"] if dials else []
                    found += peer(other, *urls, extra=ALL + (extra or {}).get(name, ""))
            node.configure(found)
            if node.running:
                node.signal(signal.SIGHUP)
                wanted = {one if name == two else two for one, two in links if name in (one, two)}
                until(lambda n=node, w=wanted: {x["peer"] for x in n.status()["links"]} == w)

    def drained(self, within: float = 60.0) -> None:
        """Wait until all links are up and nothing is owed."""

        def is_drained() -> bool:
            done = True
            for node in self.nodes.values():
                for link in node.status()["links"]:
                    done &= link["state"] == "up" and not link["backlog_records"]
                    if link["state"] == "rejected":  # it dialed before the other end had reloaded
                        node.call("POST", f"/v1/peers/{link['peer']}/kick")
            return done

        until(is_drained, within)


def until(is_true: Callable[[], bool], within: float = 20.0) -> None:
    """Wait for it."""
    end = time.monotonic() + within
    while not is_true():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.05)


def publish(node: Daemon, count: int, begin: int = 0) -> list[str]:
    """Publish some records; return them once they are acknowledged."""
    texts = [f"{node.name}-{number}" for number in range(begin, begin + count)]
    for text in texts:
        node.call("POST", "/v1/channels/orders", text.encode(), "text/plain")
    return texts


def texts(node: Daemon) -> list[str]:
    """Return what a node has, in its own order."""
    page = node.call("GET", "/v1/channels/orders?limit=1000")
    return [record["text"] for record in page["records"]]


def metric(node: Daemon, name: str) -> float:
    """Return the sum of a metric over its labels."""
    lines = [each for each in node.call("GET", "/metrics").splitlines() if each.startswith(name)]
    return sum(float(each.rsplit(" ", 1)[1]) for each in lines)


@pytest.fixture
def make() -> Iterator[Callable[..., Paths]]:
    """Return a function that makes nodes."""
    with ExitStack() as stack:
        yield lambda *names, **more: Paths(stack, names, **more)


@pytest.mark.parametrize("first", ["relay", "direct"])
def test_a_direct_link_beside_a_relay_that_owes(make: Callable[..., Paths], first: str) -> None:
    paths = make("a", "b", "c")
    a, b, c = paths.nodes.values()
    paths.set([("a", "b"), ("b", "c")])
    a.start()
    b.start()
    a.wait_up("b")
    old = publish(a, 10)
    until(lambda: b.link("c")["backlog_records"] == 10)
    paths.set([("a", "b"), ("b", "c"), ("a", "c")])
    new = publish(a, 1, 10)
    if first == "direct":
        b.freeze()
    c.start()
    a.wait_line(10.0, peer="c", event="link.up")
    if first == "direct":
        until(lambda: texts(c) == new)
        b.thaw()
    paths.drained(90.0)
    found = texts(c)
    assert sorted(found) == sorted(old + new)
    assert [text for text in found if text in old] == old
    late = metric(c, "linkd_records_late_total{")
    assert late == (10 if found[0] == new[0] else 0)
    assert len(list(c.matching(event="link.late-records"))) == (late > 0)
    assert metric(c, "linkd_records_unproven_total{") == 0
    figures.tell(f"{first} first: {len(found)} of 11 at c, {late:.0f} late")


SHAPES: dict[str, tuple[Links, dict[str, bool]]] = {
    "chain, dialed downward": ([("a", "b"), ("b", "c"), ("c", "d")], {}),
    "chain, dialed upward": ([("a", "b"), ("b", "c"), ("c", "d")], {"upward": True}),
    "star": ([("a", "b"), ("a", "c"), ("a", "d")], {}),
    "ring": ([("a", "b"), ("b", "c"), ("c", "d"), ("a", "d")], {}),
    "three paths": ([("a", "b"), ("a", "c"), ("a", "d"), ("b", "d"), ("c", "d")], {}),
    "ring, both ends dial": ([("a", "b"), ("b", "c"), ("a", "c")], {"both": True}),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_each_record_is_at_each_node_once_and_in_order(
    make: Callable[..., Paths], shape: str
) -> None:
    """A path is removed and added again, and a node is killed, while all publish."""
    links, more = SHAPES[shape]
    names = sorted({name for link in links for name in link})
    paths = make(*names, **more)
    paths.set(links)
    for node in paths.nodes.values():
        node.start()
    paths.drained()
    published = {name: publish(node, 20) for name, node in paths.nodes.items()}
    paths.set(links[1:])
    for name, node in paths.nodes.items():
        published[name] += publish(node, 20, 20)
    paths.nodes["b"].kill()
    paths.nodes["b"].start()
    for name, node in paths.nodes.items():
        published[name] += publish(node, 20, 40)
    paths.set(links)
    for name, node in paths.nodes.items():
        published[name] += publish(node, 20, 60)
    paths.drained()
    late = 0
    for node in paths.nodes.values():
        found = texts(node)
        assert len(found) == len(set(found)) == 80 * len(names)
        back = 0
        for name in names:
            mine = [int(text.rsplit("-", 1)[1]) for text in found if text.startswith(f"{name}-")]
            assert sorted(mine) == list(range(80))
            back += sum(place < max(mine[:at], default=0) for at, place in enumerate(mine))
        counted = sum(
            metric(node, f"linkd_records_{what}_total{{") for what in ("late", "unproven")
        )
        assert counted == back
        late += back
    figures.tell(f"{shape}: {80 * len(names)} records at each of {len(names)}, {late} late")


def test_without_relay_both_ends_say_what_is_left_out(make: Callable[..., Paths]) -> None:
    paths = make("a", "b", "c")
    a, b, c = paths.nodes.values()
    paths.set([("a", "b"), ("b", "c")], {"c": "relay = false\n"})
    for node in (a, b, c):
        node.start()
    paths.drained()
    publish(a, 3)
    answer = b.call("POST", "/v1/channels/orders?wait=c", b"b-0", "text/plain")
    assert answer["count"] == 1
    line = b.wait_line(10.0, event="link.relay-refused", peer="c").fields
    assert line["level"] == "error"
    assert "set relay = true in c's [[peer]] b" in line["detail"]
    paths.drained()
    assert texts(c) == ["b-0"]
    status = msgspec.convert(b.status(), NodeStatus)
    assert check_line(status)[0] == 1
    assert "relay" in check_line(status)[1]
    assert metric(b, 'linkd_records_dropped_total{peer="c",reason="not-relayed"}') == 3
    changed = time.monotonic()
    paths.set([("a", "b"), ("b", "c")])
    b.wait_line(10.0, changed, event="link.up", peer="c")  # until its new hello c gets none of a's
    publish(a, 1, 3)
    paths.drained()
    until(lambda: texts(c) == ["b-0", "a-3"])
    assert len(list(b.matching(event="link.relay-refused"))) == 1
