"""Certificates, keys and revocation lists in files, and the names in a certificate."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes
from service_identity import CertificateError, VerificationError
from service_identity.cryptography import (
    verify_certificate_hostname,
    verify_certificate_ip_address,
)
from twisted.internet.abstract import isIPAddress, isIPv6Address

from linkd.errors import ConfigError, unusable

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
    if _public_bytes(private.public_key()) != _public_bytes(leaf.public_key()):
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
        return Path(path).read_bytes()
    except OSError as error:
        raise unusable(f"{path}: cannot read it", error) from None


def _public_bytes(key: PublicKeyTypes) -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(serialization.Encoding.DER, form)


def names_host(certificate: x509.Certificate, host: str) -> bool:
    """Tell whether a certificate is for `host`, a name or an address (RFC 6125, RFC 9525)."""
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
