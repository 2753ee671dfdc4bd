"""Certificates of linkd's own making, judged by a verifier that is not linkd's."""

from __future__ import annotations

import datetime
import ipaddress

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from linkd.net.certificates import (
    FOR_DIALING,
    FOR_LISTENING,
    Issuer,
    Subject,
    Validity,
    general_name,
    issue,
    key_pem,
    make_authority,
    make_key,
    pem,
)

WALL = 1_800_000_000.0
SPAN = Validity.around(WALL, 60.0, 3600.0)


@pytest.fixture
def issuer() -> Issuer:
    key = make_key()
    return Issuer(make_authority(key, "the authority", SPAN), key)


def leaf(issuer: Issuer, usage: x509.ObjectIdentifier = FOR_LISTENING) -> x509.Certificate:
    names = [general_name("hub.example.net"), general_name("192.0.2.7")]
    return issue(issuer, Subject("hub", names, make_key().public_key()), usage, SPAN)


def verify(certificate: x509.Certificate, issuer: Issuer, host: str, wall: float = WALL) -> None:
    """Verify a listener's certificate as a dialer at `host` does; raise VerificationError."""
    subject: x509.IPAddress | x509.DNSName
    try:
        subject = x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        subject = x509.DNSName(host)
    now = datetime.datetime.fromtimestamp(wall, datetime.UTC)
    builder = PolicyBuilder().store(Store([issuer.certificate])).time(now)
    builder.build_server_verifier(subject).verify(certificate, [])


@pytest.mark.parametrize("host", ["hub.example.net", "192.0.2.7"])
def test_a_listener_s_certificate_is_good_for_its_hosts(issuer: Issuer, host: str) -> None:
    verify(leaf(issuer), issuer, host)


@pytest.mark.parametrize("host", ["edge.example.net", "192.0.2.8"])
def test_it_is_good_for_no_other_host(issuer: Issuer, host: str) -> None:
    with pytest.raises(VerificationError):
        verify(leaf(issuer), issuer, host)


def test_it_is_good_under_no_other_authority(issuer: Issuer) -> None:
    key = make_key()
    other = Issuer(make_authority(key, "the authority", SPAN), key)
    with pytest.raises(VerificationError):
        verify(leaf(issuer), other, "192.0.2.7")


@pytest.mark.parametrize(
    ("after", "good"), [(-61.0, False), (-59.0, True), (3599.0, True), (3601.0, False)]
)
def test_it_is_good_in_its_time(issuer: Issuer, after: float, good: bool) -> None:
    certificate = leaf(issuer)
    assert certificate.not_valid_before_utc.timestamp() == WALL - 60.0
    assert certificate.not_valid_after_utc.timestamp() == WALL + 3600.0
    if good:
        verify(certificate, issuer, "192.0.2.7", WALL + after)
    else:
        with pytest.raises(VerificationError):
            verify(certificate, issuer, "192.0.2.7", WALL + after)


def test_a_dialer_s_certificate_can_t_stand_for_a_listener(issuer: Issuer) -> None:
    with pytest.raises(VerificationError):
        verify(leaf(issuer, FOR_DIALING), issuer, "192.0.2.7")


def test_a_leaf_can_t_sign(issuer: Issuer) -> None:
    basic = leaf(issuer).extensions.get_extension_for_class(x509.BasicConstraints)
    assert basic.critical
    assert not basic.value.ca


def test_the_authority_signs_leaves_and_lists_and_nothing_else(issuer: Issuer) -> None:
    extensions = issuer.certificate.extensions
    usage = extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.key_cert_sign
    assert usage.crl_sign
    assert not usage.digital_signature
    basic = extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (basic.ca, basic.path_length) == (True, 0)


def test_what_stands_in_files_is_read_back(issuer: Issuer) -> None:
    assert x509.load_pem_x509_certificate(pem(issuer.certificate)) == issuer.certificate
    key = serialization.load_pem_private_key(key_pem(issuer.key), password=None)
    assert key.public_key() == issuer.key.public_key()
