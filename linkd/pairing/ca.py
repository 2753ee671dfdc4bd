"""A hub's certificate authority: certificates, revocation, the names of this host.

`issued.json` is the source of truth. The set of revoked serials that the listener uses, and the
revocation list beside it, are derived from it.
"""

from __future__ import annotations

import fcntl
import ipaddress
import re
import socket
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from linkd import events
from linkd.clock import is_plausible
from linkd.config import Config
from linkd.config.addresses import parse_address
from linkd.errors import ConfigError, LinkdError, StateTooNew, Unavailable, unusable
from linkd.host import make_directory, write_atomically
from linkd.net import certificates as issuing
from linkd.net.certificates import (
    Issuer,
    KeyPair,
    Subject,
    Validity,
    load_certificates,
    load_key_pair,
    load_revocation_lists,
    names_host,
)
from linkd.net.linux import format_address
from linkd.net.tls import AUTHORITY_FILE, REVOCATION_FILE
from linkd.pairing import signers
from linkd.pairing.shared import CERTIFICATE, SharedRows
from linkd.pairing.signers import AUTHORITY_DAYS, BACK_SECONDS, DAY_SECONDS, LEAF_DAYS, Signers

_ANY: Final = frozenset({"", "0.0.0.0", "::"})  # noqa: S104 -- allowed in [listen]
_OUTSIDE: Final = (
    (socket.AF_INET, ("192.0.2.1", 9)),
    (socket.AF_INET6, ("2001:db8::1", 9)),
)
"""Addresses for documentation (RFC 5737, RFC 3849): to find which of ours leads outside."""

_SIOCGIFADDR: Final = 0x8915
"""ioctl: an interface's IPv4 address; netdevice(7)."""

_GIVEN = re.compile(r"(?P<host>\[[0-9a-f:.]+\]|[a-z0-9.-]+)(:(?P<port>[0-9]{1,5}))?")


def host_of(address: str) -> str:
    """Return the host in `HOST:PORT` or `[IPV6]:PORT`, without brackets."""
    return address.rpartition(":")[0].strip("[]")


def public_address(listen: str, given: str | None) -> str:
    """Return `HOST:PORT` at which others reach the listener.

    Args:
        listen: `listen.address`.
        given: `HOST` or `HOST:PORT` from the operator, or a URL of linkd. None: find it.

    Raises:
        ValueError: `given` is neither, or this host has no address to the outside.
    """
    host, port = parse_address(listen)
    if given is not None:
        bare = given.lower().removeprefix("wss://").removesuffix("/link").rstrip("/")
        match = _GIVEN.fullmatch(bare)
        if match is None:
            raise ValueError(f"{given!r}: expected HOST or HOST:PORT")
        return f"{match['host']}:{match['port'] or port}"
    if host not in _ANY:
        return format_address(host, port)
    name = socket.gethostname().lower()
    if "." in name and not name.endswith((".localdomain", ".local")):
        return format_address(name, port)
    addresses = _outgoing_addresses()
    if not addresses:
        raise ValueError("this host has no address to the outside: name one with --address")
    return format_address(addresses[0], port)


def own_hosts(node: str, listen: str) -> list[str]:
    """Return the names and addresses for this node's own certificate."""
    host, _ = parse_address(listen)
    found = [node, socket.gethostname().lower(), "localhost", "127.0.0.1", "::1"]
    found += _outgoing_addresses() if host in _ANY else [host]
    return [each for each in dict.fromkeys(found) if re.fullmatch(r"[a-z0-9.:-]{1,253}", each)]


def _outgoing_addresses() -> list[str]:
    """Return the source addresses of packets to the outside, without sending any.

    Without a default route: the addresses of this host's interfaces, so that two hosts on a
    private network can be paired.
    """
    found = []
    for family, target in _OUTSIDE:
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect(target)
                found.append(str(ipaddress.ip_address(probe.getsockname()[0].partition("%")[0])))
        except OSError:
            continue
    return found or _interface_addresses()


def _interface_addresses() -> list[str]:
    """Return the IPv4 addresses of all interfaces but the loopback."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                asked = struct.pack("256s", name.encode()[:15])
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, asked)
            except OSError:
                continue
            address = ipaddress.IPv4Address(answer[20:24])
            if not address.is_loopback:
                found.append(str(address))
    return found


FILE: Final = "issued.json"
UNKNOWN: Final = "(unknown)"
"""The name of a peer whose certificate only the revocation list has."""

_VERSION: Final = 1
_LIST_SECONDS: Final = AUTHORITY_DAYS * DAY_SECONDS


Serial = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{1,40}$")]


class Issued(msgspec.Struct, frozen=True, omit_defaults=True):
    """One certificate that the authority has signed for a peer; times in Unix seconds.

    `replaces` is the serial of the certificate that it renews. `pem` is kept for a renewal, whose
    answer may have been lost: the same request gets the same certificate.
    """

    name: str
    serial: Serial
    issued: float
    expires: float
    revoked: float | None = None
    replaces: Serial | None = None
    pem: str | None = None


class IssuedState(msgspec.Struct, frozen=True):
    """The content of `issued.json`; `hosts` are those of the hub's own certificate.

    Immutable: a new state is written first, and only then replaces the old one in memory.
    """

    version: int
    certificates: tuple[Issued, ...]
    hosts: tuple[str, ...] = ()

    def revoked(self) -> frozenset[int]:
        """Return the serials that the listener must refuse."""
        return frozenset(int(each.serial, 16) for each in self.certificates if each.revoked)

    def with_listed(self, path: Path) -> IssuedState:
        """Return the state with all revocations of the list in `path`.

        If `issued.json` was lost, or restored from an older copy, the list still has them.
        """
        try:
            lists = load_revocation_lists(path) if path.exists() else []
        except LinkdError:
            return self  # the list is rewritten
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

    def merged(self, shared: Mapping[str, Issued]) -> IssuedState:
        """Return the state with what other instances have issued and revoked, by serial.

        What is revoked anywhere is revoked, and so is what renews it: it may have been renewed at
        one instance while another revoked it.
        """
        found = {each.serial: each for each in self.certificates}
        for serial, theirs in shared.items():
            found[serial] = _one_of(found.get(serial), theirs)
        when: dict[str, float] = {}
        for each in sorted(found.values(), key=lambda one: one.issued):
            revoked = each.revoked
            if revoked is None and each.replaces is not None:
                revoked = when.get(each.replaces)
            if revoked is not None:
                when[each.serial] = revoked
                found[each.serial] = msgspec.structs.replace(each, revoked=revoked)
        return msgspec.structs.replace(self, certificates=tuple(found.values()))

    def with_issued(self, entry: Issued, now: float) -> IssuedState:
        """Return the state with one more certificate, without the ones of its name that are over.

        The one that it renews stays: the peer uses it until the answer arrives. A revoked one stays
        for as long as it could be renewed, so that a revocation outlives it.
        """
        names = (entry.name, UNKNOWN)
        grace = signers.GRACE_DAYS * DAY_SECONDS
        kept = (
            each
            for each in self.certificates
            if each.name not in names
            or each.expires + (0.0 if each.revoked is None else grace) > now
            or each.serial == entry.replaces
        )
        return msgspec.structs.replace(self, certificates=(*kept, entry))

    def with_revoked(self, name: str, now: float, but: str | None = None) -> IssuedState:
        """Return the state with all certificates of `name` revoked, except serial `but`."""
        certificates = tuple(
            msgspec.structs.replace(each, revoked=now)
            if each.name == name and each.revoked is None and each.serial != but
            else each
            for each in self.certificates
        )
        return msgspec.structs.replace(self, certificates=certificates)


def _one_of(ours: Issued | None, theirs: Issued) -> Issued:
    """Return what is known of a certificate, here or at another instance."""
    if ours is None or (ours.name == UNKNOWN and theirs.revoked is not None):
        return theirs
    if theirs.name == UNKNOWN:
        return msgspec.structs.replace(ours, revoked=theirs.revoked)
    if theirs.revoked is None and ours.revoked is not None:
        return msgspec.structs.replace(theirs, revoked=ours.revoked)
    return theirs


def shared_certificates(rows: SharedRows) -> dict[str, Issued]:
    """Return the certificates that the instances share, by serial."""
    found = {}
    for serial, value in rows.get(CERTIFICATE).items():
        with suppress(msgspec.DecodeError):
            entry = msgspec.json.decode(value, type=Issued)
            if entry.serial == serial:
                found[serial] = entry
    return found


def share_certificates(rows: SharedRows, before: IssuedState, after: IssuedState) -> None:
    """Let other instances know what has changed; raise Unavailable where the database is away."""
    old = {each.serial: each for each in before.certificates}
    new = {each.serial: each for each in after.certificates}
    values: dict[str, bytes | None] = dict.fromkeys(old.keys() - new.keys())
    for serial, entry in new.items():
        if old.get(serial) != entry:
            values[serial] = msgspec.json.encode(entry)
    rows.put(CERTIFICATE, values)


def load_state(directory: Path) -> IssuedState:
    """Return the state on disk.

    Raises:
        ConfigError, Unavailable: The file can't be read.
        StateTooNew: It was written by a newer linkd.
    """
    path = directory / FILE
    if not path.exists():
        return IssuedState(_VERSION, ())
    try:
        state = msgspec.json.decode(path.read_bytes(), type=IssuedState)
    except OSError as error:
        raise unusable(f"{path}: cannot read what was issued", error) from None
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path}: cannot read what was issued: {error}") from None
    if state.version > _VERSION:
        raise StateTooNew(f"{path}: expected version {_VERSION}, got {state.version}")
    return state


def write_state(directory: Path, state: IssuedState) -> None:
    """Write the state; raise OSError if that fails, and the previous file stays."""
    write_atomically(directory / FILE, msgspec.json.encode(state), 0o600)


def write_revocation_list(
    path: Path, signers: Iterable[Issuer], revoked: Iterable[Issued], now: float
) -> bool:
    """Write the revocation list if it is out of date; return whether it was.

    Args:
        path: The list's file.
        signers: Each signs its own list of all serials: OpenSSL needs one for each authority.
        revoked: The certificates that are revoked.
        now: Unix seconds.

    Raises:
        OSError: It can't be written; the previous file stays.
    """
    signers, revoked = list(signers), list(revoked)
    if _is_current(path, signers, {int(each.serial, 16) for each in revoked}, now):
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
    write_atomically(path, content, 0o640)
    return True


def _is_current(path: Path, signers: list[Issuer], serials: set[int], now: float) -> bool:
    """Return whether the file has a list of each signer with these serials, valid for years."""
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


DIRECTORY: Final = "pairing"


def revoked_here(name: str, error: Exception) -> str:
    """Return that other instances do not know of a revocation yet."""
    return (
        f"{name} is revoked at this instance, and the others may not know that yet ({error}): they"
        f" refuse it once the database answers; run `linkd revoke {name}` again to be sure"
    )


class NotRevoked(LinkdError):
    """A revocation could not be written: it lasts only until the daemon stops."""


class Authority:
    """Signs certificates for peers and for the hub itself, and revokes them.

    Each change is written before it takes effect; the revocation list is derived from the state,
    at each start and after each change.

    Args:
        directory: `pairing` in the state directory.
        node: The hub's name.
        wall: Returns Unix seconds.
        rows: What the instances of the node share; None: there is only this one.

    Attributes:
        revoked: The serials that the listener must refuse, including revocations that could not be
            written. It is replaced, never changed, so that any thread may read it.

    Raises:
        ConfigError: A file can't be read.
        Unavailable: It can't be read now; or there is no authority, and the clock is wrong.
        StateTooNew: It was written by a newer linkd.
        OSError: There is no authority, and it can't be written.
    """

    def __init__(
        self,
        directory: Path,
        node: str,
        wall: Callable[[], float],
        rows: SharedRows | None = None,
    ) -> None:
        self._directory = directory
        self._node = node
        self._wall = wall
        self._rows = rows
        make_directory(directory, 0o700)
        self.signers = Signers(directory, node, wall)
        self._state = load_state(directory).with_listed(self.path(REVOCATION_FILE))
        self._unwritten: frozenset[int] = frozenset()
        self.revoked = self._state.revoked()
        self.update_list()

    @property
    def issued(self) -> list[Issued]:
        """Every certificate signed for a peer, oldest first."""
        return list(self._state.certificates)

    def learn(self) -> set[str]:
        """Take what other instances have issued and revoked, and share what they lack.

        Returns:
            The names that have certificates which are revoked only since now.

        Raises:
            OSError: It can't be written; it is in force all the same.
        """
        assert self._rows is not None
        shared, now = shared_certificates(self._rows), self._wall()
        state = self._state.merged(shared)
        for each in state.certificates:
            kept = each.expires + (
                0.0 if each.revoked is None else signers.GRACE_DAYS * DAY_SECONDS
            )
            if shared.get(each.serial) != each and kept > now:
                self._rows.note(CERTIFICATE, each.serial, msgspec.json.encode(each))
        fresh = state.revoked() - self.revoked
        try:
            self._keep(state)
        except OSError:
            self._unwritten |= fresh
            self.revoked |= fresh
            raise
        return {each.name for each in state.certificates if int(each.serial, 16) in fresh}

    def path(self, name: str) -> Path:
        """Return the path of a file of the authority: `ca.crt`, `hub.crt`, `hub.key`."""
        return self._directory / name

    def issue(self, request: x509.CertificateSigningRequest, name: str) -> str:
        """Sign a certificate for the peer `name`: for dialing only, not for the hub itself.

        It replaces all certificates of `name`, which are revoked.

        Args:
            request: Has the peer's public key; nothing else of it is used.
            name: The name in the certificate, whatever the request contains.

        Returns:
            The certificate, PEM.

        Raises:
            ConfigError: The request is not signed by its own key, or its key is not of an elliptic
                curve; or the authority is not valid now.
            Unavailable: The clock is wrong.
            OSError: It can't be written; nothing has changed.
        """
        return self._issue(request, name, None)

    def renew(self, entry: Issued, request: x509.CertificateSigningRequest) -> str:
        """Sign the certificate that succeeds another of the same peer.

        A repeated request gets the same answer: the first may have been lost.

        Args:
            entry: The certificate that expires, or has expired.
            request: As for `issue`.

        Raises:
            ConfigError, Unavailable, OSError: As for `issue`.
        """
        now = self._wall()
        for each in self._state.certificates:
            answered = each.replaces == entry.serial and each.revoked is None and each.expires > now
            if answered and each.pem is not None:
                return each.pem
        return self._issue(request, entry.name, entry.serial)

    def _issue(
        self, request: x509.CertificateSigningRequest, name: str, replaces: str | None
    ) -> str:
        key = request.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey) or not request.is_signature_valid:
            raise ConfigError("expected a signing request for an elliptic key, signed by that key")
        issuer = self.signers.for_peers()
        names = [x509.DNSName(name), x509.UniformResourceIdentifier(f"linkd:{name}")]
        subject = Subject(name, names, key)
        certificate = issuing.issue(issuer, subject, issuing.FOR_DIALING, self._valid(issuer))
        text = issuing.pem(certificate).decode()
        now = self._wall()
        entry = Issued(
            name,
            f"{certificate.serial_number:x}",
            now,
            certificate.not_valid_after_utc.timestamp(),
            replaces=replaces,
            pem=None if replaces is None else text,
        )
        state = self._state.with_issued(entry, now)
        if replaces is None:
            state = state.with_revoked(name, now, but=entry.serial)
        self._apply(state)
        return text

    def revoke(self, name: str) -> list[Issued]:
        """Revoke every certificate of `name`; return its revoked, unexpired certificates.

        It is in force once this returns, across restarts too. Idempotent.

        Raises:
            NotRevoked: It could not be written. The certificates are refused until the next start.
                Or other instances may not know it yet.
        """
        now = self._wall()
        state = self._state.with_revoked(name, now)
        try:
            self._apply(state)
            if self._rows is not None:  # also what was revoked here before
                mine = (each for each in state.certificates if each.name == name)
                before = IssuedState(_VERSION, ())
                share_certificates(self._rows, before, IssuedState(_VERSION, tuple(mine)))
        except OSError as error:
            self._unwritten = state.revoked() - self._state.revoked()
            self.revoked = state.revoked()
            raise NotRevoked(
                f"{name} is NOT revoked: {self.path('issued.json')} could not be written"
                f" ({error.strerror or error}). Its certificates are refused until linkd restarts:"
                f" make that file writable, then run `linkd revoke {name}` again"
            ) from None
        except Unavailable as error:
            raise NotRevoked(revoked_here(name, error)) from None
        known = self._state.certificates
        return [each for each in known if each.name == name and each.expires > now]

    def refuse(self, name: str) -> None:
        """Revoke every certificate of `name` at this instance; raise OSError as `_keep`."""
        self._keep(self._state.with_revoked(name, self._wall()))

    def _apply(self, state: IssuedState) -> None:
        """Write a state, and only then apply it; nothing is written if nothing changed.

        Raises:
            OSError: It can't be written; nothing has changed.
            Unavailable: It is in force here, and other instances may not know it yet.
        """
        before = self._state
        self._keep(state)
        if self._rows is not None:
            share_certificates(self._rows, before, state)

    def _keep(self, state: IssuedState) -> None:
        """Write a state, and only then apply it, at this instance."""
        if state != self._state:
            write_state(self._directory, state)
        self._state = state
        self._unwritten -= state.revoked()
        self.revoked = state.revoked() | self._unwritten
        self.update_list()

    def update_list(self) -> None:
        """Write the revocation list if it differs from the state.

        The listener does not depend on it, since it also uses `revoked`: a failure is logged.
        """
        path = self.path(REVOCATION_FILE)
        revoked = [each for each in self._state.certificates if each.revoked is not None]
        try:
            write_revocation_list(path, self.signers.all, revoked, self._wall())
        except (OSError, LinkdError) as error:
            events.emit("pairing.list-not-written", certificate=str(path), detail=str(error))

    def good(self, certificate: x509.Certificate) -> Issued | None:
        """Return the entry of a certificate that this authority has signed and not revoked."""
        if self.signers.issuer_of(certificate) is None:
            return None
        if certificate.serial_number in self.revoked:
            return None
        serial, names = f"{certificate.serial_number:x}", _hosts(certificate)
        known = (each for each in self._state.certificates if each.serial == serial)
        return next((each for each in known if each.name in names), None)

    def hub_certificate(self, hosts: Sequence[str]) -> tuple[Path, Path]:
        """Return the hub's own certificate and key.

        They are created if they are missing or damaged, not for `hosts`, signed by an expiring key,
        not valid now, or if less than a third of their time is left.

        Args:
            hosts: Names and addresses that peers dial; those of the previous certificate are kept.

        Raises:
            ConfigError, Unavailable, OSError: They can't be created now, as for `issue`.
        """
        certificate, key = self.path("hub.crt"), self.path("hub.key")
        pair = self._load_hub_pair()
        known = list(self._state.hosts)
        if pair is not None:
            if self._is_usable(pair.leaf) and all(names_host(pair.leaf, host) for host in hosts):
                return certificate, key
            known += _hosts(pair.leaf)
        issuer = self.signers.for_hub()
        if pair is None:
            signers.write_keys(key, [issuing.make_key()])
        public = signers.load_keys(key)[0].public_key()
        wanted = tuple(dict.fromkeys([*known, *hosts]))
        subject = Subject(self._node, [issuing.general_name(host) for host in wanted], public)
        signed = issuing.issue(issuer, subject, issuing.FOR_LISTENING, self._valid(issuer))
        write_atomically(certificate, issuing.pem(signed) + issuing.pem(issuer.certificate), 0o640)
        if wanted != self._state.hosts:
            self._apply(msgspec.structs.replace(self._state, hosts=wanted))
        return certificate, key

    def _is_usable(self, leaf: x509.Certificate) -> bool:
        """Return whether the hub's certificate is valid for a while, and by the right signer."""
        now = self._wall()
        left = leaf.not_valid_after_utc.timestamp() - now
        if left <= LEAF_DAYS * DAY_SECONDS / 3 or leaf.not_valid_before_utc.timestamp() > now:
            return False
        return self.signers.issuer_of(leaf) in (None, self.signers.for_hub())

    def _load_hub_pair(self) -> KeyPair | None:
        """Return the hub's own certificate and key; None if they are missing or damaged."""
        certificate, key = self.path("hub.crt"), self.path("hub.key")
        if not (certificate.exists() and key.exists()):
            return None
        try:
            return load_key_pair(certificate, key)
        except ConfigError as error:
            if _is_unreadable(error):
                raise
            events.emit("tls.repaired", certificate=str(certificate), detail=str(error))
            return None

    def _valid(self, issuer: Issuer) -> Validity:
        """Return the validity of a certificate made now: at most its issuer's own."""
        validity = Validity.around(self._wall(), BACK_SECONDS, LEAF_DAYS * DAY_SECONDS)
        ends = issuer.certificate.not_valid_after_utc
        return Validity(validity.begins, min(validity.ends, ends))


def _hosts(leaf: x509.Certificate) -> list[str]:
    """Return the names and addresses of a certificate."""
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = names.get_values_for_type(x509.IPAddress)
    return [*names.get_values_for_type(x509.DNSName), *map(str, addresses)]


def _has_revocations(path: Path) -> bool:
    """Return whether a revocation list can be read there: an empty file revokes nothing."""
    try:
        return path.exists() and bool(load_revocation_lists(path))
    except ConfigError as error:
        if _is_unreadable(error):
            raise
        return False


def prepare(config: Config, wall: Callable[[], float]) -> bool:
    """Create this node's own authority and certificate if `[listen]` names missing ones.

    So a hub's configuration may name `pairing/hub.crt`, `hub.key` and `ca.crt` in its state
    directory before they exist. They are also recreated if they are damaged and `ca.key` is not,
    and if the certificate has expired. Any other file is left alone.

    Args:
        config: The configuration, before its files are checked.
        wall: Returns Unix seconds.

    Returns:
        Whether anything was created.

    Raises:
        ConfigError: The existing files can't be used, or new ones can't be written.
        Unavailable: The same, for a reason that may pass, such as a clock that shows 1970.
    """
    listen = config.listen
    place = Path(config.node.state_dir) / DIRECTORY
    if listen is None:
        return False
    named = {Path(each) for each in (listen.certificate, listen.key, listen.client_ca) if each}
    wanted = named & {place / "hub.crt", place / "hub.key", place / AUTHORITY_FILE}
    sound = not wanted or _are_intact(place, wanted)
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


def _are_intact(place: Path, wanted: Set[Path]) -> bool:
    """Return whether the files of pairing that `[listen]` names exist and are not damaged.

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
        return _is_unreadable(error)
    return True


def _has_expired(path: Path, wall: float) -> bool:
    """Return whether a certificate has expired; one that can't be read is reported elsewhere."""
    try:
        return load_certificates(path)[0].not_valid_after_utc.timestamp() <= wall
    except ConfigError:
        return False


def _is_unreadable(error: ConfigError) -> bool:
    """Return whether a file could not be read; otherwise its content is wrong."""
    return isinstance(error.__context__, OSError)
