"""The hub's side of pairing: invitations, `POST /pair`, revocation, calls on the socket."""

from __future__ import annotations

import hashlib
import math
import os
import re
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import unquote

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec import Meta

from linkd import events
from linkd.config.settings import NAME_PATTERN, ListenSettings
from linkd.errors import ConfigError, LinkdError, Unavailable
from linkd.host import make_directory, write_atomically
from linkd.log import CursorStore
from linkd.net import certificates as issuing
from linkd.net.certificates import load_certificates, names_host
from linkd.net.rate_limit import RateLimiter
from linkd.net.tls import AUTHORITY_FILE
from linkd.pairing import messages
from linkd.pairing.ca import (
    DIRECTORY,
    Authority,
    Issued,
    IssuedState,
    NotRevoked,
    host_of,
    own_hosts,
    public_address,
    revoked_here,
    share_certificates,
    shared_certificates,
)
from linkd.pairing.invitations import EXPIRED, USED, Invitations
from linkd.pairing.messages import (
    Code,
    PairedPeer,
    PairingHooks,
    PairingRefused,
    Terms,
    check_patterns,
    der_of,
    encode_code,
    fingerprint,
    is_ours,
    proved,
)
from linkd.pairing.shared import (
    AUTHORITY,
    JOINED,
    TERMS,
    Agreed,
    Invitation,
    Joined,
    KnownAuthority,
    SharedRows,
    decode_agreed,
    encode,
    public_hash,
)
from linkd.pairing.signers import AUTHORITY_WARN_DAYS, DAY_SECONDS, GRACE_DAYS

CODE_SECONDS: Final = 600.0
_EARLY_SECONDS: Final = 2 * 86_400.0
"""The clocks of two hosts differ: so much earlier a renewal is taken."""

PEERS_FILE: Final = "peers.json"
"""Says, where several instances serve the node, which peers' files were written here."""

_INVALID = (InvalidSignature, AssertionError, ValueError)


class PairingServer:
    """The hub's side of pairing.

    Args:
        hooks: Callbacks into the daemon.
        directory: The directory of further configuration files: `/etc/linkd/linkd.d`.
        clock: Returns monotonic seconds.
        wall: Returns Unix seconds.
        rows: What the instances of the node share; None: it is this process's.
    """

    def __init__(
        self,
        hooks: PairingHooks,
        directory: Path,
        clock: Callable[[], float],
        wall: Callable[[], float],
        rows: SharedRows | None = None,
    ) -> None:
        self._hooks = hooks
        self._config = hooks.config
        self._directory = directory
        self._clock = clock
        self._wall = wall
        self._rows = rows or SharedRows(CursorStore())
        self._is_shared = self._rows.instance is not None
        self._time = wall if self._is_shared else clock
        self._invitations = Invitations(self._rows, self._time)
        self._elsewhere: frozenset[int] = frozenset()  # revoked, where there is no authority
        self._authority: Authority | None = None
        self._rate_limiter = RateLimiter(rate=1.0, burst=10.0, total_rate=20.0, total_burst=40.0)
        self._warned_at = -math.inf
        self._warnings: dict[str, str] = {}

    def open(self) -> None:
        """Read the issued certificates, so that revoked ones are refused; once, at the start.

        If that fails, a warning reports it, and the previous revocation list is in force.
        """
        try:
            if self._has_authority():
                self._open_authority()
            self._learn_certificates()  # nobody is connected yet
        except (LinkdError, OSError) as error:
            self._warnings["state"] = f"pairing: {error}"
            events.emit("pairing.not-opened", detail=str(error))

    @property
    def revoked(self) -> frozenset[int]:
        """The serials that the listener must refuse; for any thread."""
        return self._elsewhere if self._authority is None else self._authority.revoked

    def warning(self) -> str | None:
        """Return what an operator must act on; None if all is well. For any thread."""
        return "; ".join(list(self._warnings.values())) or None

    def certificate_ends(self) -> list[tuple[str, float]]:
        """Return the Unix seconds at which the certificate of each paired peer expires."""
        return list({each.name: each.expires for each in self._issued if not each.revoked}.items())

    # What a person asks for, over the unix socket

    def invite(
        self,
        name: str,
        address: str | None = None,
        send: Sequence[str] | None = None,
        receive: Sequence[str] | None = None,
        relay: bool = False,
    ) -> str:
        """Return a code with which the node `name` can join, once, for 10 minutes.

        Args:
            name: The new peer's `node.name`.
            address: `HOST[:PORT]` at which it reaches this node; None: this host's own.
            send: Patterns that it receives; None: as configured, or those with its name first.
            receive: Patterns that it may send; None: as configured, or everything.
            relay: Whether it may relay records of other nodes; False: as configured.

        Raises:
            PairingRefused: This node is not ready for pairing; the message has what to do.
        """
        if not re.fullmatch(NAME_PATTERN, name) or name == self._config().node.name:
            raise PairingRefused(
                f"{name!r} can't be invited: expected another node's name, of a-z, 0-9, `.` and `-`"
            )
        terms = self._terms(name, send, receive, relay)
        at = self._peer_address(address)
        self._learn_now()
        self._check_authority()
        try:
            self._open_authority().signers.for_peers()
        except (ConfigError, Unavailable) as error:
            raise PairingRefused(str(error)) from None
        leaf = self._prepare_certificate(host_of(at))
        self._check_writable()
        self._invitations.check_room()
        anchor, _ = self._trust_anchor(leaf)
        der = anchor.public_bytes(serialization.Encoding.DER)
        ends = self._time() + CODE_SECONDS
        invitation = Invitation(name, secrets.token_bytes(16), ends, terms)
        code = Code(name, at, fingerprint(der), self._secret(invitation))
        self._invitations.add(code.invitation, invitation)
        events.emit("pairing.invited", name=name, expires_seconds=CODE_SECONDS)
        return encode_code(code)

    def peers(self) -> list[PairedPeer]:
        """Return the invited and paired nodes by name, each once with its current state."""
        with suppress(Unavailable):
            self._learn_now()
        configured = {peer.name for peer in self._config().peers}
        found: dict[str, PairedPeer] = {}
        now, wall = self._time(), self._wall()
        for each in self._issued:
            state = "revoked" if each.revoked else "paired" if each.expires > wall else "expired"
            left = max(0.0, each.expires - wall)
            found[each.name] = PairedPeer(each.name, state, left, each.name in configured)
        for invitation in self._invitations.open():
            name = invitation.name
            known = found.get(name)
            if known is None or known.state != "paired":
                found[name] = PairedPeer(name, "invited", invitation.ends - now, name in configured)
        return [found[name] for name in sorted(found)]

    def revoke(self, name: str) -> int:
        """Revoke every certificate and code of `name`, at once.

        Its `[[peer]]` and the records owed to it stay until its file is deleted or it is invited
        again.

        Returns:
            How many unexpired certificates of `name` the listener now refuses, including those
            revoked before.

        Raises:
            PairingRefused: No node of that name was invited or paired.
            NotRevoked: It could not be written: the listener refuses it only until the next start.
        """
        unsure: LinkdError | None = None
        if self._is_shared:
            self._refuse(name)  # here at once; the database may be away
        try:
            self._learn_now()
            if name not in self._invitations.names() | {each.name for each in self._issued}:
                raise PairingRefused(f"no node {name!r} was paired here: see `linkd peers`")
            self._invitations.take_back(name)
            self._learn_now()  # what was issued meanwhile; after that, it sees the line above
        except Unavailable as error:
            unsure = NotRevoked(revoked_here(name, error))
        self._rows.note(TERMS, name, None)
        try:
            taken = self._revoke(name)
            if unsure is not None:
                raise unsure
        except NotRevoked as error:
            self._warnings[f"revoke {name}"] = str(error)
            events.emit("pairing.not-revoked", name=name, detail=str(error))
            raise
        finally:
            self._hooks.revoked(name)
        self._warnings.pop(f"revoke {name}", None)
        events.emit("pairing.revoked", name=name)
        return len(taken)

    def _refuse(self, name: str) -> None:
        """Refuse the certificates of a name that are known here, and end its connection."""
        state = IssuedState(1, tuple(each for each in self._issued if each.name == name))
        if self._has_authority():
            with suppress(OSError):  # it is tried again
                self._open_authority().refuse(name)
        else:
            self._elsewhere |= state.with_revoked(name, self._wall()).revoked()
        if state.certificates:
            self._hooks.revoked(name)

    def _revoke(self, name: str) -> list[Issued]:
        """Revoke all certificates of a name; return those that have not expired."""
        if self._has_authority():
            return self._open_authority().revoke(name)
        now, shared = self._wall(), shared_certificates(self._rows)
        before = IssuedState(1, tuple(shared.values()))
        after = before.with_revoked(name, now)
        self._elsewhere |= after.revoked()
        try:
            share_certificates(self._rows, before, after)
        except Unavailable as error:
            raise NotRevoked(revoked_here(name, error)) from None
        return [each for each in after.certificates if each.name == name and each.expires > now]

    def renew_own(self) -> None:
        """Renew the hub's own certificate if its own authority signed it and it expires soon.

        The authority's successor is also created in time.

        Raises:
            LinkdError, OSError: It failed; nothing has changed.
        """
        listen = self._config().listen
        if listen is None or listen.certificate is None or not self._has_authority():
            return
        authority = self._open_authority()
        self._make_successor(authority)
        authority.update_list()
        if Path(listen.certificate) == authority.path("hub.crt"):
            authority.hub_certificate(())

    def _make_successor(self, authority: Authority) -> None:
        """Create the authority's successor in time; warn for two years if that fails."""
        failure = None
        try:
            if not self._is_shared:  # other instances would not have its key
                authority.signers.succeed()
        except OSError as error:
            failure = error
        left = authority.signers.expires - self._wall()
        if left > AUTHORITY_WARN_DAYS * 86_400:
            self._warnings.pop("authority", None)
            return
        why = "" if failure is None else f" ({failure.strerror or failure})"
        what = f"its successor could not be made{why}: make the directory writable"
        if self._is_shared:
            what = (
                "instances make no successor: start one of them once without [cluster], alone,"
                f" and copy its {self._pairing_dir} to the others"
            )
        self._warnings["authority"] = warning = (
            f"{authority.path(AUTHORITY_FILE)}: this node's authority ends in {left / 86_400:.0f}"
            f" days, and {what}; without a successor all peers must be paired again"
        )
        if self._wall() - self._warned_at >= 86_400:
            self._warned_at = self._wall()
            events.emit(
                "tls.expiring",
                certificate=str(authority.path(AUTHORITY_FILE)),
                expires_seconds=round(left),
                days=round(left / 86_400, 1),
                detail=warning,
            )

    # What a joining node asks for, over the listener's port

    @property
    def posts(self) -> dict[str, Callable[[bytes, str], tuple[int, bytes]]]:
        """The handlers for the listener: by path, from body and address to the answer."""
        return {messages.PATH: lambda body, address: self.post(body, address, self._clock())}

    def post(self, body: bytes, address: str, now: float) -> tuple[int, bytes]:
        """Answer `POST /pair`; return status and body (JSON).

        Args:
            body: The request's body, at most 16 KiB.
            address: Where it came from, for the log.
            now: Monotonic seconds.
        """
        if self._rate_limiter.take(address, now):
            return _refusal(429, "busy", "too many pairing requests: try again in a few seconds")
        try:
            ask = msgspec.json.decode(body[: messages.MAX_BODY_BYTES + 1], type=messages.Ask)
        except msgspec.DecodeError:
            return _refusal(400, "malformed", "expected a JSON object of docs/protocol.md, Pairing")
        try:
            return 200, msgspec.json.encode(self._answer(ask))
        except PairingRefused as refusal:
            name = getattr(ask, "name", None)
            shown = name if name and re.fullmatch(NAME_PATTERN, name) else None
            events.emit(
                "pairing.refused",
                name=shown,
                address=address,
                reason="refused",
                detail=str(refusal),
            )
            return _refusal(403, "refused", str(refusal))
        except (ConfigError, Unavailable, OSError) as error:
            events.emit("pairing.refused", "error", address=address, detail=str(error))
            return _refusal(503, "unavailable", "the hub could not do it: see its log")

    def _answer(self, ask: messages.Ask) -> msgspec.Struct:
        leaf = self._hooks.leaf()
        if leaf is None:
            raise PairingRefused("nobody was invited here")
        self._check_authority()
        if not self._has_authority():
            raise PairingRefused("nobody was invited here")
        if isinstance(ask, messages.AuthorityRequest):
            anchor, _ = self._trust_anchor(leaf)
            pem = anchor.public_bytes(serialization.Encoding.PEM).decode()
            return messages.AuthorityReply(pem, self._config().node.name)
        before = self._hooks.leaf_before()
        shown = [leaf] if before is None else [leaf, before]
        if isinstance(ask, messages.RenewalRequest):
            return self._renew(ask, shown)
        return self._join(ask, shown)

    def _join(self, ask: messages.JoinRequest, shown: list[x509.Certificate]) -> messages.JoinReply:
        """Accept a node with a code; its proof covers the listener's leaf that it was shown."""
        key, invitations = ask.invitation, self._invitations
        request = hashlib.sha256(ask.request.encode()).digest()
        found = invitations.find(key)
        if isinstance(found, Joined):
            leaf = proved(self._secret(found.invitation), ask, shown)
            is_same = invitations.is_newest(key, ask.name) and found.request == request
            if leaf is None or not is_same:
                raise PairingRefused(USED)
            return self._reply(ask, found, leaf)
        if found is None:
            raise PairingRefused(
                "the code is not known here: it is wrong, or the hub has restarted"
            )
        if not (invitations.count_try(key) and invitations.is_open(key, found)):
            raise PairingRefused(EXPIRED)
        leaf = proved(self._secret(found), ask, shown)
        if leaf is None:
            raise PairingRefused(
                "the proof does not fit the code: someone may intercept the connection"
            )
        if ask.name != found.name:
            raise PairingRefused(f"the code is for {found.name}, not for {ask.name}")
        self._check_terms(ask.name, found.terms)
        loaded, agreed = _load_request(ask.request), Agreed(key, found.terms)

        def issue() -> str:
            certificate = self._open_authority().issue(loaded, ask.name)
            self._write_peer(ask.name, agreed)
            return certificate

        joined = Joined(found, request, invitations.use(key, found, issue))
        if not invitations.is_newest(key, ask.name):  # `revoke` elsewhere may not have seen it
            self._open_authority().revoke(ask.name)
            raise PairingRefused(EXPIRED)
        self._rows.note(JOINED, key, encode(joined))
        reply = self._reply(ask, joined, leaf)
        events.emit("pairing.joined", name=ask.name)
        self._hooks.reload()
        self._rows.put(TERMS, {ask.name: encode(agreed)})
        self._rows.settle()
        return reply

    def _reply(
        self, ask: messages.JoinRequest, joined: Joined, leaf: x509.Certificate
    ) -> messages.JoinReply:
        """Return the answer to a node that has joined."""
        terms = joined.invitation.terms
        answer = messages.JoinReply(
            node=self._config().node.name,
            certificate=joined.certificate,
            send=terms.receive,
            receive=terms.send,
            private=self._trust_anchor(leaf)[1],
            proof="",
            authorities=self._authorities(leaf),
        )
        secret = self._secret(joined.invitation)
        proof = messages.hub_proof(secret, der_of(leaf), ask, answer)
        return msgspec.structs.replace(answer, proof=proof)

    def _secret(self, invitation: Invitation) -> bytes:
        """Return the secret of an invitation's code."""
        return invitation.secret(self._open_authority().signers.all[0].key)

    def _renew(
        self, ask: messages.RenewalRequest, shown: list[x509.Certificate]
    ) -> messages.RenewalReply:
        """Renew a certificate; the signature covers the listener's leaf that the peer was shown."""
        authority = self._open_authority()
        try:
            old = x509.load_pem_x509_certificate(ask.certificate.encode())
            signature = bytes.fromhex(ask.signature)
            key = old.public_key()
        except ValueError:
            raise PairingRefused("expected the certificate that is to be renewed") from None
        entry = authority.good(old)
        if entry is None or entry.name not in {peer.name for peer in self._config().peers}:
            raise PairingRefused("this certificate was not given out here, or was revoked")
        if entry.expires + GRACE_DAYS * DAY_SECONDS <= self._wall():
            raise PairingRefused(
                f"the certificate of {entry.name} expired more than {GRACE_DAYS:.0f} days ago: pair"
                f" again, with `linkd invite {entry.name}` on the hub and `linkd join` on that node"
            )
        lifetime = entry.expires - entry.issued
        if entry.expires - self._wall() > lifetime / 3 + _EARLY_SECONDS:
            raise PairingRefused("it is too early: a third of the certificate's time must be left")
        if not any(_is_signed(key, signature, leaf, ask.request) for leaf in shown):
            raise PairingRefused("the request is not signed by the certificate's key")
        request = _load_request(ask.request)
        if request.public_key() != key:
            raise PairingRefused("the request is not for the certificate's own key")
        return messages.RenewalReply(authority.renew(entry, request), self._authorities(shown[0]))

    # State

    @property
    def _pairing_dir(self) -> Path:
        return Path(self._config().node.state_dir) / DIRECTORY

    def _has_authority(self) -> bool:
        return self._authority is not None or (self._pairing_dir / "ca.key").exists()

    @property
    def _issued(self) -> list[Issued]:
        if self._has_authority():
            return self._open_authority().issued
        return list(shared_certificates(self._rows).values())

    def _open_authority(self) -> Authority:
        if self._authority is None:
            rows = self._rows if self._is_shared else None
            node = self._config().node.name
            self._authority = Authority(self._pairing_dir, node, self._wall, rows)
            self._share_authority(self._authority)
            self._warnings.pop("state", None)
        return self._authority

    def _peer_address(self, address: str | None) -> str:
        """Return `HOST:PORT` at which a new peer reaches this node."""
        listen = self._config().listen
        if listen is None:
            raise PairingRefused('nobody can dial this node: add [listen] with address = ":9443"')
        try:
            return public_address(listen.address, address)
        except ValueError as error:
            raise PairingRefused(str(error)) from None

    def _prepare_certificate(self, host: str) -> x509.Certificate:
        """Return the listener's certificate, valid for `host`; create authority and files."""
        listen, authority = self._config().listen, self._open_authority()
        assert listen is not None
        ours = authority.path("hub.crt")
        if listen.certificate is None or Path(listen.certificate) == ours:
            before = ours.read_bytes() if ours.exists() else b""
            hosts = own_hosts(self._config().node.name, listen.address)
            certificate, key = authority.hub_certificate([host, *hosts])
            if self._is_shared:
                self._rows.note(AUTHORITY, f"host/{host}", b"1")
            if listen.certificate is not None and certificate.read_bytes() != before:
                self._hooks.reload()
        ca = authority.path(AUTHORITY_FILE)
        if listen.certificate is None:
            raise PairingRefused(
                "pairing needs TLS. This node has its own certificate now: put these lines into"
                f' [listen], restart linkd, and invite again:\ncertificate = "{ours}"\n'
                f'key = "{key}"\nclient_ca = "{ca}"'
            )
        if listen.client_ca is None:
            raise PairingRefused(
                "put this line into [listen], reload, and invite again, so that peers may come with"
                f' certificates of this node\'s own authority:\nclient_ca = "{ca}"'
            )
        leaf = self._hooks.leaf()
        if leaf is None:
            raise PairingRefused("the listener has no TLS yet: restart linkd, and invite again")
        if not names_host(leaf, host):
            raise PairingRefused(
                f"the certificate in {listen.certificate} is not for {host}: name the address that"
                " peers dial with --address"
            )
        return leaf

    def _trust_anchor(self, leaf: x509.Certificate) -> tuple[x509.Certificate, bool]:
        """Return the certificate that verifies the listener's, and whether peers need it."""
        issuer = self._open_authority().signers.issuer_of(leaf)
        if issuer is not None:
            return issuer.certificate, True
        listen = self._config().listen
        assert listen is not None
        assert listen.certificate is not None
        top = load_certificates(listen.certificate)[-1]
        return top, top.subject == top.issuer

    def _authorities(self, leaf: x509.Certificate) -> tuple[str, ...]:
        """Return the authorities that a peer needs; none if ours do not sign the hub's."""
        signers = self._open_authority().signers
        issuer = signers.issuer_of(leaf)
        if issuer is None:
            return ()
        found = list(dict.fromkeys([issuer.certificate, *signers.current()]))
        return tuple(issuing.pem(each).decode() for each in found[: messages.MAX_AUTHORITIES])

    def _check_writable(self) -> None:
        """Refuse an invitation if the peer's file could not be written."""
        try:
            make_directory(self._directory, 0o750)
        except OSError as error:
            raise PairingRefused(f"{self._directory}: {error.strerror}: make it") from None
        if not os.access(self._directory, os.W_OK):
            raise PairingRefused(
                f"{self._directory}: the daemon must be able to write there the new peer's file"
            )

    def _terms(
        self, name: str, send: Sequence[str] | None, receive: Sequence[str] | None, relay: bool
    ) -> Terms:
        """Return the terms of a new peer; what is not given is as configured."""
        known = self._configured(name) or Terms((f"{name}.>",), (">",), False)
        terms = Terms(
            known.send if send is None else check_patterns(send),
            known.receive if receive is None else check_patterns(receive),
            relay or known.relay,
        )
        self._check_terms(name, terms)
        return terms

    def _check_terms(self, name: str, terms: Terms) -> None:
        """Refuse terms without effect: the peer's `[[peer]]` was written by hand."""
        known, file = self._configured(name), self._file(name)
        if known is None or known == terms:
            return
        # Any other text holds settings of the operator's, which a new file would lose.
        if not is_ours(file) or file.read_text() != known.table(name):
            raise PairingRefused(
                f"the [[peer]] {name} in the configuration has send = {list(known.send)}, receive ="
                f" {list(known.receive)} and relay = {str(known.relay).lower()}: invite it without"
                " other terms, or change them there and in the other node's [[peer]]"
            )

    def _configured(self, name: str) -> Terms | None:
        """Return the terms of a peer's `[[peer]]`, if it has one."""
        found = (peer for peer in self._config().peers if peer.name == name)
        return next((Terms(peer.send, peer.receive, peer.relay) for peer in found), None)

    def _file(self, name: str) -> Path:
        return self._directory / f"{name}.toml"

    # What other instances have changed

    def learn(self) -> None:
        """Apply what other instances have changed: certificates, new peers, names of the hub."""
        try:
            for name in self._learn_certificates():
                events.emit("pairing.revoked", name=name, detail="at another instance")
                self._hooks.revoked(name)
            self._learn_hosts()
            self._learn_peers()
            if self._has_authority():
                self._check_authority()
        except (LinkdError, OSError) as error:
            self._warnings["instances"] = f"what other instances have paired: {error}"
        else:
            self._warnings.pop("instances", None)

    def _learn_now(self) -> None:
        """Learn all that was changed until now; raise Unavailable without the database."""
        if self._is_shared:
            self._rows.refresh()
            self.learn()

    def _learn_certificates(self) -> list[str]:
        """Refuse what was revoked elsewhere; return the peers that have no certificate any more."""
        if not self._is_shared:
            return []
        if self._authority is not None:
            fresh = self._authority.learn()
            self._share_authority(self._authority)
        else:
            shared = shared_certificates(self._rows).values()
            serials = IssuedState(1, tuple(shared)).revoked() - self._elsewhere
            self._elsewhere |= serials
            fresh = {each.name for each in shared if int(each.serial, 16) in serials}
        good = {each.name for each in self._issued if each.revoked is None}
        return sorted(fresh - good)  # the others were paired again

    def _learn_hosts(self) -> None:
        """Let this instance's certificate be for all names that peers dial."""
        listen, authority = self._config().listen, self._authority
        if listen is None or authority is None or authority.path("hub.crt") != _path(listen):
            return
        prefix, before = "host/", authority.path("hub.crt").read_bytes()
        known = [key for key in self._rows.get(AUTHORITY) if key.startswith(prefix)]
        authority.hub_certificate([key.removeprefix(prefix) for key in known])
        if authority.path("hub.crt").read_bytes() != before:
            self._hooks.reload()

    def _learn_peers(self) -> None:
        """Write the files of new peers."""
        known = self._known_peers()
        agreed = {
            name: found
            for name, value in self._rows.get(TERMS).items()
            if (found := decode_agreed(name, value)) and known.get(name) != found.invitation
        }
        wrote, refused = False, list[str]()
        for name, found in agreed.items():
            try:
                wrote |= self._write_peer(name, found)
            except PairingRefused as error:
                refused.append(str(error))
        if wrote:
            self._hooks.reload()
        if refused:
            raise PairingRefused("; ".join(refused))

    def _known_peers(self) -> dict[str, str]:
        """Return by which invitation the files here were written, by the peers' names."""
        try:
            content = (self._pairing_dir / PEERS_FILE).read_bytes()
            return msgspec.json.decode(content, type=dict[str, str])
        except (OSError, msgspec.DecodeError):
            return {}

    def _write_peer(self, name: str, agreed: Agreed) -> bool:
        """Write a peer's file, once for each pairing: it may be changed or deleted later."""
        is_other = self._configured(name) != agreed.terms
        if is_other:
            self._check_terms(name, agreed.terms)
            self._check_writable()
            content = agreed.terms.table(name).encode()
            write_atomically(self._file(name), content, 0o640)
        if self._is_shared:
            known = self._known_peers() | {name: agreed.invitation}
            make_directory(self._pairing_dir, 0o700)
            write_atomically(self._pairing_dir / PEERS_FILE, msgspec.json.encode(known), 0o600)
        return is_other

    def _share_authority(self, authority: Authority) -> None:
        """Let other instances know which authority this node has, if none has one yet."""
        if self._rows.instance is not None and self._rows.authority() is None:
            ours = KnownAuthority(public_hash(authority.signers.all[0].key), self._rows.instance)
            self._rows.note(AUTHORITY, "key", encode(ours))

    def _check_authority(self) -> None:
        """Refuse to sign where the key of the node's authority is not here."""
        known = self._rows.authority()
        if known is None:
            return
        if self._has_authority():
            ours = public_hash(self._open_authority().signers.all[0].key)
            what = "has another authority than"
        else:
            ours, what = "", "has not the authority of"
        if ours != known.key:
            raise PairingRefused(
                f"this instance {what} the instance {known.instance}, which pairs its peers:"
                f" copy the files of {self._pairing_dir} from there to here, and restart linkd;"
                " private keys are not in the database"
            )


def _path(listen: ListenSettings) -> Path | None:
    return None if listen.certificate is None else Path(listen.certificate)


def _load_request(pem: str) -> x509.CertificateSigningRequest:
    try:
        return x509.load_pem_x509_csr(pem.encode())
    except ValueError:
        raise PairingRefused("expected a certificate signing request") from None


def _is_signed(key: object, signature: bytes, leaf: x509.Certificate, request: str) -> bool:
    """Return whether a renewal was signed with `key` on a connection that showed `leaf`."""
    text = messages.renewal_text(leaf.public_bytes(serialization.Encoding.DER), request)
    try:
        assert isinstance(key, ec.EllipticCurvePublicKey)
        key.verify(signature, text, ec.ECDSA(hashes.SHA256()))
    except _INVALID:
        return False
    return True


def _refusal(status: int, error: str, message: str) -> tuple[int, bytes]:
    return status, msgspec.json.encode(messages.RefusalReply(error, message))


PREFIX: Final = "/v1/pairing"

Patterns = Annotated[tuple[Annotated[str, Meta(max_length=255)], ...], Meta(max_length=256)]


class Invite(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /v1/pairing/invite`; see `PairingServer.invite`."""

    name: Annotated[str, Meta(max_length=63)]
    address: Annotated[str, Meta(max_length=300)] | None = None
    send: Patterns | None = None
    receive: Patterns | None = None
    relay: bool = False


def local_call(pairing: PairingServer, method: str, path: str, body: bytes) -> tuple[int, bytes]:
    """Answer a call below `/v1/pairing`; return status and body (JSON). For the unix socket only.

    Args:
        pairing: The hub's side.
        method: As in HTTP.
        path: The whole path, still quoted.
        body: The request's body.
    """
    words = [unquote(word) for word in path.removeprefix(PREFIX).strip("/").split("/")]
    status = 200
    answer: dict[str, object]
    try:
        match (method, words):
            case ("POST", ["invite"]):
                ask = msgspec.json.decode(body, type=Invite)
                code = pairing.invite(ask.name, ask.address, ask.send, ask.receive, ask.relay)
                status, answer = 201, {"code": code, "expires_seconds": CODE_SECONDS}
            case ("GET", ["peers"]):
                answer = {"peers": pairing.peers()}
            case ("POST", ["peers", name, "revoke"]):
                answer = {"certificates": pairing.revoke(name)}
            case _:
                return _refusal(404, "not-found", f"there is no {method} {path[:200]}")
    except msgspec.DecodeError as error:
        return _refusal(400, "malformed", str(error))
    except PairingRefused as error:
        return _refusal(409, "pairing-refused", str(error))
    except (LinkdError, OSError) as error:
        return _refusal(500, "pairing-failed", str(error))
    return status, msgspec.json.encode(answer)
