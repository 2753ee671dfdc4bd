"""Paired certificates are renewed in good time, once at a time, and failures are tried again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import load_pem_x509_csr
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

from linkd.config import Config
from linkd.config.settings import NodeSettings, PeerSettings
from linkd.errors import ConfigError
from linkd.pairing import Authority, Renewal
from linkd.pairing.joining import make_request
from linkd.pairing.renewal import CHECK_INTERVAL

DAY = 86_400.0


class Scene:
    """A node that has joined one hub, and its renewal on a clock of ours."""

    def __init__(self, directory: Path) -> None:
        self.clock: Any = Clock()
        self.days = 0.0
        self.asked: list[tuple[str, Deferred[float]]] = []
        self.lines: list[dict[str, Any]] = []
        self.own_fails: Exception | None = None
        self.owns = 0
        state = directory / "state"
        place = state / "pairing"
        state.mkdir()
        authority = Authority(directory / "hub", "hub", self.wall)
        key = ec.generate_private_key(ec.SECP256R1())
        request = load_pem_x509_csr(make_request(key, "edge").encode())
        place.mkdir()
        self.certificate = place / "to-hub.crt"
        self.certificate.write_text(authority.issue(request, "edge"))
        pem = serialization.Encoding.PEM
        form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        (place / "to-hub.key").write_bytes(key.private_bytes(pem, form, plain))
        paired = PeerSettings(
            name="hub",
            dial=("wss://hub:9443/link",),
            certificate=str(self.certificate),
            key=str(place / "to-hub.key"),
        )
        elsewhere = PeerSettings(name="other", certificate=str(directory / "not-ours.crt"))
        node = NodeSettings(name="edge", state_dir=str(state))
        config = Config(node=node, peers=(paired, elsewhere))
        self.renewal = Renewal(lambda: config, self.wall, self.in_thread, self.own)

    def wall(self) -> float:
        return time.time() + self.days * DAY

    def in_thread(self, _: object, peer: PeerSettings) -> Deferred[float]:
        done: Deferred[float] = Deferred()
        self.asked.append((peer.name, done))
        return done

    def own(self) -> None:
        self.owns += 1
        if self.own_fails is not None:
            raise self.own_fails

    def hour(self) -> None:
        """Let an hour pass."""
        self.clock.advance(CHECK_INTERVAL)

    def events(self) -> list[str]:
        """Return the names of what was said since the last time."""
        said, self.lines[:] = [str(line.get("event")) for line in self.lines], []
        return said


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    note: Any = made.lines.append
    globalLogPublisher.addObserver(note)
    yield made
    made.renewal.stop()
    globalLogPublisher.removeObserver(note)
    assert made.clock.getDelayedCalls() == []


def test_it_looks_at_once_and_every_hour(scene: Scene) -> None:
    scene.renewal.start(scene.clock)
    assert scene.owns == 1
    for _ in range(3):
        scene.hour()
    assert scene.owns == 4
    assert scene.asked == []
    assert scene.events() == []


def test_renewed_once_less_than_a_third_is_left(scene: Scene) -> None:
    scene.renewal.start(scene.clock)
    scene.days = 240.0
    scene.hour()
    assert scene.asked == []
    scene.days = 246.0
    scene.hour()
    ((name, done),) = scene.asked
    assert name == "hub"
    scene.hour()
    assert len(scene.asked) == 1  # the first one is still under way
    done.callback(scene.wall() + 365 * DAY)
    assert scene.events() == ["tls.loaded"]


def test_what_fails_is_said_and_tried_again(scene: Scene) -> None:
    scene.days = 300.0
    scene.renewal.start(scene.clock)
    for count in range(1, 4):
        assert len(scene.asked) == count
        scene.asked[-1][1].errback(ConfigError("hub:9443 does not answer"))
        (line,) = scene.lines
        assert line["event"] == "tls.expiring"
        assert "could not be renewed: hub:9443 does not answer" in line["detail"]
        assert 64 < line["days"] < 66
        scene.lines.clear()
        scene.hour()
    assert len(scene.asked) == 4


def test_files_that_cannot_be_read_do_not_stop_it(scene: Scene) -> None:
    scene.own_fails = ConfigError("ca.key: cannot read the key")
    kept = scene.certificate.read_text()
    scene.certificate.write_text("nothing")
    scene.days = 300.0
    scene.renewal.start(scene.clock)
    assert scene.events() == ["tls.expiring", "tls.expiring"]
    scene.own_fails = None
    scene.certificate.write_text(kept)
    scene.hour()
    assert [name for name, _ in scene.asked] == ["hub"]


def test_stopped_it_looks_no_more(scene: Scene) -> None:
    scene.renewal.start(scene.clock)
    scene.renewal.stop()
    scene.renewal.stop()
    scene.hour()
    assert scene.owns == 1
