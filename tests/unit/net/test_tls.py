"""What is loaded from which files, what is said of failures, and what names a certificate gives."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trustme
from cryptography import x509
from OpenSSL import SSL
from twisted.internet.error import ConnectionLost
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from linkd.clock import clock_words
from linkd.config import ListenSettings, PeerSettings
from linkd.errors import AttemptFailed, ConfigError
from linkd.net import tls as tls_module
from linkd.net import tls as tls_reasons
from linkd.net.certificates import (
    certificate_names,
    load_certificates,
    load_key_pair,
    load_revocation_lists,
    names_host,
)
from linkd.net.tls import ServerTls, TlsFactory, certificate_expires, client_context, peer_names
from tests.support import tls_lab
from tests.support.tls_lab import Files, Pair, at


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


def leaf_of(leaf: trustme.LeafCert) -> x509.Certificate:
    return x509.load_pem_x509_certificate(leaf.cert_chain_pems[0].bytes())


def test_names_come_from_the_subject_alternative_name(pair: Pair) -> None:
    several = pair.ca.issue_cert("edge-1", "edge-1.example", "192.0.2.7", common_name="root")
    assert certificate_names(leaf_of(several)) == ["edge-1", "edge-1.example"]
    authority = x509.load_pem_x509_certificate(pair.ca.cert_pem.bytes())
    assert certificate_names(authority) == []


@pytest.mark.parametrize(
    ("host", "good"),
    [
        ("hub.example.net", True),
        ("HUB.example.net", True),
        ("other.example.net", False),
        ("a.w.example.net", True),
        ("a.b.w.example.net", False),
        ("192.0.2.7", True),
        ("192.0.2.8", False),
        ("2001:db8::1", True),
        ("2001:db8:0::1", True),
        ("2001:db8::2", False),
    ],
)
def test_which_hosts_a_certificate_is_for(pair: Pair, host: str, good: bool) -> None:
    leaf = pair.ca.issue_cert("hub.example.net", "*.w.example.net", "192.0.2.7", "2001:db8::1")
    assert names_host(leaf_of(leaf), host) is good


def test_a_certificate_without_names_is_for_no_host(pair: Pair) -> None:
    authority = x509.load_pem_x509_certificate(pair.ca.cert_pem.bytes())
    assert not names_host(authority, "hub.example.net")


def test_a_transport_without_tls_names_nobody() -> None:
    assert peer_names(object()) == []
    assert certificate_expires(object()) is None


def test_files_that_are_none(pair: Pair, tmp_path: Path) -> None:
    certificate, key = pair.files.write("hub", pair.hub_leaf)
    noise = tmp_path / "noise"
    noise.write_text("no PEM at all")
    with pytest.raises(ConfigError, match="cannot read it: No such file"):
        load_certificates(tmp_path / "none")
    with pytest.raises(ConfigError, match="expected certificates in PEM form"):
        load_certificates(noise)
    with pytest.raises(ConfigError, match="expected an unencrypted private key"):
        load_key_pair(certificate, noise)
    other, _ = pair.files.write("other", pair.ca.issue_cert("other"))
    with pytest.raises(ConfigError, match="does not belong"):
        load_key_pair(other, key)
    assert load_revocation_lists(certificate) == []
    noise.write_text("-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n")
    with pytest.raises(ConfigError, match="malformed revocation list"):
        load_revocation_lists(noise)


def test_an_encrypted_key_is_named(pair: Pair) -> None:
    certificate, key = pair.files.write("hub", pair.hub_leaf)
    text = Path(key).read_text().replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY")
    Path(key).write_text(text)
    with pytest.raises(ConfigError, match="expected an unencrypted private key"):
        load_key_pair(certificate, key)


def test_lists_beside_authorities(pair: Pair) -> None:
    lists = tls_lab.revocation_list(pair.ca, 1, 2) + tls_lab.revocation_list(pair.stranger, 3)
    path = pair.files.authority("both", pair.ca, pair.stranger, lists=lists)
    assert len(load_certificates(path)) == 2
    assert [len(list(each)) for each in load_revocation_lists(path)] == [2, 1]


@pytest.mark.parametrize("missing", ["certificate", "key", "ca"])
def test_an_attempt_with_files_that_are_missing_is_rejected(pair: Pair, missing: str) -> None:
    certificate, key = pair.files.write("edge", pair.edge_leaf)
    settings = {"certificate": certificate, "key": key, "ca": pair.ca_file}
    Path(settings[missing]).unlink()
    with pytest.raises(AttemptFailed) as caught:
        client_context(PeerSettings(name="hub", **settings), "localhost")
    assert (caught.value.kind, caught.value.reason) == ("rejected", "tls")
    assert settings[missing] in caught.value.detail


def test_an_attempt_with_half_a_pair_is_rejected(pair: Pair) -> None:
    certificate, _ = pair.files.write("edge", pair.edge_leaf)
    with pytest.raises(AttemptFailed, match="expected both"):
        client_context(PeerSettings(name="hub", certificate=certificate), "localhost")


def test_without_an_authority_the_system_s_are_trusted() -> None:
    tls = client_context(PeerSettings(name="hub"), "localhost")
    assert tls.explain(ConnectionLost()) is None


def test_what_is_watched(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    tls = pair.listen()
    loads = []
    tls.reload = lambda: loads.append(clock.seconds())  # type: ignore[method-assign,assignment]
    tls.watch(clock, 3.0)
    clock.advance(3.0)
    assert loads == []
    pair.files.authority("ca", pair.ca, pair.stranger)
    clock.advance(2.9)
    assert loads == []
    clock.advance(0.1)
    assert loads == [6.0]
    tls.stop()
    clock.advance(10.0)
    assert loads == [6.0]
    assert clock.getDelayedCalls() == []


def test_a_file_that_vanished_keeps_what_is_in_force(pair: Pair) -> None:
    tls = pair.listen()
    Path(pair.ca_file).unlink()
    complaint = tls.reload()
    assert complaint is not None
    assert complaint.endswith("the certificate in force stays")
    assert tls.leaf == leaf_of(pair.hub_leaf)


def test_other_settings_are_used_only_if_they_can_be(pair: Pair, tmp_path: Path) -> None:
    tls = pair.listen()
    bad = ListenSettings(address=":0", certificate=str(tmp_path / "none"), key="none")
    complaint = tls.configure(bad)
    assert complaint is not None
    assert "none" in complaint
    assert tls.reload() is None
    directory = tmp_path / "other"
    directory.mkdir()
    leaf = pair.ca.issue_cert("localhost")
    certificate, key = Files(directory).write("hub", leaf)
    assert tls.configure(ListenSettings(address=":0", certificate=certificate, key=key)) is None
    assert tls.leaf == leaf_of(leaf)


def test_the_end_of_the_certificate_is_said_once_a_day(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [at(0).timestamp()]
    said: list[float] = []
    certificate, key = pair.files.write("hub", pair.ca.issue_cert("localhost", not_after=at(20)))
    listen = ListenSettings(address=":0", certificate=certificate, key=key)
    tls = ServerTls(listen, wall=lambda: now[0])

    def emit(event: str, **fields: float) -> None:
        assert event == "tls.expiring"
        said.append(fields["days"])

    monkeypatch.setattr("linkd.net.tls.events.emit", emit)
    for hour in range(24 * 9):
        now[0] = at(hour / 24).timestamp()
        tls.check()
    assert said == [14.0, 13.0, 12.0]


def error(*words: str) -> SSL.Error:
    return SSL.Error([("SSL routines", "", each) for each in words])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("tlsv1 alert unknown ca", "does not know the authority"),
        ("ssl/tls alert certificate expired", "has expired: renew it"),
        ("ssl/tls alert certificate revoked", "has been revoked: pair again"),
        ("tlsv13 alert certificate required", "asks for a certificate"),
        ("tlsv1 alert protocol version", "1.2 is the oldest"),
        ("ssl/tls alert handshake failure", "no common cipher"),
        ("http request", "plain HTTP"),
        ("wrong version number", "not TLS"),
        ("unsupported protocol", "1.2 is the oldest"),
        ("something new", "TLS with hub failed: something new"),
        ("ssl/tls alert something new", "TLS with hub failed: ssl/tls alert something new"),
    ],
)
def test_what_is_said_of_openssl_s_errors(words: str, expected: str) -> None:
    said = tls_reasons.handshake_failure(error(words), "hub", "`listen.client_ca`")
    assert said is not None
    assert expected in said


@pytest.mark.parametrize(
    "cause", [ConnectionLost(), SSL.Error(), SSL.Error([]), error("unexpected eof while reading")]
)
def test_what_is_not_tls_s_fault(cause: BaseException) -> None:
    assert tls_reasons.handshake_failure(cause, "hub", "ca") is None


def test_an_unknown_verdict_has_its_number(pair: Pair) -> None:
    found = tls_reasons._Verdict(99, 0, leaf_of(pair.hub_leaf))
    said = tls_reasons.verdict(found, "the certificate of hub", "`ca`", "serverAuth")
    assert said == "the certificate of hub was not accepted: verification error 99"


@pytest.mark.parametrize(
    ("number", "depth", "words"),
    [
        (9, 0, "the certificate of hub is not valid yet, but from {begin} on: correct the clock"),
        (10, 0, "the certificate of hub has expired on {end}: renew it or pair again"),
        (10, 1, "the chain of the certificate of hub has expired on {end}: pair again"),
    ],
)
def test_a_certificate_of_another_time_is_refused_with_its_date(
    pair: Pair, number: int, depth: int, words: str
) -> None:
    leaf = leaf_of(pair.ca.issue_cert("hub", not_before=at(-9), not_after=at(-1)))
    found = tls_reasons._Verdict(number, depth, leaf)
    said = tls_reasons.verdict(found, "the certificate of hub", "`ca`", "serverAuth")
    begin, end = (clock_words(at(days).timestamp()) for days in (-9, -1))
    assert words.format(begin=begin, end=end) in said


def test_a_failure_and_its_exception_say_the_same(pair: Pair) -> None:
    tls = pair.listen()
    cause = error("http request")
    assert tls.explain(Clock(), Failure(cause)) == tls.explain(Clock(), cause)


def test_one_certificate_can_stand_for_its_authority(pair: Pair) -> None:
    """`ca` may hold what is trusted itself, without what is above it."""
    alone = pair.files.directory / "alone.crt"
    alone.write_bytes(pair.hub_leaf.cert_chain_pems[0].bytes())
    server, client = pair.listen(), pair.dialer(ca=str(alone))
    assert tls_lab.shake(server, client) is None
    other = pair.ca.issue_cert("localhost")
    pair.files.write("hub", other)
    assert server.reload() is None
    failure = tls_lab.shake(server, pair.dialer(ca=str(alone)))
    assert failure is not None
    assert "authority" in failure.detail


def test_files_that_cannot_be_used_are_complained_of_once_and_tried_again(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = pair.listen()
    lines: list[str] = []
    monkeypatch.setattr(tls_module.events, "emit", lambda event, **_: lines.append(event))
    assert tls.complaint is None

    def denied(*_: object) -> None:
        raise ConfigError("hub.key: cannot read it: Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(tls_module, "load_key_pair", denied)
        tls.check()  # nothing has changed that `stat` shows
        assert tls.complaint is None
        tls.reload()
        for _ in range(3):
            tls.check()
    assert tls.complaint == (
        "hub.key: cannot read it: Permission denied; the certificate in force stays"
    )
    assert lines == ["tls.reload-failed"]
    tls.check()  # a `chmod` has changed no time that is looked at
    assert tls.complaint is None
    assert lines == ["tls.reload-failed", "tls.loaded"]
    tls.check()
    assert lines == ["tls.reload-failed", "tls.loaded"]


def test_a_connection_that_the_wrapped_factory_refuses_is_closed(pair: Pair) -> None:
    """Twisted's own wraps the None: the socket stayed open until the other end closed it."""
    listening: Any = pair.listen()
    refuses: Any = SimpleNamespace(buildProtocol=lambda _: None)
    assert TlsFactory(listening, False, refuses).buildProtocol(None) is None
    takes: Any = SimpleNamespace(buildProtocol=lambda _: Protocol())
    assert TlsFactory(listening, False, takes).buildProtocol(None) is not None
