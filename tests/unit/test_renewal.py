"""Paired certificates are renewed in good time, once at a time, and failures are tried again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import load_pem_x509_csr
from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

from linkd.config import Config
from linkd.config.settings import NodeSettings, PeerSettings
from linkd.errors import ConfigError
from linkd.net.certificates import pem
from linkd.pairing import client as renewals
from linkd.pairing.ca import Authority
from linkd.pairing.client import CHECK_INTERVAL, RETRY_INTERVAL, Renewal, make_request

DAY = 86_400.0


class Scene:
    """A node that has joined one hub, and its renewal on a clock of ours."""

    def __init__(self, directory: Path) -> None:
        self.clock: Any = Clock()
        self.days = 0.0
        self.asked: list[str] = []
        self.answer: float | Exception = 0.0
        self.held: Deferred[None] | None = None
        self.lines: list[dict[str, Any]] = []
        self.own_fails: Exception | None = None
        self.owns = 0
        state = directory / "state"
        place = state / "pairing"
        state.mkdir()
        self.authority = authority = Authority(directory / "hub", "hub", self.wall)
        self.ca = place / "to-hub.ca"
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
        with_secret = PeerSettings(name="third", secret_file="/nowhere")
        node = NodeSettings(name="edge", state_dir=str(state))
        config = Config(node=node, peers=(paired, elsewhere, with_secret))
        self.config = config
        self.usable: list[str] = []
        self.renewal = Renewal(
            lambda: self.config, self.wall, self.in_thread, self.own, self.usable.append
        )

    def trust_authority(self) -> None:
        self.ca.write_bytes(pem(self.authority.signers.all[-1].certificate))
        paired = msgspec.structs.replace(self.config.peers[0], ca=str(self.ca))
        self.config = msgspec.structs.replace(self.config, peers=(paired,))

    def wall(self) -> float:
        return time.time() + self.days * DAY

    def in_thread(self, call: Callable[..., object], *arguments: object) -> Deferred[Any]:
        done = maybeDeferred(call, *arguments)
        held = self.held
        return done if held is None else held.addCallback(lambda _: done)

    def renew(self, peer: PeerSettings) -> float:
        self.asked.append(peer.name)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def own(self) -> Deferred[None]:
        self.owns += 1
        return succeed(None) if self.own_fails is None else fail(self.own_fails)

    def hour(self) -> None:
        """Let an hour pass."""
        self.clock.advance(CHECK_INTERVAL)

    def events(self) -> list[str]:
        """Return the names of what was said since the last time."""
        said, self.lines[:] = [str(line.get("event")) for line in self.lines], []
        return said


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    made = Scene(tmp_path)
    monkeypatch.setattr(renewals, "renew", made.renew)
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
    assert scene.asked == ["hub"]
    assert scene.events() == ["tls.loaded"]


def test_one_that_is_under_way_is_not_begun_again(scene: Scene) -> None:
    scene.days = 300.0
    scene.held = held = Deferred()
    scene.renewal.start(scene.clock)
    scene.hour()
    assert scene.asked == ["hub"]
    scene.held = None
    held.callback(None)
    scene.hour()
    assert scene.asked == ["hub", "hub"]


def test_what_fails_is_said_and_tried_again(scene: Scene) -> None:
    scene.days = 300.0
    scene.answer = ConfigError("hub:9443 does not answer")
    scene.renewal.start(scene.clock)
    for count in range(1, 4):
        assert len(scene.asked) == count
        (line,) = scene.lines
        assert line["event"] == "tls.expiring"
        assert "could not be renewed: hub:9443 does not answer" in line["detail"]
        assert 64 < line["days"] < 66
        scene.lines.clear()
        scene.hour()
    assert len(scene.asked) == 4


def test_what_has_expired_is_tried_each_minute_and_dialed_at_once_then(scene: Scene) -> None:
    scene.days = 400.0
    scene.answer = ConfigError("hub:9443 does not answer")
    scene.renewal.start(scene.clock)
    assert scene.events() == ["tls.expiring"]
    for count in range(2, 12):
        scene.clock.advance(RETRY_INTERVAL)
        assert len(scene.asked) == count
    assert scene.events() == []
    assert scene.usable == []
    scene.answer = scene.wall() + 365 * DAY
    scene.clock.advance(RETRY_INTERVAL)
    assert (scene.usable, scene.events()) == (["hub"], ["tls.loaded"])
    scene.clock.advance(RETRY_INTERVAL)
    assert len(scene.asked) == 12


def test_an_expired_one_with_a_file_that_cant_be_used_is_tried_each_minute(scene: Scene) -> None:
    scene.trust_authority()
    good = scene.ca.read_bytes()
    scene.ca.write_text("not a certificate")
    scene.days = 400.0
    scene.answer = scene.wall() + 365 * DAY
    scene.renewal.start(scene.clock)
    assert scene.events() == ["tls.expiring"]
    scene.clock.advance(RETRY_INTERVAL)
    assert (scene.asked, scene.events()) == ([], [])
    scene.ca.write_bytes(good)
    scene.clock.advance(RETRY_INTERVAL)
    assert (scene.usable, scene.events()) == (["hub"], ["tls.loaded"])


def test_the_authority_that_a_peer_is_trusted_by_is_watched_too(scene: Scene) -> None:
    scene.trust_authority()
    scene.days = 3650.0 - 731.0
    scene.renewal.start(scene.clock)
    assert "tls.expiring" not in scene.events()
    for days in (729.0, 728.0):  # once a day, for two years
        scene.days = 3650.0 - days
        for _ in range(3):
            scene.hour()
        (line,) = [line for line in scene.lines if line["event"] == "tls.expiring"]
        assert line["certificate"] == str(scene.ca)
        assert line["days"] == pytest.approx(days, abs=0.1)
        scene.lines.clear()


def test_files_that_cannot_be_read_do_not_stop_it(scene: Scene) -> None:
    scene.own_fails = ConfigError("ca.key: cannot read the key")
    kept = scene.certificate.read_text()
    scene.certificate.write_text("nothing")
    scene.days = 300.0
    scene.renewal.start(scene.clock)
    assert scene.events() == ["tls.expiring", "tls.expiring"]
    scene.own_fails = None
    scene.certificate.write_text(kept)
    scene.clock.advance(RETRY_INTERVAL)
    assert scene.asked == ["hub"]


def test_stopped_it_looks_no_more(scene: Scene) -> None:
    scene.renewal.start(scene.clock)
    scene.renewal.stop()
    scene.renewal.stop()
    scene.hour()
    assert scene.owns == 1
