"""The authority's signing keys, current and next, and atomic writes of its files.

`ca.key` holds the keys, oldest first, and `ca.crt` their certificates. A successor is created
`SUCCESSOR_DAYS` before the newest certificate expires, and reaches each peer with its next renewal.
Peers' certificates are signed by the newest key: only this node verifies them, and it trusts all.
The hub's own certificate changes to the newest key last, because peers verify that one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from linkd import events
from linkd.clock import clock_words, is_plausible
from linkd.errors import ConfigError, Unavailable, unusable
from linkd.host import write_atomically
from linkd.net import certificates
from linkd.net.certificates import Issuer, Validity, is_issued_by, load_certificates
from linkd.net.tls import AUTHORITY_FILE

KEY_FILE: Final = "ca.key"
AUTHORITY_DAYS: Final = 3650.0
LEAF_DAYS: Final = 365.0
AUTHORITY_WARN_DAYS: Final = 730.0
SUCCESSOR_DAYS: Final = AUTHORITY_WARN_DAYS + LEAF_DAYS
"""A year before the first warning: a peer that is in touch has renewed, and so knows the successor,
by then. A warning therefore means that something failed."""

GRACE_DAYS: Final = 730.0
"""So long after its end a peer's certificate is still renewed by the proof of its key: nodes may be
off for a year one after the other. Nothing else accepts it, and a revoked one is not renewed."""

DAY_SECONDS: Final = 86_400.0
BACK_SECONDS: Final = DAY_SECONDS
"""Certificates begin so long before they are made: clocks of two hosts differ."""

_PEM_KEY: Final = re.compile(
    rb"-----BEGIN [A-Z ]*KEY-----.*?-----END [A-Z ]*KEY-----\n?", re.DOTALL
)


class Signers:
    """The certificates and keys that sign, oldest first.

    Args:
        directory: `pairing` in the state directory.
        node: The hub's name.
        wall: Returns Unix seconds.

    Raises:
        ConfigError: A file can't be read.
        Unavailable: It can't be read now; or there is no key, and the clock is wrong.
        OSError: A missing file can't be written.
    """

    def __init__(self, directory: Path, node: str, wall: Callable[[], float]) -> None:
        self._directory = directory
        self._node = node
        self._wall = wall
        if not (directory / KEY_FILE).exists():
            self._create_first()
        keys = load_keys(directory / KEY_FILE)
        self._all = self._with_certificates(keys)

    @property
    def all(self) -> tuple[Issuer, ...]:
        """Every signer, oldest first."""
        return self._all

    @property
    def expires(self) -> float:
        """Unix seconds at which the last certificate expires.

        One made while the clock was ahead does not count before its start.
        """
        now = self._wall()
        begun = [each for each in self._all if _begins(each) <= now]
        return max(_ends(each) for each in begun or self._all)

    def for_peers(self) -> Issuer:
        """Return the signer of peers' certificates: the newest that is valid now.

        Raises:
            ConfigError: The clock is before the first certificate.
            Unavailable: The clock shows a time before this version of linkd was made.
            OSError: All have expired, and a successor can't be written.
        """
        return self._valid()[-1]

    def for_hub(self) -> Issuer:
        """Return the signer of the hub's certificate: the oldest that can sign for a whole year.

        Raises:
            ConfigError, Unavailable, OSError: As for `for_peers`.
        """
        valid, enough = self._valid(), self._wall() + LEAF_DAYS * DAY_SECONDS
        return next((each for each in valid if _ends(each) >= enough), valid[-1])

    def current(self) -> tuple[x509.Certificate, ...]:
        """Return the certificates that have not expired, the newest first."""
        now = self._wall()
        return tuple(each.certificate for each in reversed(self._all) if _ends(each) > now)

    def issuer_of(self, certificate: x509.Certificate) -> Issuer | None:
        """Return the signer of `certificate`; None if it is not ours."""
        ours = (each for each in self._all if is_issued_by(certificate, each.certificate))
        return next(ours, None)

    def succeed(self) -> bool:
        """Create a successor if the last certificate expires within `SUCCESSOR_DAYS`.

        Nothing is created while the clock shows a time before this version of linkd was made.

        Returns:
            Whether one was created.

        Raises:
            OSError: It can't be written; memory has not changed. If only `ca.crt` failed, the new
                key is in `ca.key`, and the next start creates its certificate.
        """
        now = self._wall()
        if self.expires - now > SUCCESSOR_DAYS * DAY_SECONDS or not is_plausible(now):
            return False
        self._make_successor()
        return True

    def _make_successor(self) -> None:
        ends = self.expires
        key = certificates.make_key()
        made = (*self._all, Issuer(self._certify(key, first=False), key))
        write_keys(self._directory / KEY_FILE, [each.key for each in made])
        self._write_certificates(made)
        self._all = made
        events.emit(
            "pairing.successor",
            certificate=str(self._directory / AUTHORITY_FILE),
            expires_seconds=round(ends - self._wall()),
            detail=f"the authority in use ends on {clock_words(ends)}; its successor is trusted"
            " from now on, and peers get it with their next renewal",
        )

    def _valid(self) -> list[Issuer]:
        """Return those that are valid now, oldest first; create a successor if all have expired.

        Raises:
            ConfigError: The clock is before the first certificate.
            Unavailable: The clock shows a time before this version of linkd was made.
            OSError: All have expired, and a successor can't be written.
        """
        now = self._wall()
        begun = [each for each in self._all if _begins(each) <= now]
        if not begun:
            raise ConfigError(
                f"{self._directory / AUTHORITY_FILE}: this authority is valid from"
                f" {clock_words(min(_begins(each) for each in self._all))} to"
                f" {clock_words(self.expires)}, and this host's clock shows {clock_words(now)}:"
                " correct the clock"
            )
        self._check_clock()
        valid = [each for each in begun if _ends(each) > now]
        if not valid:
            self._make_successor()
            valid = [self._all[-1]]
        return valid

    def _check_clock(self) -> None:
        """Raise if the clock is wrong: the certificates would not be valid at the right time."""
        now = self._wall()
        if not is_plausible(now):
            raise Unavailable(
                f"{self._directory}: no certificates are made while this host's clock shows"
                f" {clock_words(now)}, which is before this version of linkd was made: set the"
                " clock, or wait for time synchronisation"
            )

    def _create_first(self) -> None:
        """Create the first signer; its key is written last, as the sign of completion."""
        self._check_clock()
        key = certificates.make_key()
        self._write_certificates([Issuer(self._certify(key, first=True), key)])
        write_keys(self._directory / KEY_FILE, [key])

    def _certify(self, key: ec.EllipticCurvePrivateKey, first: bool) -> x509.Certificate:
        """Return a certificate for a signing key; successors have names of their own."""
        name = f"linkd pairing {self._node}"
        if not first:
            form = serialization.PublicFormat.SubjectPublicKeyInfo
            public = key.public_key().public_bytes(serialization.Encoding.DER, form)
            name += f" {hashlib.sha256(public).hexdigest()[:8]}"
        validity = Validity.around(self._wall(), BACK_SECONDS, AUTHORITY_DAYS * DAY_SECONDS)
        return certificates.make_authority(key, name, validity)

    def _with_certificates(self, keys: list[ec.EllipticCurvePrivateKey]) -> tuple[Issuer, ...]:
        """Return the keys with their certificates; a missing or damaged one is made from its key.

        Certificates that it has signed are good under the new one too: key and name are the same.
        """
        path = self._directory / AUTHORITY_FILE
        found: list[x509.Certificate] = []
        complaint = f"{path}: it is missing"
        try:
            if path.exists():
                found = load_certificates(path)
                complaint = f"{path}: the certificate of a key in {KEY_FILE} is missing"
        except ConfigError as error:
            if isinstance(error.__context__, OSError):
                raise
            complaint = str(error)
        by_key = {_public_numbers(each): each for each in found}
        missing = [key for key in keys if key.public_key().public_numbers() not in by_key]
        if missing:
            self._check_clock()
        signers = tuple(
            Issuer(
                by_key.get(key.public_key().public_numbers())
                or self._certify(key, first=index == 0),
                key,
            )
            for index, key in enumerate(keys)
        )
        if missing:
            self._write_certificates(signers)
            events.emit("tls.repaired", certificate=str(path), detail=complaint)
        return signers

    def _write_certificates(self, signers: tuple[Issuer, ...] | list[Issuer]) -> None:
        content = b"".join(certificates.pem(each.certificate) for each in signers)
        write_atomically(self._directory / AUTHORITY_FILE, content, 0o640)


def load_keys(path: Path) -> list[ec.EllipticCurvePrivateKey]:
    """Return the keys in a PEM file, at least one.

    Raises:
        ConfigError: It can't be read, or holds something else.
        Unavailable: It can't be read now.
    """
    try:
        content = path.read_bytes()
        pieces = _PEM_KEY.findall(content) or [content]
        keys = [serialization.load_pem_private_key(each, password=None) for each in pieces]
    except OSError as error:
        raise unusable(f"{path}: cannot read the key", error) from None
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path}: cannot read the key: {error}") from None
    found = [each for each in keys if isinstance(each, ec.EllipticCurvePrivateKey)]
    if len(found) < len(keys):
        raise ConfigError(f"{path}: expected a P-256 key")
    return found


def write_keys(path: Path, keys: list[ec.EllipticCurvePrivateKey]) -> None:
    """Write keys into a file that only its owner may read."""
    write_atomically(path, b"".join(certificates.key_pem(key) for key in keys), 0o600)


def _public_numbers(certificate: x509.Certificate) -> object:
    """Return a comparable form of a certificate's public key."""
    key = certificate.public_key()
    return key.public_numbers() if isinstance(key, ec.EllipticCurvePublicKey) else None


def _begins(signer: Issuer) -> float:
    return signer.certificate.not_valid_before_utc.timestamp()


def _ends(signer: Issuer) -> float:
    return signer.certificate.not_valid_after_utc.timestamp()
