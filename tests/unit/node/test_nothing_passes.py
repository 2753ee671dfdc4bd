"""A link that is up and over which nothing can pass, because the patterns of both ends differ."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from linkd.cli.status import check_line
from linkd.config import PeerSettings
from linkd.node import Node
from linkd.node.history import LinkRecorder
from tests.support.fake_net import FakeNet

HUB = PeerSettings(name="hub", dial=("ws://hub/link",))


def started(net: FakeNet, edge: PeerSettings, hub: PeerSettings) -> tuple[Node, Node]:
    net.node("hub", edge)
    net.node("edge", hub)
    for node in net.nodes.values():
        node.start()
    net.run(0.5)
    return net.nodes["hub"], net.nodes["edge"]


def patterns(peer: PeerSettings, send: tuple[str, ...], receive: tuple[str, ...]) -> PeerSettings:
    return msgspec.structs.replace(peer, send=send, receive=receive)


EDGE = PeerSettings(name="edge")


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    tell = LinkRecorder.log_event

    def listen(recorder: LinkRecorder, level: Any, event: str, **fields: Any) -> None:
        if event == "link.nothing-passes":
            found.append(fields)
        tell(recorder, level, event, **fields)

    monkeypatch.setattr(LinkRecorder, "log_event", listen)
    return found


@pytest.mark.parametrize("taken", [("other", "b.*"), ()])
def test_it_is_logged_once_and_check_warns(
    lines: list[dict[str, Any]], taken: tuple[str, ...]
) -> None:
    net = FakeNet()
    hub, edge = started(net, patterns(EDGE, (), taken), patterns(HUB, ("new.>", "b"), ("x",)))
    link = edge.link("hub")
    assert link is not None
    for _ in range(3):
        link.rejoin("to say hello again")
        net.run(5.0)
    assert edge.status().links[0].state == "up"
    [line] = lines
    assert line["peer"] == "hub"
    assert "this node's send = ['new.>', 'b'], its receive = " in line["detail"]
    code, text = check_line(edge.status())
    assert (code, "nothing passes to hub" in text) == (1, True)
    assert check_line(hub.status())[0] == 0


@pytest.mark.parametrize(
    ("send", "taken"), [(("a", "new.>"), ("*.x",)), ((), ()), ((), (">",)), (("a",), ("a", "b"))]
)
def test_nothing_is_logged_where_a_channel_fits_or_nothing_is_offered(
    lines: list[dict[str, Any]], send: tuple[str, ...], taken: tuple[str, ...]
) -> None:
    _, edge = started(FakeNet(), patterns(EDGE, (), taken), patterns(HUB, send, ()))
    assert edge.status().links[0].state == "up"
    assert lines == []
    assert check_line(edge.status())[0] == 0


def test_it_is_over_once_the_peer_takes_something(lines: list[dict[str, Any]]) -> None:
    net = FakeNet()
    hub, edge = started(net, patterns(EDGE, (), ("b",)), patterns(HUB, ("a",), ()))
    assert edge.status().links[0].nothing_passes
    new = msgspec.structs.replace(hub.config, peers=(patterns(EDGE, (), ("a",)),))
    hub.reload(new)
    net.run(90.0)
    assert edge.status().links[0].state == "up"
    assert not edge.status().links[0].nothing_passes
    assert len(lines) == 1
