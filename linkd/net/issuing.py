"""Keys and certificates of linkd's own making: P-256 throughout, signed with SHA-256."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

FOR_DIALING: Final = ExtendedKeyUsageOID.CLIENT_AUTH
FOR_LISTENING: Final = ExtendedKeyUsageOID.SERVER_AUTH


class Validity(NamedTuple):
    """When a certificate begins and ends to be good."""

    begins: datetime
    ends: datetime

    @classmethod
    def around(cls, wall: float, before: float, after: float) -> Self:
        """Return the span from `before` seconds before `wall`, Unix seconds, to `after` behind it.

        Certificates begin before they are made: the clocks of two hosts differ.
        """
        now = datetime.fromtimestamp(wall, UTC)
        return cls(now - timedelta(seconds=before), now + timedelta(seconds=after))


class Issuer(NamedTuple):
    """An authority: its certificate, and the key that signs."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


class Subject(NamedTuple):
    """Whom a certificate is for: its common name, its other names, its public key."""

    name: str
    names: Sequence[x509.GeneralName]
    key: ec.EllipticCurvePublicKey


def make_key() -> ec.EllipticCurvePrivateKey:
    """Return a new key."""
    return ec.generate_private_key(ec.SECP256R1())


def make_authority(
    key: ec.EllipticCurvePrivateKey, name: str, validity: Validity
) -> x509.Certificate:
    """Return an authority's certificate, signed by its own key; no authority may stand below it."""
    subject = common_name(name)
    return (
        _begun(subject, subject, key.public_key(), validity)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_signs(), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def issue(
    issuer: Issuer, subject: Subject, usage: x509.ObjectIdentifier, validity: Validity
) -> x509.Certificate:
    """Return a certificate that can sign no other.

    Args:
        issuer: Who signs.
        subject: Whom it is for.
        usage: `FOR_DIALING` or `FOR_LISTENING`.
        validity: When it is good.
    """
    above = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key())
    own = x509.SubjectKeyIdentifier.from_public_key(subject.key)
    return (
        _begun(common_name(subject.name), issuer.certificate.subject, subject.key, validity)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.SubjectAlternativeName(subject.names), critical=False)
        .add_extension(above, critical=False)
        .add_extension(own, critical=False)
        .sign(issuer.key, hashes.SHA256())
    )


def common_name(name: str) -> x509.Name:
    """Return a distinguished name that is a common name and nothing else."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def general_name(host: str) -> x509.GeneralName:
    """Return the alternative name of a host: an address, or else a DNS name."""
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def pem(signed: x509.Certificate | x509.CertificateRevocationList) -> bytes:
    """Return a certificate or a revocation list as it stands in a file."""
    return signed.public_bytes(serialization.Encoding.PEM)


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a key as it stands in a file, PKCS #8, not encrypted: its file must be closed."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _begun(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, validity: Validity
) -> x509.CertificateBuilder:
    """Return what every certificate has, with a random serial number."""
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(validity.begins)
        .not_valid_after(validity.ends)
    )


def _signs() -> x509.KeyUsage:
    """Return what an authority's key is for: certificates and revocation lists."""
    return x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
