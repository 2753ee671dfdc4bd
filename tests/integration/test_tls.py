"""TLS over real sockets: who is let in, who is refused and why, on both ends."""

from __future__ import annotations

import ssl
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
import trustme
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from linkd.config import ListenSettings, PeerSettings
from linkd.net.tls import ClientTls, ServerTls, certificate_expires, client_context
from tests.support import tls_lab
from tests.support.tls_lab import End, Listener, Pair, at

Listen = Callable[[ServerTls], Listener]


def within(deferred: Deferred[Any], seconds: float = 5.0) -> Deferred[Any]:
    """Bound the wait for `deferred`."""
    return deferred.addTimeout(seconds, reactor)  # type: ignore[arg-type]


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


@pytest_twisted.async_yield_fixture
async def listen() -> AsyncIterator[Listen]:
    listeners: list[Listener] = []

    def start(tls: ServerTls) -> Listener:
        listeners.append(Listener(tls))
        return listeners[-1]

    yield start
    for each in listeners:
        await each.close()


async def refused(listener: Listener, tls: ClientTls) -> tuple[str | None, str | None]:
    """Dial, and return why it failed as the dialer and as the listener say it."""
    end = tls_lab.dial(listener.number, tls)
    reason = await within(end.lost)
    await within(listener.ends[-1].lost)
    assert listener.ends[-1].heard == b""
    assert end.heard == b""
    failure = tls.explain(reason)
    if failure is not None:
        assert (failure.kind, failure.reason) == ("rejected", "tls")
    return (None if failure is None else failure.detail), listener.ends[-1].why


async def welcome(listener: Listener, tls: ClientTls) -> End:
    """Dial and return the open end."""
    end = tls_lab.dial(listener.number, tls)
    assert await within(end.data) == b"hi"
    return end


async def hang_up(end: End) -> None:
    end.transport.abortConnection()
    await within(end.lost)


@pytest_twisted.ensureDeferred
async def test_both_ends_know_each_other(pair: Pair, listen: Listen) -> None:
    listener = listen(pair.listen())
    end = await welcome(listener, pair.dialer())
    assert listener.ends[0].names == ["edge-1"]
    leaf = pair.hub_leaf
    expires = certificate_expires(end.transport)
    assert expires is not None
    assert expires > time.time()
    assert end.transport.getPeerCertificate().get_serial_number() == tls_lab.serial(leaf)
    await hang_up(end)


@pytest_twisted.ensureDeferred
async def test_without_a_certificate_of_its_own_a_dialer_has_no_name(
    pair: Pair, listen: Listen
) -> None:
    listener = listen(pair.listen())
    end = await welcome(
        listener, client_context(PeerSettings(name="hub", ca=pair.ca_file), "127.0.0.1")
    )
    assert listener.ends[0].names == []
    assert certificate_expires(listener.ends[0].transport) is None
    await hang_up(end)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda p: p.ca.issue_cert("localhost", not_before=at(-9), not_after=at(-1)), "expired"),
        (lambda p: p.ca.issue_cert("localhost", not_before=at(1)), "not valid yet"),
        (lambda p: p.ca.issue_cert("elsewhere.example"), "not for the name"),
        (lambda p: p.stranger.issue_cert("localhost"), "authority"),
    ],
    ids=["expired", "not-yet-valid", "wrong-name", "foreign-ca"],
)
@pytest_twisted.ensureDeferred
async def test_a_dialer_refuses_a_listener_that_is_not_the_one(
    pair: Pair, listen: Listen, spoil: Callable[[Pair], trustme.LeafCert], words: str
) -> None:
    listener = listen(pair.listen(spoil(pair)))
    ours, theirs = await refused(listener, pair.dialer())
    assert ours is not None
    assert ours.startswith("the certificate of localhost")
    assert words in ours
    assert theirs is not None
    assert theirs.startswith(("the dialer", "TLS with the dialer"))
    pair.files.write("hub", pair.hub_leaf)
    assert listener.tls.reload() is None
    await hang_up(await welcome(listener, pair.dialer()))


@pytest_twisted.ensureDeferred
async def test_a_dialer_refuses_a_self_signed_listener(pair: Pair, listen: Listen) -> None:
    listener = listen(pair.listen(tls_lab.self_signed("localhost")))
    ours, _ = await refused(listener, pair.dialer())
    assert ours is not None
    assert "self-signed" in ours


@pytest.mark.parametrize(
    ("spoil", "words", "told"),
    [
        (
            lambda p: p.ca.issue_cert("edge-1", not_before=at(-9), not_after=at(-1)),
            "expired",
            "has expired",
        ),
        (
            lambda p: p.ca.issue_cert("edge-1", not_before=at(1)),
            "not valid yet",
            "refuses this node's certificate",
        ),
        (lambda p: p.stranger.issue_cert("edge-1"), "authority", "does not know the authority"),
        (lambda p: tls_lab.self_signed("edge-1"), "self-signed", "does not know the authority"),
    ],
    ids=["expired", "not-yet-valid", "foreign-ca", "self-signed"],
)
@pytest_twisted.ensureDeferred
async def test_a_listener_refuses_a_dialer_that_does_not_belong(
    pair: Pair,
    listen: Listen,
    spoil: Callable[[Pair], trustme.LeafCert],
    words: str,
    told: str,
) -> None:
    listener = listen(pair.listen())
    ours, theirs = await refused(listener, pair.dialer(spoil(pair)))
    assert theirs is not None
    assert theirs.startswith("the dialer's certificate")
    assert words in theirs
    assert ours is not None
    assert told in ours
    await hang_up(await welcome(listener, pair.dialer()))


@pytest_twisted.ensureDeferred
async def test_a_revoked_dialer_is_refused_and_its_link_is_known(
    pair: Pair, listen: Listen
) -> None:
    listener = listen(pair.listen())
    up = await welcome(listener, pair.dialer())
    accepted = listener.ends[0]
    assert not listener.tls.revoked(accepted.transport)
    revoked = tls_lab.revocation_list(pair.ca, tls_lab.serial(pair.edge_leaf))
    pair.files.authority("ca", pair.ca, lists=revoked)
    listener.tls.check()
    assert listener.tls.revoked(accepted.transport)
    ours, theirs = await refused(listener, pair.dialer())
    assert ours is not None
    assert "revoked" in ours
    assert theirs is not None
    assert "revoked" in theirs
    other = await welcome(listener, pair.dialer(pair.ca.issue_cert("edge-2")))
    await hang_up(other)
    await hang_up(up)


@pytest_twisted.ensureDeferred
async def test_an_authority_without_a_list_still_counts_beside_one_with(
    pair: Pair, listen: Listen
) -> None:
    lists = tls_lab.revocation_list(pair.ca)
    both = pair.files.authority("both", pair.ca, pair.stranger, lists=lists)
    listener = listen(pair.listen(ca=both))
    for authority in (pair.ca, pair.stranger):
        await hang_up(await welcome(listener, pair.dialer(authority.issue_cert("edge-1"))))


@pytest_twisted.ensureDeferred
async def test_an_outdated_revocation_list_refuses_and_says_so(pair: Pair, listen: Listen) -> None:
    lists = tls_lab.revocation_list(pair.ca, until=-1)
    listener = listen(pair.listen(ca=pair.files.authority("old", pair.ca, lists=lists)))
    _, theirs = await refused(listener, pair.dialer())
    assert theirs is not None
    assert "revocation list has expired" in theirs


@pytest_twisted.ensureDeferred
async def test_a_listener_refuses_tls_1_1(pair: Pair, listen: Listen) -> None:
    listener = listen(pair.listen())
    old = tls_lab.client_hello(ssl.TLSVersion.TLSv1_1)
    end = tls_lab.dial_plain(listener.number, old)
    await within(end.lost)
    await within(listener.ends[-1].lost)
    assert listener.ends[-1].why == (
        "the dialer speaks no version of TLS that is allowed here: 1.2 is the oldest"
    )


@pytest_twisted.ensureDeferred
async def test_a_dialer_refuses_tls_1_1(pair: Pair) -> None:
    listener = tls_lab.dial_back(tls_lab.server_hello_1_1())
    try:
        tls = pair.dialer()
        reason = await within(tls_lab.dial(listener.getHost().port, tls).lost)
    finally:
        await listener.stopListening()
    failure = tls.explain(reason)
    assert failure is not None
    assert "1.2 is the oldest" in failure.detail


@pytest.mark.parametrize(
    "payload",
    [b"GET /link HTTP/1.1\r\nHost: hub\r\n\r\n", b"\x00" * 64, b"SSH-2.0-OpenSSH_9.2\r\n"],
    ids=["http", "zeros", "ssh"],
)
@pytest_twisted.ensureDeferred
async def test_plain_bytes_at_a_tls_port(pair: Pair, listen: Listen, payload: bytes) -> None:
    listener = listen(pair.listen())
    await within(tls_lab.dial_plain(listener.number, payload).lost)
    await within(listener.ends[-1].lost)
    why = listener.ends[-1].why
    assert why is not None
    assert "not TLS" in why or "plain HTTP" in why
    await hang_up(await welcome(listener, pair.dialer()))


@pytest_twisted.ensureDeferred
async def test_plain_bytes_from_what_should_be_a_tls_listener(pair: Pair) -> None:
    listener = tls_lab.dial_back(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    try:
        tls = pair.dialer()
        reason = await within(tls_lab.dial(listener.getHost().port, tls).lost)
    finally:
        await listener.stopListening()
    failure = tls.explain(reason)
    assert failure is not None
    assert "not TLS" in failure.detail


@pytest_twisted.ensureDeferred
async def test_a_cut_in_the_handshake_is_not_tls_to_blame(pair: Pair, listen: Listen) -> None:
    listener = listen(pair.listen())
    end = tls_lab.dial_plain(listener.number, b"")
    await deferLater(reactor, 0.1, lambda: None)  # type: ignore[arg-type]
    await hang_up(end)
    await within(listener.ends[-1].lost)
    assert listener.ends[-1].why is None


@pytest_twisted.ensureDeferred
async def test_tls_1_3_by_default_and_1_2_at_least(pair: Pair, listen: Listen) -> None:
    listener = listen(pair.listen())

    def version(most: ssl.TLSVersion) -> str | None:
        wrap = ssl.create_default_context(cafile=pair.ca_file)
        wrap.maximum_version = most
        return tls_lab.negotiated(wrap, listener.number)

    for most, expected in (
        (ssl.TLSVersion.TLSv1_3, "TLSv1.3"),
        (ssl.TLSVersion.TLSv1_2, "TLSv1.2"),
    ):
        assert await within(deferToThread(version, most)) == expected


@pytest_twisted.ensureDeferred
async def test_certificates_renewed_20_times_without_a_drop(pair: Pair, listen: Listen) -> None:
    tls = pair.listen()
    listener = listen(tls)
    ends = [await welcome(listener, pair.dialer())]
    serials = {tls.leaf.serial_number}
    for _ in range(20):
        leaf = pair.ca.issue_cert("localhost")
        pair.files.write("hub", leaf)
        tls.check()
        assert tls.leaf.serial_number == tls_lab.serial(leaf)
        serials.add(tls.leaf.serial_number)
        end = await welcome(listener, pair.dialer(pair.ca.issue_cert("edge-1")))
        shown = end.transport.getPeerCertificate().get_serial_number()
        assert shown == tls_lab.serial(leaf)
        ends.append(end)
        ends[0].transport.write(b".")
    assert len(serials) == 21
    await deferLater(reactor, 0.2, lambda: None)  # type: ignore[arg-type]
    assert all(end.alive for end in ends)
    assert ends[0].heard == b"hi" + b"." * 20
    for end in ends:
        await hang_up(end)


@pytest_twisted.ensureDeferred
async def test_a_broken_pair_of_files_keeps_the_old_in_force(pair: Pair, listen: Listen) -> None:
    tls = pair.listen()
    listener = listen(tls)
    before = tls.leaf.serial_number
    Path(pair.files.directory / "hub.key").write_bytes(
        pair.ca.issue_cert("localhost").private_key_pem.bytes()
    )
    complaint = tls.reload()
    assert complaint is not None
    assert "does not belong to the certificate" in complaint
    assert tls.leaf.serial_number == before
    await hang_up(await welcome(listener, pair.dialer()))


@pytest_twisted.ensureDeferred
async def test_the_files_are_watched(pair: Pair, listen: Listen) -> None:
    tls = pair.listen()
    listener = listen(tls)
    tls.watch(reactor, 0.05)  # type: ignore[arg-type]
    try:
        leaf = pair.ca.issue_cert("localhost")
        pair.files.write("hub", leaf)
        for _ in range(60):
            if tls.leaf.serial_number == tls_lab.serial(leaf):
                break
            await deferLater(reactor, 0.05, lambda: None)  # type: ignore[arg-type]
        assert tls.leaf.serial_number == tls_lab.serial(leaf)
    finally:
        tls.stop()
    await hang_up(await welcome(listener, pair.dialer()))


def test_no_session_outlives_a_revocation(pair: Pair) -> None:
    """A resumed session would skip the verification of the dialer's certificate."""
    tls = pair.listen()
    assert not tls_lab.resumes(tls)


def test_listen_without_a_key_is_refused(pair: Pair) -> None:
    certificate, _ = pair.files.write("hub", pair.hub_leaf)
    with pytest.raises(Exception, match="expected both `certificate` and `key`"):
        ServerTls(ListenSettings(address=":0", certificate=certificate))
