"""Changes of topology as faults: peers and paths go, and come back."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from tests.chaos.faults import Edge, Happened, Run, Scene

UP_SECONDS = 5.0
"""How long a new path is awaited before the older one passes packets again."""


def _peer_away(scene: Scene, seconds: float) -> Happened:
    """Remove the link of an edge and the hub at one end or both, and put it back."""
    edge = scene.rng.choice(scene.edges)
    ends = scene.rng.choice([("hub",), (edge.name,), ("hub", edge.name)])
    began = time.monotonic()
    scene.links.take("hub", edge.name, ends)
    time.sleep(seconds)
    scene.links.put("hub", edge.name)
    return Happened(f"peer away at {' and '.join(ends)}", edge.name, began, time.monotonic())


def _direct(scene: Scene) -> tuple[Edge, Edge]:
    """Return the two edges that are linked directly, the listening one first."""
    return scene.edges[0], scene.edges[1]


def _path_away(scene: Scene, seconds: float) -> Happened:
    """Remove the direct path beside the relay, and put it back within a day: its cursors stay."""
    one, two = _direct(scene)
    ends = scene.rng.choice([(one.name,), (two.name,), (one.name, two.name)])
    began = time.monotonic()
    scene.links.take(one.name, two.name, ends)
    time.sleep(seconds)
    scene.links.put(one.name, two.name)
    return Happened("path away", f"{one.name} {two.name}", began, time.monotonic())


def _new_path(scene: Scene, seconds: float) -> Happened:
    """Forget the direct path at both ends, and add it again while the relay is cut off."""
    one, two = _direct(scene)
    began = time.monotonic()
    scene.links.take(one.name, two.name, (one.name, two.name))
    scene.links.forget(one.name, two.name)
    scene.links.forget(two.name, one.name)
    with _relay_behind(scene):
        time.sleep(seconds)
        scene.links.put(one.name, two.name)
        complete = time.monotonic()
        _flow(one, two)
    whom = f"{one.name} {two.name}"
    return Happened("new path", whom, began, time.monotonic(), changed=complete)


def _wider_path(scene: Scene, seconds: float) -> Happened:
    """Send nothing on the direct path, then everything, while the relay is cut off.

    What is published meanwhile comes over the relay, behind what comes over the wider path.
    """
    one, two = _direct(scene)
    began = time.monotonic()
    ends = ((one.name, two.name), (two.name, one.name))
    wide = [scene.links.narrow(name, peer) for name, peer in ends]
    with _relay_behind(scene):
        time.sleep(seconds)
        for (name, peer), text in zip(ends, wide, strict=True):
            scene.links.replace(name, peer, text)
        complete = time.monotonic()
        _flow(one, two)
    whom = f"{one.name} {two.name}"
    return Happened("wider path", whom, began, time.monotonic(), changed=complete)


@contextlib.contextmanager
def _relay_behind(scene: Scene) -> Iterator[None]:
    """Let the relay owe one of the two edges what it has got meanwhile."""
    edge = scene.rng.choice(_direct(scene))
    with scene.lab.cut(edge.host, scene.hub_host):
        yield


def _flow(one: Edge, two: Edge) -> None:
    """Let some records pass on the direct path, if it is up soon."""
    until = time.monotonic() + UP_SECONDS
    while time.monotonic() < until:
        with contextlib.suppress(OSError, KeyError):
            if two.daemon.link(one.name)["state"] == "up":
                break
        time.sleep(0.1)
    time.sleep(1.0)


def _direct_cut(scene: Scene, seconds: float) -> Happened:
    """Drop everything on the direct path; the relay goes on."""
    one, two = _direct(scene)
    began = time.monotonic()
    with scene.lab.cut(one.host, two.host):
        time.sleep(seconds)
    return Happened("direct cut", f"{one.name} {two.name}", began, time.monotonic())


TOPOLOGY: dict[str, Run] = {
    "peer away": _peer_away,
    "path away": _path_away,
    "new path": _new_path,
    "wider path": _wider_path,
    "direct cut": _direct_cut,
}
