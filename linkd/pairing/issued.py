"""Which certificates were issued and which of them are revoked: `issued.json`.

That file is the truth. The set of revoked serials that the listener asks, and the revocation list
beside it, follow from it.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from linkd.clock import is_plausible
from linkd.errors import ConfigError, LinkdError, StateTooNew, unusable
from linkd.net import issuing
from linkd.net.certificates import load_revocation_lists
from linkd.net.issuing import Issuer, Validity
from linkd.pairing.files import write_whole
from linkd.pairing.signers import AUTHORITY_DAYS, BACK_SECONDS, DAY_SECONDS, LEAF_DAYS

FILE: Final = "issued.json"
UNKNOWN: Final = "(unknown)"
"""The name of a peer whose certificate only the revocation list has."""

_VERSION: Final = 1
_LIST_SECONDS: Final = AUTHORITY_DAYS * DAY_SECONDS


Serial = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{1,40}$")]


class Issued(msgspec.Struct, frozen=True, omit_defaults=True):
    """One certificate that the authority has signed for a peer; times in Unix seconds.

    `replaces` is the serial of the certificate that it renews. `pem` is kept of a renewal, whose
    answer may have been lost: the same question gets the same certificate.
    """

    name: str
    serial: Serial
    issued: float
    expires: float
    revoked: float | None = None
    replaces: Serial | None = None
    pem: str | None = None


class State(msgspec.Struct, frozen=True):
    """What `issued.json` holds; `hosts` are those of the hub's own certificate.

    It never changes: a changed one is written first, and only then takes its place in memory.
    """

    version: int
    certificates: tuple[Issued, ...]
    hosts: tuple[str, ...] = ()

    def revoked(self) -> frozenset[int]:
        """Return the serials that the listener must refuse."""
        return frozenset(int(each.serial, 16) for each in self.certificates if each.revoked)

    def with_listed(self, path: Path) -> State:
        """Return the state with all revoked that the revocation list in `path` has.

        Where `issued.json` was lost, or put back to an older copy, the list still knows.
        """
        try:
            lists = load_revocation_lists(path) if path.exists() else []
        except LinkdError:
            return self  # it is written anew
        listed = {
            f"{each.serial_number:x}": each.revocation_date_utc.timestamp()
            for one in lists
            for each in one
        }
        known = tuple(
            msgspec.structs.replace(each, revoked=listed[each.serial])
            if each.revoked is None and each.serial in listed
            else each
            for each in self.certificates
        )
        for each in known:
            listed.pop(each.serial, None)
        lost = tuple(
            Issued(UNKNOWN, serial, when, when + LEAF_DAYS * DAY_SECONDS, revoked=when)
            for serial, when in listed.items()
        )
        return msgspec.structs.replace(self, certificates=known + lost)

    def with_issued(self, entry: Issued, now: float) -> State:
        """Return the state with one more certificate, without those of its name that expired.

        The one that it renews stays: the peer has that one until the answer arrives.
        """
        names = (entry.name, UNKNOWN)
        kept = (
            each
            for each in self.certificates
            if each.name not in names or each.expires > now or each.serial == entry.replaces
        )
        return msgspec.structs.replace(self, certificates=(*kept, entry))

    def with_revoked(self, name: str, now: float, but: str | None = None) -> State:
        """Return the state with all certificates of `name` revoked, but the one of serial `but`."""
        certificates = tuple(
            msgspec.structs.replace(each, revoked=now)
            if each.name == name and each.revoked is None and each.serial != but
            else each
            for each in self.certificates
        )
        return msgspec.structs.replace(self, certificates=certificates)


def load_state(directory: Path) -> State:
    """Return what was issued.

    Raises:
        ConfigError, Unavailable: The file can't be read.
        StateTooNew: It was written by a newer linkd.
    """
    path = directory / FILE
    if not path.exists():
        return State(_VERSION, ())
    try:
        state = msgspec.json.decode(path.read_bytes(), type=State)
    except OSError as error:
        raise unusable(f"{path}: cannot read what was issued", error) from None
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path}: cannot read what was issued: {error}") from None
    if state.version > _VERSION:
        raise StateTooNew(f"{path}: expected version {_VERSION}, got {state.version}")
    return state


def write_state(directory: Path, state: State) -> None:
    """Write what was issued; raise OSError if that can't be done, and the file before stays."""
    write_whole(directory / FILE, msgspec.json.encode(state), 0o600)


def derive_list(
    path: Path, signers: Iterable[Issuer], revoked: Iterable[Issued], now: float
) -> bool:
    """Write the revocation list where it does not say what was revoked; return whether it did not.

    Args:
        path: The list's file.
        signers: Each signs a list of its own, of all serials: OpenSSL asks for one an authority.
        revoked: The certificates that are revoked.
        now: Unix seconds.

    Raises:
        OSError: It can't be written; the file before stays.
    """
    signers, revoked = list(signers), list(revoked)
    if _says(path, signers, {int(each.serial, 16) for each in revoked}, now):
        return False
    validity = Validity.around(now, BACK_SECONDS, _LIST_SECONDS)
    entries = [
        x509.RevokedCertificateBuilder()
        .serial_number(int(each.serial, 16))
        .revocation_date(datetime.fromtimestamp(each.revoked or now, UTC))
        .build()
        for each in revoked
    ]
    content = b""
    for signer in signers:
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(signer.certificate.subject)
            .last_update(validity.begins)
            .next_update(validity.ends)
        )
        for entry in entries:
            builder = builder.add_revoked_certificate(entry)
        content += issuing.pem(builder.sign(signer.key, hashes.SHA256()))
    write_whole(path, content, 0o640)
    return True


def _says(path: Path, signers: list[Issuer], serials: set[int], now: float) -> bool:
    """Return whether the file has a list of each signer with these serials, good for years."""
    try:
        lists = load_revocation_lists(path) if path.exists() else []
    except ConfigError as error:
        if isinstance(error.__context__, OSError):
            raise
        return False
    by_issuer = {each.issuer: each for each in lists}
    for signer in signers:
        found = by_issuer.get(signer.certificate.subject)
        if found is None or {each.serial_number for each in found} != serials:
            return False
        ends = found.next_update_utc
        if ends is None or ends.timestamp() - now < _LIST_SECONDS / 2:
            return False
        if is_plausible(now) and found.last_update_utc.timestamp() > now:
            return False
    return True
