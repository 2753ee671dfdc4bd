"""The hub's end of pairing: invitations, answers to `POST /pair`, peers, revocation."""

from __future__ import annotations

import hmac
import os
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from linkd import events
from linkd.config import Config
from linkd.config.settings import NAME_PATTERN
from linkd.errors import ConfigError, Unavailable
from linkd.net.certificates import load_certificates, names_host
from linkd.net.limits import Buckets
from linkd.net.tls import AUTHORITY_FILE
from linkd.pairing import messages
from linkd.pairing.addresses import host_of, own_hosts, public_address
from linkd.pairing.authority import DIRECTORY, Authority
from linkd.pairing.code import SECRET_BYTES, Code, encode_code, fingerprint
from linkd.pairing.files import make_directory, write_whole
from linkd.pairing.terms import Hooks, PairedPeer, PairingRefused, check_patterns, peer_table

CODE_SECONDS: Final = 600.0
MAX_INVITATIONS: Final = 256
MAX_WRONG_PROOFS: Final = 10
AUTHORITY_WARN_DAYS: Final = 180.0
_EARLY_SECONDS: Final = 2 * 86_400.0
"""The clocks of two hosts differ: so much earlier a renewal is taken."""

_INVALID = (InvalidSignature, AssertionError, ValueError)


@dataclass
class _Invitation:
    """A code that was given out, and what became of it."""

    code: Code
    ends: float
    send: tuple[str, ...]
    receive: tuple[str, ...]
    relay: bool = False
    wrong: int = 0
    answered: tuple[messages.AskJoin, messages.Joined] | None = None


class Pairing:
    """The hub's end.

    Args:
        hooks: What it needs of the daemon.
        directory: Where the configuration's further files lie: `/etc/linkd/linkd.d`.
        clock: Returns monotonic seconds.
        wall: Returns Unix seconds.
    """

    def __init__(
        self,
        hooks: Hooks,
        directory: Path,
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self._hooks = hooks
        self._directory = directory
        self._clock = clock
        self._wall = wall
        self._invitations: dict[str, _Invitation] = {}
        self._authority: Authority | None = None
        self._strangers = Buckets(rate=1.0, burst=10.0, total_rate=20.0, total_burst=40.0)

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
            address: `HOST[:PORT]` at which it reaches this node; None: what this host is known by.
            send: Patterns of what it gets; None: what begins with its name.
            receive: Patterns of what it may send; None: everything.
            relay: It may pass on what began at other nodes.

        Raises:
            PairingRefused: This node can't be paired with as it is; the message says what to do.
        """
        if not re.fullmatch(NAME_PATTERN, name) or name == self._config.node.name:
            raise PairingRefused(
                f"{name!r} can't be invited: expected another node's name, of a-z, 0-9, `.` and `-`"
            )
        sends = check_patterns([f"{name}.>"] if send is None else send)
        receives = check_patterns([">"] if receive is None else receive)
        at = self._reachable(address)
        try:
            self._open_authority().check_valid()
        except (ConfigError, Unavailable) as error:
            raise PairingRefused(str(error)) from None
        leaf = self._provide(host_of(at))
        self._check_writable()
        self._forget()
        if len(self._invitations) >= MAX_INVITATIONS:
            raise PairingRefused(f"{MAX_INVITATIONS} codes are out: wait until some have ended")
        for each in self._invitations.values():
            if each.code.name == name and each.answered is None:
                each.ends = min(each.ends, self._clock())
        vouching, _ = self._vouching(leaf)
        der = vouching.public_bytes(serialization.Encoding.DER)
        code = Code(name, at, fingerprint(der), secrets.token_bytes(SECRET_BYTES))
        ends = self._clock() + CODE_SECONDS
        self._invitations[code.invitation] = _Invitation(code, ends, sends, receives, relay)
        events.emit("pairing.invited", name=name, expires_seconds=CODE_SECONDS)
        return encode_code(code)

    def peers(self) -> list[PairedPeer]:
        """Return who was invited or paired, by name; each once, with what holds now."""
        self._forget()
        configured = {peer.name for peer in self._config.peers}
        found: dict[str, PairedPeer] = {}
        now, wall = self._clock(), self._wall()
        issued = self._open_authority().issued if self._has_authority() else []
        for each in issued:
            state = "revoked" if each.revoked else "paired" if each.expires > wall else "expired"
            left = max(0.0, each.expires - wall)
            found[each.name] = PairedPeer(each.name, state, left, each.name in configured)
        for invitation in self._invitations.values():
            name = invitation.code.name
            known = found.get(name)
            open_still = invitation.answered is None and invitation.ends > now
            if open_still and (known is None or known.state != "paired"):
                found[name] = PairedPeer(name, "invited", invitation.ends - now, name in configured)
        return [found[name] for name in sorted(found)]

    def revoke(self, name: str) -> int:
        """Take back every certificate and code of `name`, at once; return how many certificates.

        Its `[[peer]]` and what is owed to it stay, until its file is deleted or it is invited
        again.

        Raises:
            PairingRefused: No node of that name was invited or paired.
        """
        codes = [each for each in self._invitations.values() if each.code.name == name]
        for each in codes:
            each.ends, each.answered = self._clock(), None
        known = self._has_authority() and any(
            each.name == name for each in self._open_authority().issued
        )
        if not (codes or known):
            raise PairingRefused(f"no node {name!r} was paired here: see `linkd peers`")
        taken = self._open_authority().revoke(name) if known else []
        events.emit("pairing.revoked", name=name)
        self._hooks.revoked(name)
        return len(taken)

    def renew_own(self) -> None:
        """Renew the hub's own certificate where it comes from its own authority and ends soon.

        It warns where the authority itself ends soon: all certificates end with it.

        Raises:
            ConfigError, Unavailable, OSError: It could not be done; the one before stays.
        """
        listen = self._config.listen
        if listen is None or listen.certificate is None or not self._has_authority():
            return
        authority = self._open_authority()
        left = authority.expires - self._wall()
        if left < AUTHORITY_WARN_DAYS * 86_400:
            events.emit(
                "tls.expiring",
                certificate=str(authority.path(AUTHORITY_FILE)),
                expires_seconds=round(left),
                days=round(left / 86_400, 1),
                detail="this node's own authority ends, and every certificate that it has signed:"
                f" then stop linkd, remove {self._place}, start it and pair all peers again",
            )
        if Path(listen.certificate) == authority.path("hub.crt"):
            authority.hub_certificate(())

    # What a joining node asks for, over the listener's port

    @property
    def posts(self) -> dict[str, Callable[[bytes, str], tuple[int, bytes]]]:
        """What the listener dispatches: path, and what answers body and address there."""
        path = messages.PATH
        return {path: lambda body, address: self.post(path, body, address, self._clock())}

    def post(self, path: str, body: bytes, address: str, now: float) -> tuple[int, bytes]:
        """Answer `POST /pair`; return status and body (JSON).

        Args:
            path: The request's path.
            body: Its body, at most 16 KiB.
            address: Where it came from, for the log.
            now: Monotonic seconds.
        """
        if path != messages.PATH:
            return _no(404, "no-such-path", "expected POST /pair")
        if self._strangers.take(address, now):
            return _no(429, "busy", "too many pairing requests: try again in a few seconds")
        try:
            ask = msgspec.json.decode(body[: messages.MAX_BODY_BYTES + 1], type=messages.Ask)
        except msgspec.DecodeError:
            return _no(400, "malformed", "expected a JSON object of docs/protocol.md, Pairing")
        try:
            return 200, msgspec.json.encode(self._answer(ask, now))
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
            return _no(403, "refused", str(refusal))
        except (ConfigError, Unavailable, OSError) as error:
            events.emit("pairing.refused", "error", address=address, detail=str(error))
            return _no(503, "unavailable", "the hub could not do it: see its log")

    def _answer(self, ask: messages.Ask, now: float) -> msgspec.Struct:
        leaf = self._hooks.leaf()
        if leaf is None or not self._has_authority():
            raise PairingRefused("nobody was invited here")
        if isinstance(ask, messages.AskAuthority):
            vouching, _ = self._vouching(leaf)
            pem = vouching.public_bytes(serialization.Encoding.PEM).decode()
            return messages.Vouched(pem, self._config.node.name)
        if isinstance(ask, messages.AskRenewal):
            return self._renew(ask, leaf)
        return self._join(ask, leaf, now)

    def _join(self, ask: messages.AskJoin, leaf: x509.Certificate, now: float) -> messages.Joined:
        invitation = self._invitations.get(ask.invitation)
        if invitation is None:
            raise PairingRefused(
                "the code is not known here: it is wrong, or the hub has restarted"
            )
        if invitation.answered is not None:
            if hmac.compare_digest(invitation.answered[0].proof, ask.proof):
                return invitation.answered[1]
            raise PairingRefused("the code was used before: each can be used once")
        if now >= invitation.ends:
            raise PairingRefused("the code has expired or was taken back: make a new one")
        secret, der = invitation.code.secret, leaf.public_bytes(serialization.Encoding.DER)
        expected = messages.join_proof(secret, der, ask)
        if not hmac.compare_digest(expected.encode(), ask.proof.encode("utf-8", "replace")):
            invitation.wrong += 1
            if invitation.wrong >= MAX_WRONG_PROOFS:
                invitation.ends = now
            raise PairingRefused("the proof does not fit the code: someone may stand in between")
        if ask.name != invitation.code.name:
            raise PairingRefused(f"the code is for {invitation.code.name}, not for {ask.name}")
        certificate = self._open_authority().issue(_request(ask.request), ask.name)
        self._write_peer(invitation)
        answer = messages.Joined(
            node=self._config.node.name,
            certificate=certificate,
            send=invitation.receive,
            receive=invitation.send,
            private=self._vouching(leaf)[1],
            proof="",
        )
        proof = messages.hub_proof(secret, der, ask, answer)
        answer = msgspec.structs.replace(answer, proof=proof)
        invitation.answered = (ask, answer)
        events.emit("pairing.joined", name=ask.name)
        self._hooks.reload()
        return answer

    def _renew(self, ask: messages.AskRenewal, leaf: x509.Certificate) -> messages.Renewed:
        authority = self._open_authority()
        try:
            old = x509.load_pem_x509_certificate(ask.certificate.encode())
            signature = bytes.fromhex(ask.signature)
            key = old.public_key()
        except ValueError:
            raise PairingRefused("expected the certificate that is to be renewed") from None
        entry = authority.good(old)
        if entry is None or entry.name not in {peer.name for peer in self._config.peers}:
            raise PairingRefused("this certificate was not given out here, or was revoked")
        if entry.expires <= self._wall():
            raise PairingRefused("the certificate has expired: pair again with a new code")
        lifetime = entry.expires - entry.issued
        if entry.expires - self._wall() > lifetime / 3 + _EARLY_SECONDS:
            raise PairingRefused("it is too early: a third of the certificate's time must be left")
        text = messages.renewal_text(leaf.public_bytes(serialization.Encoding.DER), ask.request)
        try:
            assert isinstance(key, ec.EllipticCurvePublicKey)
            key.verify(signature, text, ec.ECDSA(hashes.SHA256()))
        except _INVALID:
            raise PairingRefused("the request is not signed by the certificate's key") from None
        request = _request(ask.request)
        if request.public_key() != key:
            raise PairingRefused("the request is not for the certificate's own key")
        return messages.Renewed(authority.renew(entry, request))

    # What it stands on

    @property
    def _config(self) -> Config:
        return self._hooks.config()

    @property
    def _place(self) -> Path:
        return Path(self._config.node.state_dir) / DIRECTORY

    def _has_authority(self) -> bool:
        return self._authority is not None or (self._place / "ca.key").exists()

    def _open_authority(self) -> Authority:
        if self._authority is None:
            self._authority = Authority(self._place, self._config.node.name, self._wall)
        return self._authority

    def _reachable(self, address: str | None) -> str:
        """Return `HOST:PORT` at which a new peer reaches this node."""
        listen = self._config.listen
        if listen is None:
            raise PairingRefused('nobody can dial this node: add [listen] with address = ":9443"')
        try:
            return public_address(listen.address, address)
        except ValueError as error:
            raise PairingRefused(str(error)) from None

    def _provide(self, host: str) -> x509.Certificate:
        """Return the listener's certificate, which must be for `host`; make authority and files."""
        listen, authority = self._config.listen, self._open_authority()
        assert listen is not None
        ours = authority.path("hub.crt")
        if listen.certificate is None or Path(listen.certificate) == ours:
            before = ours.read_bytes() if ours.exists() else b""
            hosts = own_hosts(self._config.node.name, listen.address)
            certificate, key = authority.hub_certificate([host, *hosts])
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

    def _vouching(self, leaf: x509.Certificate) -> tuple[x509.Certificate, bool]:
        """Return what vouches for the listener's certificate, and whether peers need it told."""
        authority = self._open_authority().certificate
        try:
            leaf.verify_directly_issued_by(authority)
        except (ValueError, TypeError, InvalidSignature):
            listen = self._config.listen
            assert listen is not None
            assert listen.certificate is not None
            top = load_certificates(listen.certificate)[-1]
            return top, top.subject == top.issuer
        return authority, True

    def _check_writable(self) -> None:
        """Refuse before a code is out where its peer could not be written down."""
        try:
            make_directory(self._directory, 0o750)
        except OSError as error:
            raise PairingRefused(f"{self._directory}: {error.strerror}: make it") from None
        if not os.access(self._directory, os.W_OK):
            raise PairingRefused(
                f"{self._directory}: the daemon must be able to write there the new peer's file"
            )

    def _write_peer(self, invitation: _Invitation) -> None:
        """Write `linkd.d/NAME.toml`, where no `[[peer]]` of that name stands yet."""
        name = invitation.code.name
        if name in {peer.name for peer in self._config.peers}:
            return
        more = (("relay", invitation.relay),)
        text = peer_table(name, invitation.send, invitation.receive, more)
        write_whole(self._directory / f"{name}.toml", text.encode(), 0o640)

    def _forget(self) -> None:
        """Drop invitations that ended an hour ago."""
        limit = self._clock() - 3600.0
        for key in [key for key, each in self._invitations.items() if each.ends < limit]:
            del self._invitations[key]


def _request(pem: str) -> x509.CertificateSigningRequest:
    try:
        return x509.load_pem_x509_csr(pem.encode())
    except ValueError:
        raise PairingRefused("expected a certificate signing request") from None


def _no(status: int, error: str, message: str) -> tuple[int, bytes]:
    return status, msgspec.json.encode(messages.Refused(error, message))
