"""A hub's own small certificate authority, in the state directory's `pairing`."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from linkd import events
from linkd.clock import clock_words, is_plausible
from linkd.config import Config
from linkd.errors import ConfigError, LinkdError, StateTooNew, Unavailable, unusable
from linkd.net import issuing
from linkd.net.certificates import (
    KeyPair,
    load_certificates,
    load_key_pair,
    load_revocation_lists,
    names_host,
)
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


class Issued(msgspec.Struct, frozen=True, omit_defaults=True):
    """One certificate that the authority has signed for a peer; times in Unix seconds.

    `replaces` is the serial of the certificate that it renews. `pem` is kept of a renewal, whose
    answer may have been lost: the same question gets the same certificate.
    """

    name: str
    serial: str
    issued: float
    expires: float
    revoked: float | None = None
    replaces: str | None = None
    pem: str | None = None


class _State(msgspec.Struct):
    """What `issued.json` holds; `hosts` are those of the hub's own certificate."""

    version: int
    certificates: list[Issued]
    hosts: list[str] = []


class Authority:
    """Signs certificates for peers and for the hub itself, and takes them back.

    Args:
        directory: `pairing` in the state directory.
        node: The hub's name.
        wall: Returns Unix seconds.

    Raises:
        ConfigError: What is there can't be read.
        Unavailable: It can't be read now; or there is no authority, and the clock is wrong.
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
        self.certificate = self._load_certificate(key)
        self._issuer = Issuer(self.certificate, key)
        self._state = self._load_state()
        if not _has_revocations(self._path(REVOCATION_FILE)):
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
        """Return where a file of the authority is: `ca.crt`, `hub.crt`, `hub.key`."""
        return self._path(name)

    @property
    def expires(self) -> float:
        """Unix seconds at which the authority's certificate ends."""
        return self.certificate.not_valid_after_utc.timestamp()

    def check_valid(self) -> None:
        """Return if certificates can be signed now, so that others accept them.

        Raises:
            ConfigError: The authority's certificate has expired, or is not valid yet.
            Unavailable: The clock shows a time before this version of linkd was made.
        """
        now, begins = self._wall(), self.certificate.not_valid_before_utc.timestamp()
        if begins <= now < self.expires:
            self._check_clock()
            return
        raise ConfigError(
            f"{self._path(AUTHORITY_FILE)}: this authority is valid from {clock_words(begins)} to"
            f" {clock_words(self.expires)}, and this host's clock shows {clock_words(now)}: correct"
            f" the clock if that is wrong; else stop linkd, remove {self._directory}, start linkd"
            " and pair all peers again"
        )

    def issue(self, request: x509.CertificateSigningRequest, name: str) -> str:
        """Sign a certificate for the peer `name`: for dialing only, it can't stand for the hub.

        It takes the place of all that `name` had: those are revoked.

        Args:
            request: Holds the peer's public key; nothing else of it is used.
            name: What the certificate says, whatever the request says.

        Returns:
            The certificate, PEM.

        Raises:
            ConfigError: The request is not signed by its own key, or its key is not of an elliptic
                curve; or the authority is not valid now.
            Unavailable: The clock is wrong.
        """
        text = self._issue(request, name, None)
        self._revoke(name, keep_newest=True)
        return text

    def renew(self, entry: Issued, request: x509.CertificateSigningRequest) -> str:
        """Sign the one certificate that follows another of the same peer.

        Asked again for the same one, it returns the same answer: the first may have been lost.

        Args:
            entry: The certificate that ends.
            request: As for `issue`.

        Raises:
            ConfigError, Unavailable: As for `issue`.
        """
        for each in self._state.certificates:
            if each.replaces == entry.serial and each.revoked is None and each.pem is not None:
                return each.pem
        return self._issue(request, entry.name, entry.serial)

    def _issue(
        self, request: x509.CertificateSigningRequest, name: str, replaces: str | None
    ) -> str:
        key = request.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey) or not request.is_signature_valid:
            raise ConfigError("expected a signing request for an elliptic key, signed by that key")
        self.check_valid()
        names = [x509.DNSName(name), x509.UniformResourceIdentifier(f"linkd:{name}")]
        subject = Subject(name, names, key)
        certificate = issuing.issue(
            self._issuer, subject, issuing.FOR_DIALING, self._valid(LEAF_DAYS)
        )
        text = issuing.pem(certificate).decode()
        self._forget(name)
        self._state.certificates.append(
            Issued(
                name,
                f"{certificate.serial_number:x}",
                self._wall(),
                certificate.not_valid_after_utc.timestamp(),
                replaces=replaces,
                pem=None if replaces is None else text,
            )
        )
        self._write_state()
        return text

    def _forget(self, name: str) -> None:
        """Forget certificates of `name` that have expired, revoked or not."""
        now = self._wall()
        self._state.certificates = [
            each for each in self._state.certificates if each.name != name or each.expires > now
        ]

    def revoke(self, name: str) -> list[Issued]:
        """Take back every certificate of `name`; return those that were good until now."""
        return self._revoke(name, keep_newest=False)

    def _revoke(self, name: str, keep_newest: bool) -> list[Issued]:
        now, taken = self._wall(), []
        kept = self._state.certificates[-1].serial if keep_newest else None
        for index, each in enumerate(self._state.certificates):
            if each.name == name and each.revoked is None and each.serial != kept:
                taken.append(each)
                self._state.certificates[index] = msgspec.structs.replace(each, revoked=now)
        if taken:
            # The list that the listener reads comes first: a crash in between revokes too much.
            self._write_revocations()
            self._write_state()
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
        """Return the hub's own certificate and key.

        They are made where they are missing or damaged, not for `hosts`, or where less than a third
        of their time is left.

        Args:
            hosts: Names and addresses that peers dial; those of the certificate before are kept.

        Raises:
            ConfigError, Unavailable: They can't be made now, as for `issue`.
        """
        certificate, key = self._path("hub.crt"), self._path("hub.key")
        pair = self._load_own()
        known = list(self._state.hosts)
        if pair is not None:
            left = pair.leaf.not_valid_after_utc.timestamp() - self._wall()
            if left > LEAF_DAYS * _DAY_SECONDS / 3 and all(
                names_host(pair.leaf, host) for host in hosts
            ):
                return certificate, key
            known += _hosts(pair.leaf)
        self.check_valid()
        if pair is None:
            write_whole(key, issuing.key_pem(issuing.make_key()), 0o600)
        public = _load_key(key).public_key()
        wanted = list(dict.fromkeys([*known, *hosts]))
        subject = Subject(self._node, [issuing.general_name(host) for host in wanted], public)
        signed = issuing.issue(self._issuer, subject, issuing.FOR_LISTENING, self._valid(LEAF_DAYS))
        write_whole(certificate, issuing.pem(signed) + issuing.pem(self.certificate), 0o640)
        if wanted != self._state.hosts:
            self._state.hosts = wanted
            self._write_state()
        return certificate, key

    def _load_own(self) -> KeyPair | None:
        """Return the hub's own certificate and key; None where they are missing or damaged."""
        certificate, key = self._path("hub.crt"), self._path("hub.key")
        if not (certificate.exists() and key.exists()):
            return None
        try:
            return load_key_pair(certificate, key)
        except ConfigError as error:
            if _is_unread(error):
                raise
            events.emit("tls.repaired", certificate=str(certificate), detail=str(error))
            return None

    def _path(self, name: str) -> Path:
        return self._directory / name

    def _found(self) -> None:
        """Make the authority; its key is written last, and shows that all of it is there."""
        self._check_clock()
        key = issuing.make_key()
        self._write_certificate(key)
        write_whole(self._path("ca.key"), issuing.key_pem(key), 0o600)

    def _write_certificate(self, key: ec.EllipticCurvePrivateKey) -> None:
        now = self._wall()
        validity = Validity.around(now, _BACK_SECONDS, AUTHORITY_DAYS * _DAY_SECONDS)
        certificate = issuing.make_authority(key, f"linkd pairing {self._node}", validity)
        write_whole(self._path(AUTHORITY_FILE), issuing.pem(certificate), 0o640)

    def _load_certificate(self, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
        """Return the authority's certificate; a damaged one is made again from the key.

        Certificates that it has signed are good under the new one too: key and name are the same.
        """
        path = self._path(AUTHORITY_FILE)
        try:
            if path.exists():
                return load_certificates(path)[0]
            complaint = f"{path}: it is missing"
        except ConfigError as error:
            if _is_unread(error):
                raise
            complaint = str(error)
        self._check_clock()
        self._write_certificate(key)
        events.emit("tls.repaired", certificate=str(path), detail=complaint)
        return load_certificates(path)[0]

    def _check_clock(self) -> None:
        """Sign nothing by a clock that is wrong: what it signs is never valid at the right time."""
        now = self._wall()
        if not is_plausible(now):
            raise Unavailable(
                f"{self._directory}: no certificates are made while this host's clock shows"
                f" {clock_words(now)}, which is before this version of linkd was made: set the"
                " clock, or wait for time synchronisation"
            )

    def _valid(self, days: float) -> Validity:
        """Return the time of a certificate made now: at most the authority's own."""
        validity = Validity.around(self._wall(), _BACK_SECONDS, days * _DAY_SECONDS)
        return Validity(validity.begins, min(validity.ends, self.certificate.not_valid_after_utc))

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
        validity = Validity.around(self._wall(), _BACK_SECONDS, AUTHORITY_DAYS * _DAY_SECONDS)
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


def _has_revocations(path: Path) -> bool:
    """Return whether a revocation list can be read there: an empty file revokes nobody."""
    try:
        return path.exists() and bool(load_revocation_lists(path))
    except ConfigError as error:
        if _is_unread(error):
            raise
        return False


def prepare(config: Config, wall: Callable[[], float]) -> bool:
    """Make this node's own authority and certificate where `[listen]` names them and they lack.

    So a hub's configuration may name `pairing/hub.crt`, `hub.key` and `ca.crt` in its state
    directory before anything is there. They are also made again where they are damaged and `ca.key`
    is not, and where the certificate has expired. Any other file is left alone.

    Args:
        config: The configuration, before its files are checked.
        wall: Returns Unix seconds.

    Returns:
        Whether anything was made.

    Raises:
        ConfigError: What is there can't be used, or nothing can be written there.
        Unavailable: The same, for a reason that may pass, such as a clock that shows 1970.
    """
    listen = config.listen
    place = Path(config.node.state_dir) / DIRECTORY
    if listen is None:
        return False
    named = {Path(each) for each in (listen.certificate, listen.key, listen.client_ca) if each}
    wanted = named & {place / "hub.crt", place / "hub.key", place / AUTHORITY_FILE}
    sound = not wanted or _are_sound(place, wanted)
    own = place / "hub.crt"
    if sound and (own not in wanted or not own.exists() or not _has_expired(own, wall())):
        return False
    try:
        make_directory(place.parent, 0o700)
        authority = Authority(place, config.node.name, wall)
        if own in wanted:
            authority.hub_certificate(own_hosts(config.node.name, listen.address))
    except OSError as error:
        raise unusable(f"{place}: cannot write there", error) from None
    except LinkdError as error:
        if not sound:
            raise
        events.emit("tls.expiring", certificate=str(own), detail=str(error))
        return False
    return True


def _are_sound(place: Path, wanted: Set[Path]) -> bool:
    """Return whether the files of pairing that `[listen]` names are there and not damaged.

    One that can't be read is not damaged: it is reported by its setting.
    """
    try:
        if not all(each.exists() for each in wanted):
            return False
        if place / AUTHORITY_FILE in wanted:
            load_certificates(place / AUTHORITY_FILE)
            if not _has_revocations(place / REVOCATION_FILE):
                return False
        if {place / "hub.crt", place / "hub.key"} <= wanted:
            load_key_pair(place / "hub.crt", place / "hub.key")
    except ConfigError as error:
        return _is_unread(error)
    return True


def _has_expired(path: Path, wall: float) -> bool:
    """Return whether a certificate has expired; one that can't be read is reported elsewhere."""
    try:
        return load_certificates(path)[0].not_valid_after_utc.timestamp() <= wall
    except ConfigError:
        return False


def _is_unread(error: ConfigError) -> bool:
    """Return whether a file could not be read; else its content is wrong."""
    return isinstance(error.__context__, OSError)
