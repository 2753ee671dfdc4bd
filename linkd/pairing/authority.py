"""A hub's own small certificate authority, in the state directory's `pairing`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from linkd.config import Config
from linkd.errors import ConfigError, StateTooNew, unusable
from linkd.net import issuing
from linkd.net.certificates import load_certificates, names_host
from linkd.net.issuing import Issuer, Subject, Validity
from linkd.net.tls import AUTHORITY_FILE, REVOCATION_FILE
from linkd.pairing.addresses import own_hosts
from linkd.pairing.files import make_directory, write_whole

DIRECTORY: Final = "pairing"
AUTHORITY_DAYS: Final = 3650.0
LEAF_DAYS: Final = 365.0
_DAY_SECONDS: Final = 86_400.0
_BACK_SECONDS: Final = _DAY_SECONDS
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
        key = _load_key(self._path("ca.key"))
        self.certificate = load_certificates(self._path(AUTHORITY_FILE))[0]
        self._issuer = Issuer(self.certificate, key)
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
        return issuing.pem(self.certificate).decode()

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
        names = [x509.DNSName(name), x509.UniformResourceIdentifier(f"linkd:{name}")]
        subject = Subject(name, names, key)
        certificate = issuing.issue(
            self._issuer, subject, issuing.FOR_DIALING, self._valid(LEAF_DAYS)
        )
        self._state.certificates.append(
            Issued(
                name,
                f"{certificate.serial_number:x}",
                self._wall(),
                certificate.not_valid_after_utc.timestamp(),
            )
        )
        self._write_state()
        return issuing.pem(certificate).decode()

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
            if left > LEAF_DAYS * _DAY_SECONDS / 3 and all(
                names_host(leaf, host) for host in hosts
            ):
                return certificate, key
            known = _hosts(leaf)
        if not key.exists():
            write_whole(key, issuing.key_pem(issuing.make_key()), 0o600)
        public = _load_key(key).public_key()
        names = [issuing.general_name(host) for host in dict.fromkeys([*known, *hosts])]
        subject = Subject(self._node, names, public)
        signed = issuing.issue(self._issuer, subject, issuing.FOR_LISTENING, self._valid(LEAF_DAYS))
        write_whole(certificate, issuing.pem(signed) + issuing.pem(self.certificate), 0o640)
        return certificate, key

    def _path(self, name: str) -> Path:
        return self._directory / name

    def _found(self) -> None:
        """Make the authority; its key is written last, and tells that all of it is there."""
        key = issuing.make_key()
        certificate = issuing.make_authority(
            key, f"linkd pairing {self._node}", self._valid(AUTHORITY_DAYS)
        )
        write_whole(self._path(AUTHORITY_FILE), issuing.pem(certificate), 0o640)
        write_whole(self._path("ca.key"), issuing.key_pem(key), 0o600)

    def _valid(self, days: float) -> Validity:
        return Validity.around(self._wall(), _BACK_SECONDS, days * _DAY_SECONDS)

    def _load_state(self) -> _State:
        path = self._path("issued.json")
        if not path.exists():
            return _State(_STATE_VERSION, [])
        try:
            state = msgspec.json.decode(path.read_bytes(), type=_State)
        except OSError as error:
            raise unusable(f"{path}: cannot read what was issued", error) from None
        except msgspec.DecodeError as error:
            raise ConfigError(f"{path}: cannot read what was issued: {error}") from None
        if state.version > _STATE_VERSION:
            raise StateTooNew(f"{path}: expected version {_STATE_VERSION}, got {state.version}")
        return state

    def _write_state(self) -> None:
        write_whole(self._path("issued.json"), msgspec.json.encode(self._state), 0o600)

    def _write_revocations(self) -> None:
        validity = self._valid(AUTHORITY_DAYS)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(validity.begins)
            .next_update(validity.ends)
        )
        for each in self._state.certificates:
            if each.revoked is not None:
                builder = builder.add_revoked_certificate(
                    x509.RevokedCertificateBuilder()
                    .serial_number(int(each.serial, 16))
                    .revocation_date(datetime.fromtimestamp(each.revoked, UTC))
                    .build()
                )
        signed = builder.sign(self._issuer.key, hashes.SHA256())
        write_whole(self._path(REVOCATION_FILE), issuing.pem(signed), 0o640)


def _hosts(leaf: x509.Certificate) -> list[str]:
    """Return the names and addresses that a certificate is for."""
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = names.get_values_for_type(x509.IPAddress)
    return [*names.get_values_for_type(x509.DNSName), *map(str, addresses)]


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise unusable(f"{path}: cannot read the key", error) from None
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path}: cannot read the key: {error}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path}: expected a P-256 key")
    return key


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
        raise unusable(f"{place}: cannot write there", error) from None
    return True
