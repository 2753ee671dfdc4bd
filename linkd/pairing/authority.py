"""A hub's own small certificate authority, in the state directory's `pairing`."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from linkd.config import Config
from linkd.errors import ConfigError, StateTooNew
from linkd.net.certificates import load_certificates, names_host
from linkd.net.tls import AUTHORITY_FILE, REVOCATION_FILE
from linkd.pairing.addresses import own_hosts
from linkd.pairing.files import make_directory, write_whole

DIRECTORY: Final = "pairing"
AUTHORITY_DAYS: Final = 3650.0
LEAF_DAYS: Final = 365.0
_BACK_DAYS: Final = 1.0
"""Certificates begin so long before they are made: clocks of two hosts differ."""

_STATE_VERSION: Final = 1


class Issued(msgspec.Struct, frozen=True):
    """One certificate that the authority has signed for a peer; times in Unix seconds."""

    name: str
    serial: str
    issued: float
    expires: float
    revoked: float | None = None


class _State(msgspec.Struct):
    """What `issued.json` holds."""

    version: int
    certificates: list[Issued]


class Authority:
    """Signs certificates for peers and for the hub itself, and takes them back.

    Args:
        directory: `pairing` in the state directory.
        node: The hub's name.
        wall: Returns Unix seconds.

    Raises:
        ConfigError: What lies there can't be read.
        StateTooNew: It was written by a newer linkd.
    """

    def __init__(self, directory: Path, node: str, wall: Callable[[], float]) -> None:
        self._directory = directory
        self._node = node
        self._wall = wall
        make_directory(directory, 0o700)
        if not self._path("ca.key").exists():
            self._found()
        self._key = _load_key(self._path("ca.key"))
        self.certificate = load_certificates(self._path(AUTHORITY_FILE))[0]
        self._state = self._load_state()
        if not self._path(REVOCATION_FILE).exists():
            self._write_revocations()

    @property
    def issued(self) -> list[Issued]:
        """Every certificate signed for a peer, oldest first."""
        return list(self._state.certificates)

    @property
    def certificate_pem(self) -> str:
        """The authority's certificate."""
        return _pem(self.certificate).decode()

    def path(self, name: str) -> Path:
        """Return where a file of the authority lies: `ca.crt`, `hub.crt`, `hub.key`."""
        return self._path(name)

    def issue(self, request: x509.CertificateSigningRequest, name: str) -> str:
        """Sign a certificate for the peer `name`: for dialing only, it can't stand for the hub.

        Args:
            request: Holds the peer's public key; nothing else of it is used.
            name: What the certificate says, whatever the request says.

        Returns:
            The certificate, PEM.

        Raises:
            ConfigError: The request is not signed by its own key, or its key is not of an elliptic
                curve.
        """
        key = request.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey) or not request.is_signature_valid:
            raise ConfigError("expected a signing request for an elliptic key, signed by that key")
        names = x509.SubjectAlternativeName(
            [x509.DNSName(name), x509.UniformResourceIdentifier(f"linkd:{name}")]
        )
        certificate = self._sign(name, key, names, [ExtendedKeyUsageOID.CLIENT_AUTH])
        self._state.certificates.append(
            Issued(
                name,
                f"{certificate.serial_number:x}",
                self._wall(),
                certificate.not_valid_after_utc.timestamp(),
            )
        )
        self._write_state()
        return _pem(certificate).decode()

    def revoke(self, name: str) -> list[Issued]:
        """Take back every certificate of `name`; return those that were good until now."""
        now, taken = self._wall(), []
        for index, each in enumerate(self._state.certificates):
            if each.name == name and each.revoked is None:
                taken.append(each)
                self._state.certificates[index] = msgspec.structs.replace(each, revoked=now)
        if taken:
            self._write_state()
            self._write_revocations()
        return taken

    def good(self, certificate: x509.Certificate) -> Issued | None:
        """Return the entry of a certificate that this authority has signed and not taken back."""
        try:
            certificate.verify_directly_issued_by(self.certificate)
        except (ValueError, TypeError, InvalidSignature):
            return None
        serial = f"{certificate.serial_number:x}"
        for each in self._state.certificates:
            if each.serial == serial:
                return each if each.revoked is None else None
        return None

    def hub_certificate(self, hosts: Sequence[str]) -> tuple[Path, Path]:
        """Return the hub's own certificate and key; made where missing, not for `hosts`, or ending.

        Args:
            hosts: Names and addresses that peers dial; those of the certificate before are kept.
        """
        certificate, key = self._path("hub.crt"), self._path("hub.key")
        known: list[str] = []
        if certificate.exists() and key.exists():
            leaf = load_certificates(certificate)[0]
            left = leaf.not_valid_after_utc.timestamp() - self._wall()
            if left > LEAF_DAYS * 86_400 / 3 and all(names_host(leaf, host) for host in hosts):
                return certificate, key
            known = _hosts(leaf)
        if not key.exists():
            write_whole(key, _key_pem(ec.generate_private_key(ec.SECP256R1())), 0o600)
        public = _load_key(key).public_key()
        names = x509.SubjectAlternativeName(
            [_general(host) for host in dict.fromkeys([*known, *hosts])]
        )
        usage = [ExtendedKeyUsageOID.SERVER_AUTH]
        signed = self._sign(self._node, public, names, usage)
        write_whole(certificate, _pem(signed) + _pem(self.certificate), 0o640)
        return certificate, key

    def _path(self, name: str) -> Path:
        return self._directory / name

    def _found(self) -> None:
        """Make the authority: key first, so that a crash leaves no certificate without one."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"linkd pairing {self._node}")])
        usage = x509.KeyUsage(
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
        certificate = (
            self._dated(AUTHORITY_DAYS)
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .sign(key, hashes.SHA256())
        )
        write_whole(self._path(AUTHORITY_FILE), _pem(certificate), 0o640)
        write_whole(self._path("ca.key"), _key_pem(key), 0o600)

    def _dated(self, days: float) -> x509.CertificateBuilder:
        now = datetime.datetime.fromtimestamp(self._wall(), datetime.UTC)
        return (
            x509.CertificateBuilder()
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=_BACK_DAYS))
            .not_valid_after(now + datetime.timedelta(days=days))
        )

    def _sign(
        self,
        name: str,
        key: ec.EllipticCurvePublicKey,
        names: x509.SubjectAlternativeName,
        usages: Sequence[x509.ObjectIdentifier],
    ) -> x509.Certificate:
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            self._dated(LEAF_DAYS)
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(self.certificate.subject)
            .public_key(key)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(list(usages)), critical=False)
            .add_extension(names, critical=False)
            .add_extension(issuer, critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .sign(self._key, hashes.SHA256())
        )

    def _load_state(self) -> _State:
        path = self._path("issued.json")
        if not path.exists():
            return _State(_STATE_VERSION, [])
        try:
            state = msgspec.json.decode(path.read_bytes(), type=_State)
        except (OSError, msgspec.DecodeError) as error:
            raise ConfigError(f"{path}: cannot read what was issued: {error}") from None
        if state.version > _STATE_VERSION:
            raise StateTooNew(f"{path}: expected version {_STATE_VERSION}, got {state.version}")
        return state

    def _write_state(self) -> None:
        write_whole(self._path("issued.json"), msgspec.json.encode(self._state), 0o600)

    def _write_revocations(self) -> None:
        now = datetime.datetime.fromtimestamp(self._wall(), datetime.UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now - datetime.timedelta(days=_BACK_DAYS))
            .next_update(now + datetime.timedelta(days=AUTHORITY_DAYS))
        )
        for each in self._state.certificates:
            if each.revoked is not None:
                builder = builder.add_revoked_certificate(
                    x509.RevokedCertificateBuilder()
                    .serial_number(int(each.serial, 16))
                    .revocation_date(datetime.datetime.fromtimestamp(each.revoked, datetime.UTC))
                    .build()
                )
        signed = builder.sign(self._key, hashes.SHA256())
        pem = signed.public_bytes(serialization.Encoding.PEM)
        write_whole(self._path(REVOCATION_FILE), pem, 0o640)


def _hosts(leaf: x509.Certificate) -> list[str]:
    """Return the names and addresses that a certificate is for."""
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = names.get_values_for_type(x509.IPAddress)
    return [*names.get_values_for_type(x509.DNSName), *map(str, addresses)]


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path}: cannot read the key: {error}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path}: expected a P-256 key")
    return key


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def prepare(config: Config, wall: Callable[[], float]) -> bool:
    """Make this node's own authority and certificate where `[listen]` names them and they lack.

    So a hub's configuration may name `pairing/hub.crt`, `hub.key` and `ca.crt` in its state
    directory before anything lies there. Any other file is left alone.

    Args:
        config: The configuration, before its files are checked.
        wall: Returns Unix seconds.

    Returns:
        Whether anything was made.

    Raises:
        ConfigError: What lies there can't be used, or nothing can be written there.
    """
    listen = config.listen
    place = Path(config.node.state_dir) / DIRECTORY
    if listen is None:
        return False
    named = {Path(each) for each in (listen.certificate, listen.key, listen.client_ca) if each}
    wanted = {place / "hub.crt", place / "hub.key", place / AUTHORITY_FILE}
    if all(each.exists() for each in named & wanted):
        return False
    try:
        make_directory(place.parent, 0o700)
        authority = Authority(place, config.node.name, wall)
        if place / "hub.crt" in named:
            authority.hub_certificate(own_hosts(config.node.name, listen.address))
    except OSError as error:
        raise ConfigError(f"{place}: cannot write there: {error.strerror}") from None
    return True
