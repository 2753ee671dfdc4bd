"""Load certificates, keys and revocation lists; issue our own P-256 certificates."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from service_identity import CertificateError, VerificationError
from service_identity.cryptography import (
    verify_certificate_hostname,
    verify_certificate_ip_address,
)
from twisted.internet.abstract import isIPAddress, isIPv6Address

from linkd.config.loading import open_file
from linkd.errors import ConfigError, unusable

FOR_DIALING: Final = ExtendedKeyUsageOID.CLIENT_AUTH
FOR_LISTENING: Final = ExtendedKeyUsageOID.SERVER_AUTH


class Validity(NamedTuple):
    """The validity period of a certificate."""

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
    """Return an authority's self-signed certificate, which permits no subordinate authority."""
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
    """Return a certificate or a revocation list as PEM."""
    return signed.public_bytes(serialization.Encoding.PEM)


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a key as unencrypted PEM (PKCS #8): only its owner may read the file."""
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


_PEM_LIST = b"-----BEGIN X509 CRL-----"
_PEM_LIST_END = b"-----END X509 CRL-----"


class KeyPair(NamedTuple):
    """A certificate, the chain above it, and its private key."""

    leaf: x509.Certificate
    chain: list[x509.Certificate]
    key: PrivateKeyTypes


def load_certificates(path: Path | str) -> list[x509.Certificate]:
    """Return the certificates in a PEM file, at least one.

    Raises:
        ConfigError: It can't be read or holds none.
        Unavailable: A file can't be read now; the reason may pass.
    """
    try:
        return x509.load_pem_x509_certificates(_read(path))
    except ValueError as error:
        raise ConfigError(f"{path}: expected certificates in PEM form: {error}") from None


def load_key_pair(certificate: Path | str, key: Path | str) -> KeyPair:
    """Return a certificate chain and its private key.

    Raises:
        ConfigError: A file can't be read, is malformed, or the two do not belong together.
        Unavailable: A file can't be read now; the reason may pass.
    """
    leaf, *chain = load_certificates(certificate)
    try:
        private = serialization.load_pem_private_key(_read(key), password=None)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{key}: expected an unencrypted private key: {error}") from None
    if public_bytes(private.public_key()) != public_bytes(leaf.public_key()):
        raise ConfigError(f"{key}: this key does not belong to the certificate in {certificate}")
    return KeyPair(leaf, chain, private)


def load_revocation_lists(path: Path | str) -> list[x509.CertificateRevocationList]:
    """Return the revocation lists among what a PEM file holds.

    Raises:
        ConfigError: It can't be read, or a list in it is malformed.
        Unavailable: A file can't be read now; the reason may pass.
    """
    lists = []
    for piece in _read(path).split(_PEM_LIST)[1:]:
        pem = _PEM_LIST + piece.partition(_PEM_LIST_END)[0] + _PEM_LIST_END + b"\n"
        try:
            lists.append(x509.load_pem_x509_crl(pem))
        except ValueError as error:
            raise ConfigError(f"{path}: malformed revocation list: {error}") from None
    return lists


def _read(path: Path | str) -> bytes:
    try:
        with open(path, "rb", opener=open_file) as file:
            return file.read()
    except OSError as error:
        raise unusable(f"{path}: cannot read it", error) from None


def public_bytes(key: PublicKeyTypes) -> bytes:
    """Return a key's SubjectPublicKeyInfo in DER."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(serialization.Encoding.DER, form)


def names_host(certificate: x509.Certificate, host: str) -> bool:
    """Return whether a certificate is for `host`, a name or an address (RFC 6125, RFC 9525)."""
    try:
        if isIPAddress(host) or isIPv6Address(host):
            verify_certificate_ip_address(certificate, host)
        else:
            verify_certificate_hostname(certificate, host)
    except (VerificationError, CertificateError):
        return False
    return True


def certificate_names(certificate: x509.Certificate) -> list[str]:
    """Return the node names that a certificate holds: DNS names, and `linkd:NAME` URIs."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    return [
        *names.get_values_for_type(x509.DNSName),
        *(uri.removeprefix("linkd:") for uri in uris if uri.startswith("linkd:")),
    ]


def is_issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Return whether the key of `authority` has signed a certificate; dates do not count."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
