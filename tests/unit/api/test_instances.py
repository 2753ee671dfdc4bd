"""What the API answers of instances, and that watchers see links of all of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
from twisted.internet.defer import Deferred

from linkd.api import operations
from linkd.api.session import ClientSession
from linkd.status import InstanceStatus
from tests.support.fake_node import instance, link


def answered(node: Any) -> list[InstanceStatus]:
    api: Any = SimpleNamespace(node=node)
    call: Any = None
    found: list[Any] = []
    Deferred.fromCoroutine(operations.instances(api, call)).addCallback(found.append)
    kind = dict[str, list[InstanceStatus]]
    return msgspec.json.decode(found[0].body, type=kind)["instances"]


def test_all_instances_are_answered_and_none_where_there_is_no_cluster() -> None:
    found = [instance("hub-a", here=True), instance("hub-b", "silent", seen_seconds=None)]
    assert answered(SimpleNamespace(instances=SimpleNamespace(statuses=lambda: found))) == found
    assert answered(SimpleNamespace(instances=None)) == []


class Watch:
    """The part of `Instances` and of events that a session follows."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def follow(self, call: Any) -> Any:
        self.calls.append(call)
        return lambda: self.calls.remove(call)


def test_a_watcher_is_sent_links_that_change_at_another_instance() -> None:
    queued: list[Any] = []
    sent: list[Any] = []
    events, instances = Watch(), Watch()
    moved = msgspec.structs.replace(link("edge"), instance="hub-b")
    node = SimpleNamespace(events=events, instances=instances, link_status=lambda _: moved)
    share = SimpleNamespace(queue=lambda call, _: queued.append(call))
    api: Any = SimpleNamespace(node=node, share=share)
    caller: Any = SimpleNamespace(name="socket")
    socket: Any = SimpleNamespace(paused=False)
    session = ClientSession(api, caller, socket)
    session.send_links = sent.extend  # type: ignore[method-assign]
    session.watch_links()
    session.watch_links()  # once is enough
    assert (len(events.calls), len(instances.calls)) == (1, 1)
    instances.calls[0]("edge", "link.up")
    queued.pop()()
    assert sent == [(moved, "link.up")]
    session.closed()
    assert (events.calls, instances.calls) == ([], [])
