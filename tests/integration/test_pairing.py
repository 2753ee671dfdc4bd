"""Two nodes pair over real sockets; who is in between, late or mistaken does not."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
import trustme
from cryptography import x509
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from linkd.config import Config, files, load
from linkd.errors import ConfigError, LinkdError
from linkd.net.tls import client_context
from linkd.pairing.client import HubUnreachable, due, join, renew
from linkd.pairing.messages import PairingRefused, decode_code, encode_code
from tests.support import tls_lab
from tests.support.pairing_lab import Hub, edge_config


def within(deferred: Deferred[Any], seconds: float = 15.0) -> Deferred[Any]:
    """Bound the wait for `deferred`."""
    return deferred.addTimeout(seconds, reactor)


@pytest_twisted.async_yield_fixture
async def hub(tmp_path: Path) -> AsyncIterator[Hub]:
    hub = Hub(tmp_path / "hub")
    yield hub
    await hub.close()


@pytest.fixture
def edge(tmp_path: Path) -> Config:
    return edge_config(tmp_path / "edge", "edge-1")


def linkd_d(edge: Config) -> Path:
    return Path(edge.node.state_dir).parent / "linkd.d"


async def joined(code: str, edge: Config) -> Any:
    return await within(deferToThread(join, code, edge, linkd_d(edge)))


async def refusal(code: str, edge: Config) -> str:
    with pytest.raises(LinkdError) as caught:
        await joined(code, edge)
    return str(caught.value)


@pytest_twisted.ensureDeferred
async def test_a_gateway_may_pass_on_what_began_elsewhere(hub: Hub, edge: Config) -> None:
    await joined(hub.pairing.invite("edge-1", "127.0.0.1", relay=True), edge)
    assert hub.config.peers[0].relay


@pytest_twisted.ensureDeferred
async def test_from_nothing_to_a_verified_connection(hub: Hub, edge: Config) -> None:
    code = hub.pairing.invite("edge-1", "127.0.0.1")
    reloads = hub.reloads
    done = await joined(code, edge)
    assert done.peer == "hub"
    assert hub.reloads == reloads + 1
    assert done.expires - time.time() > 360 * 86_400
    fresh = load(files(Path(edge.node.state_dir).parent / "linkd.toml"))
    peer = fresh.peers[0]
    assert (peer.name, peer.dial) == ("hub", (f"wss://127.0.0.1:{hub.number}/link",))
    assert (peer.send, peer.receive) == ((">",), ("edge-1.>",))
    assert peer.key is not None
    assert Path(peer.key).stat().st_mode & 0o777 == 0o600
    other = hub.config.peers[0]
    assert (other.name, other.send, other.receive) == ("edge-1", ("edge-1.>",), (">",))
    assert (peer.relay, other.relay) == (True, False)
    end = tls_lab.dial(hub.echo_number, client_context(peer, "127.0.0.1"))
    assert await within(end.data) == b"hi"
    assert hub.echo.ends[0].names == ["edge-1", "edge-1"]
    end.transport.abortConnection()
    await within(end.lost)
    assert [(each.name, each.state, each.configured) for each in hub.pairing.peers()] == [
        ("edge-1", "paired", True)
    ]


@pytest_twisted.ensureDeferred
async def test_a_used_code_is_refused(hub: Hub, edge: Config, tmp_path: Path) -> None:
    code = hub.pairing.invite("edge-1", "127.0.0.1")
    await joined(code, edge)
    thief = edge_config(tmp_path / "thief", "edge-1")
    assert "used before" in await refusal(code, thief)
    assert not (linkd_d(thief) / "hub.toml").exists()


@pytest_twisted.ensureDeferred
async def test_an_expired_code_is_refused(hub: Hub, edge: Config) -> None:
    code = hub.pairing.invite("edge-1", "127.0.0.1")
    hub.ahead = 599.0
    assert hub.pairing.peers()[0].state == "invited"
    hub.ahead = 601.0
    assert "expired" in await refusal(code, edge)
    assert hub.config.peers == ()


@pytest_twisted.ensureDeferred
async def test_a_newer_code_for_the_same_node_voids_the_older(hub: Hub, edge: Config) -> None:
    older = hub.pairing.invite("edge-1", "127.0.0.1")
    newer = hub.pairing.invite("edge-1", "127.0.0.1")
    assert "taken back" in await refusal(older, edge)
    await joined(newer, edge)


@pytest_twisted.ensureDeferred
async def test_a_wrong_secret_is_refused_and_ten_of_them_end_the_code(
    hub: Hub, edge: Config
) -> None:
    code = decode_code(hub.pairing.invite("edge-1", "127.0.0.1"))
    wrong = encode_code(type(code)(code.name, code.address, code.fingerprint, b"0123456789"))
    assert "not known here" in await refusal(wrong, edge)
    ask = hub.wrong_proof(code)
    for _ in range(10):
        assert hub.post(ask)[0] == 403
    assert "expired or was taken back" in await refusal(encode_code(code), edge)


@pytest_twisted.ensureDeferred
async def test_a_code_for_another_node_is_not_even_sent(hub: Hub, edge: Config) -> None:
    code = hub.pairing.invite("edge-2", "127.0.0.1")
    assert "is for the node 'edge-2'" in await refusal(code, edge)
    assert hub.posts == 0


@pytest_twisted.ensureDeferred
async def test_a_man_in_the_middle_with_his_own_certificate_is_refused(
    hub: Hub, edge: Config, tmp_path: Path
) -> None:
    real = decode_code(hub.pairing.invite("edge-1", "127.0.0.1"))
    middle = Hub(tmp_path / "middle", name="hub")
    try:
        middle.pairing.invite("edge-1", "127.0.0.1")
        address = f"127.0.0.1:{middle.number}"
        diverted = encode_code(type(real)(real.name, address, real.fingerprint, real.secret))
        assert "someone else answers" in await refusal(diverted, edge)
        middle.pass_on(hub)
        assert "someone may intercept the connection" in await refusal(diverted, edge)
    finally:
        await middle.close()
    assert hub.config.peers == ()
    assert not list(linkd_d(edge).glob("*.toml"))


@pytest_twisted.ensureDeferred
async def test_a_proof_made_for_another_certificate_is_refused(hub: Hub) -> None:
    """Even if the fingerprint could be forged, the proof names the certificate that was shown."""
    code = decode_code(hub.pairing.invite("edge-1", "127.0.0.1"))
    leaf = trustme.CA().issue_cert("127.0.0.1").cert_chain_pems[0].bytes()
    shown = x509.load_pem_x509_certificate(leaf)
    status, body = hub.post(hub.ask(code, shown))
    assert status == 403
    assert b"someone may intercept the connection" in body
    assert hub.post(hub.ask(code, hub.tls.leaf))[0] == 200


@pytest_twisted.ensureDeferred
async def test_a_lost_answer_can_be_asked_for_again(hub: Hub) -> None:
    code = decode_code(hub.pairing.invite("edge-1", "127.0.0.1"))
    ask = hub.ask(code, hub.tls.leaf)
    assert hub.post(ask) == hub.post(ask)


@pytest_twisted.ensureDeferred
async def test_revoked_at_once_and_invited_again(hub: Hub, edge: Config) -> None:
    await joined(hub.pairing.invite("edge-1", "127.0.0.1"), edge)
    peer = load(files(Path(edge.node.state_dir).parent / "linkd.toml")).peers[0]
    up = tls_lab.dial(hub.echo_number, client_context(peer, "127.0.0.1"))
    await within(up.data)
    assert hub.pairing.revoke("edge-1") == 1
    assert hub.revoked == ["edge-1"]
    assert hub.tls.revoked(hub.echo.ends[0].transport)
    tls = client_context(peer, "127.0.0.1")
    refused = tls_lab.dial(hub.echo_number, tls)
    failure = tls.explain(await within(refused.lost))
    assert failure is not None
    assert "revoked" in failure.detail
    assert hub.pairing.peers()[0].state == "revoked"
    with pytest.raises(PairingRefused, match="revoked"):
        await within(deferToThread(renew, peer))
    up.transport.abortConnection()
    await within(up.lost)
    again = load(files(Path(edge.node.state_dir).parent / "linkd.toml"))
    await joined(hub.pairing.invite("edge-1", "127.0.0.1"), again)
    end = tls_lab.dial(hub.echo_number, client_context(peer, "127.0.0.1"))
    assert await within(end.data) == b"hi"
    end.transport.abortConnection()
    await within(end.lost)


@pytest_twisted.ensureDeferred
async def test_a_certificate_is_renewed_before_it_ends(hub: Hub, edge: Config) -> None:
    done = await joined(hub.pairing.invite("edge-1", "127.0.0.1"), edge)
    peer = load(files(Path(edge.node.state_dir).parent / "linkd.toml")).peers[0]
    state = Path(edge.node.state_dir)
    assert due(peer, state, time.time()) is None
    assert due(peer, state, time.time() + 200 * 86_400) is None
    assert due(peer, state, time.time() + 250 * 86_400) == done.expires
    hub.wall_ahead = 100 * 86_400
    with pytest.raises(PairingRefused, match="too early"):
        await within(deferToThread(renew, peer))
    hub.wall_ahead = 245 * 86_400
    fresh = await within(deferToThread(renew, peer))
    assert fresh - done.expires > 244 * 86_400
    assert due(peer, state, time.time() + 250 * 86_400) is None
    hub.wall_ahead = 700 * 86_400  # it ended three months ago
    assert await within(deferToThread(renew, peer)) > fresh + 85 * 86_400
    hub.wall_ahead = 2000 * 86_400
    with pytest.raises(PairingRefused, match="expired more than 730 days ago: pair again"):
        await within(deferToThread(renew, peer))


@pytest_twisted.ensureDeferred
async def test_an_edge_certificate_cannot_stand_for_the_hub(hub: Hub, edge: Config) -> None:
    await joined(hub.pairing.invite("edge-1", "127.0.0.1"), edge)
    peer = load(files(Path(edge.node.state_dir).parent / "linkd.toml")).peers[0]
    assert peer.certificate is not None
    assert peer.key is not None
    impostor = tls_lab.Listener(hub.tls_with(peer.certificate, peer.key))
    try:
        tls = client_context(peer, "edge-1")
        failure = tls.explain(await within(tls_lab.dial(impostor.number, tls).lost))
        assert failure is not None
        assert "extended key usage lacks serverAuth" in failure.detail
    finally:
        await impostor.close()


@pytest_twisted.ensureDeferred
async def test_a_hub_with_a_certificate_of_a_private_authority(
    tmp_path: Path, edge: Config
) -> None:
    ca = trustme.CA()
    hub = Hub(tmp_path / "other", leaf=ca.issue_cert("127.0.0.1"), top=ca)
    try:
        await joined(hub.pairing.invite("edge-1", "127.0.0.1"), edge)
        peer = load(files(Path(edge.node.state_dir).parent / "linkd.toml")).peers[0]
        end = tls_lab.dial(hub.echo_number, client_context(peer, "127.0.0.1"))
        assert await within(end.data) == b"hi"
        end.transport.abortConnection()
        await within(end.lost)
    finally:
        await hub.close()


@pytest_twisted.ensureDeferred
async def test_nobody_answers(hub: Hub, edge: Config) -> None:
    code = decode_code(hub.pairing.invite("edge-1", "127.0.0.1"))
    gone = encode_code(type(code)(code.name, "127.0.0.1:1", code.fingerprint, code.secret))
    with pytest.raises(HubUnreachable, match="does not answer"):
        await joined(gone, edge)


@pytest_twisted.ensureDeferred
async def test_a_peer_written_by_hand_is_not_replaced(hub: Hub, tmp_path: Path) -> None:
    own = '[[peer]]\nname = "hub"\ndial = ["wss://hub.example/link"]\nsecret_file = "s"\n'
    edge = edge_config(tmp_path / "edge", "edge-1", own)
    with pytest.raises(ConfigError, match="is in the configuration already"):
        await joined(hub.pairing.invite("edge-1", "127.0.0.1"), edge)
    assert hub.config.peers == ()


@pytest_twisted.ensureDeferred
async def test_other_terms_of_a_new_invitation_take_effect(hub: Hub, edge: Config) -> None:
    first = hub.pairing.invite("edge-1", "127.0.0.1", ["a"], ["b"])
    await joined(first, edge)
    hub.pairing.revoke("edge-1")
    again = load(files(Path(edge.node.state_dir).parent / "linkd.toml"))
    await joined(hub.pairing.invite("edge-1", "127.0.0.1", ["new.>"], ["other"], True), again)
    ours = hub.config.peers[0]
    theirs = load(files(Path(edge.node.state_dir).parent / "linkd.toml")).peers[0]
    assert (ours.send, ours.receive, ours.relay) == (("new.>",), ("other",), True)
    assert (theirs.send, theirs.receive) == (("other",), ("new.>",))


@pytest_twisted.ensureDeferred
async def test_a_new_invitation_without_terms_keeps_what_is_configured(
    hub: Hub, edge: Config
) -> None:
    await joined(hub.pairing.invite("edge-1", "127.0.0.1", ["a"], ["b"], True), edge)
    file = hub.main.parent / "linkd.d" / "edge-1.toml"
    file.write_text(file.read_text() + "required = true\n")
    hub.reload()
    again = load(files(Path(edge.node.state_dir).parent / "linkd.toml"))
    await joined(hub.pairing.invite("edge-1", "127.0.0.1"), again)
    theirs = load(files(Path(edge.node.state_dir).parent / "linkd.toml")).peers[0]
    assert (theirs.send, theirs.receive) == (("b",), ("a",))
    ours = hub.config.peers[0]
    assert (ours.send, ours.receive, ours.relay, ours.required) == (("a",), ("b",), True, True)
    with pytest.raises(PairingRefused, match=r"\[\[peer\]\] edge-1 .* has send = \['a'\]"):
        hub.pairing.invite("edge-1", "127.0.0.1", ["c"])


@pytest_twisted.ensureDeferred
async def test_a_file_that_was_edited_after_the_invitation_is_kept(hub: Hub, edge: Config) -> None:
    await joined(hub.pairing.invite("edge-1", "127.0.0.1", ["a"], ["b"]), edge)
    code = hub.pairing.invite("edge-1", "127.0.0.1", ["c"], ["b"])
    file = hub.main.parent / "linkd.d" / "edge-1.toml"
    file.write_text(file.read_text() + "required = true\n")
    hub.reload()
    again = load(files(Path(edge.node.state_dir).parent / "linkd.toml"))
    assert "invite it without other terms" in await refusal(code, again)
    assert hub.pairing.peers()[0].state == "paired", "nothing was revoked"
