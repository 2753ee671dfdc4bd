"""The pairing protocol: the code, the messages, the agreed terms."""

from __future__ import annotations

import hashlib
import hmac
import re
from base64 import b32decode, b32encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from msgspec import Meta

from linkd.config import Config
from linkd.config.settings import NAME_PATTERN
from linkd.errors import ConfigError, LinkdError
from linkd.net.auth import encode_fields
from linkd.protocol.channels import is_pattern

SECRET_BYTES: Final = 10
FINGERPRINT_BYTES: Final = 10
_VERSION: Final = 1
_CHECK_BYTES: Final = 3
_GROUP: Final = 5
_MISREAD: Final = str.maketrans({"0": "O", "1": "I", "8": "B"})
_ADDRESS = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9.-]+):[0-9]{1,5}")


class Code(msgspec.Struct, frozen=True):
    """The content of a pairing code.

    Args:
        name: The node that is invited.
        address: The hub's `HOST:PORT` or `[IPV6]:PORT`.
        fingerprint: The first 10 bytes of the SHA-256 of the hub's authenticating certificate.
        secret: 80 random bits.
    """

    name: str
    address: str
    fingerprint: bytes
    secret: bytes

    @property
    def invitation(self) -> str:
        """The name of the invitation on the wire; it reveals nothing of the secret."""
        return hashlib.sha256(b"linkd invitation\0" + self.secret).hexdigest()[:16]

    @property
    def url(self) -> str:
        """The URL that the joined node dials."""
        return f"wss://{self.address}/link"


def fingerprint(certificate: bytes) -> bytes:
    """Return the short fingerprint of a certificate in DER form."""
    return hashlib.sha256(certificate).digest()[:FINGERPRINT_BYTES]


def encode_code(code: Code) -> str:
    """Return the code for people: groups of five letters and digits."""
    name = code.name.encode()
    raw = bytes((_VERSION,)) + code.secret + code.fingerprint
    raw += bytes((len(name),)) + name + code.address.encode()
    text = b32encode(raw + _check(raw)).decode().rstrip("=")
    return "-".join(text[at : at + _GROUP] for at in range(0, len(text), _GROUP))


def decode_code(text: str) -> Code:
    """Decode a code, however it was typed: case, spaces, 0 for O, 1 for I, 8 for B.

    Raises:
        ConfigError: It is no code, is mistyped or incomplete, or comes from a newer linkd.
    """
    letters = re.sub(r"[\s-]", "", text).upper().translate(_MISREAD)
    try:
        raw = b32decode(letters + "=" * (-len(letters) % 8))
    except ValueError:
        raise ConfigError("this is no code of `linkd invite`: copy it again, whole") from None
    raw, check = raw[:-_CHECK_BYTES], raw[-_CHECK_BYTES:]
    start = 1 + SECRET_BYTES + FINGERPRINT_BYTES
    if len(raw) <= start or check != _check(raw):
        raise ConfigError("the code is mistyped or incomplete: copy it again, whole")
    if raw[0] != _VERSION:
        raise ConfigError("the code was made by another version of linkd: upgrade this node")
    end = start + 1 + raw[start]
    try:
        name, address = raw[start + 1 : end].decode("ascii"), raw[end:].decode("ascii")
    except UnicodeDecodeError:
        name = address = ""
    if not re.fullmatch(NAME_PATTERN, name) or not _ADDRESS.fullmatch(address):
        raise ConfigError("the code holds no name and address: make a new one")
    return Code(name, address, raw[1 + SECRET_BYTES : start], raw[1 : 1 + SECRET_BYTES])


def _check(raw: bytes) -> bytes:
    """Return the checksum that detects a mistyped letter."""
    return hashlib.sha256(b"linkd code\0" + raw).digest()[:_CHECK_BYTES]


MARK: Final = "# Written by linkd's pairing."


class PairingRefused(LinkdError):
    """An invitation or a request is refused; the message has what to do."""


class PairedPeer(msgspec.Struct, frozen=True):
    """One row of `linkd peers`.

    Args:
        name: The peer.
        state: `invited`, `paired`, `revoked` or `expired`.
        expires_seconds: Seconds until the code or the certificate expires.
        configured: Whether the configuration has a `[[peer]]` of that name.
    """

    name: str
    state: str
    expires_seconds: float
    configured: bool


@dataclass(frozen=True)
class PairingHooks:
    """Callbacks of pairing into the daemon.

    Args:
        config: Returns the configuration in force.
        leaf: Returns the listener's current certificate; None without TLS.
        reload: Reloads the configuration, as SIGHUP does.
        revoked: Closes the connection of that peer at once, and reloads the listener's TLS.
        leaf_before: Returns the listener's certificate before the current one; None where there
            was none. A connection that began with it may still ask.
    """

    config: Callable[[], Config]
    leaf: Callable[[], x509.Certificate | None]
    reload: Callable[[], None]
    revoked: Callable[[str], None]
    leaf_before: Callable[[], x509.Certificate | None] = lambda: None


def peer_table(
    name: str,
    send: Sequence[str],
    receive: Sequence[str],
    more: Sequence[tuple[str, bool | str | tuple[str, ...]]],
) -> str:
    """Return a file with one `[[peer]]`."""
    rows: list[tuple[str, object]] = [("name", name), ("send", send), ("receive", receive), *more]
    lines = [f"{key} = {msgspec.json.encode(value).decode()}" for key, value in rows]
    return "\n".join([MARK, "[[peer]]", *lines, ""])


class Terms(NamedTuple):
    """The channels that a peer receives and may send, and whether it may relay."""

    send: tuple[str, ...]
    receive: tuple[str, ...]
    relay: bool

    def table(self, name: str) -> str:
        """Return the hub's file for a peer."""
        return peer_table(name, self.send, self.receive, (("relay", self.relay),))


def is_ours(file: Path) -> bool:
    """Return whether pairing wrote this file of the configuration, so that it may replace it."""
    return file.exists() and file.read_text().startswith(MARK)


def check_patterns(patterns: Sequence[str]) -> tuple[str, ...]:
    """Return `patterns`; raise PairingRefused if one is malformed."""
    for pattern in patterns:
        if not is_pattern(pattern):
            raise PairingRefused(f"{pattern[:80]!r} is not a channel pattern")
    return tuple(patterns)


MAX_BODY_BYTES: Final = 16_384
MAX_AUTHORITIES: Final = 4
PATH: Final = "/pair"

Short = Annotated[str, Meta(max_length=128)]
Pem = Annotated[str, Meta(max_length=8192)]
Authorities = Annotated[tuple[Pem, ...], Meta(max_length=MAX_AUTHORITIES)]


class AuthorityRequest(msgspec.Struct, frozen=True, tag_field="ask", tag="authority"):
    """Asks for the certificate that authenticates the hub, whose fingerprint the code has."""


class JoinRequest(msgspec.Struct, frozen=True, tag_field="ask", tag="join"):
    """Asks for a certificate by an invitation.

    Args:
        invitation: Its name (`Code.invitation`).
        name: The node that joins.
        request: Its certificate signing request, PEM.
        proof: `join_proof` of the fields above.
    """

    invitation: Short
    name: Short
    request: Pem
    proof: Short


class RenewalRequest(msgspec.Struct, frozen=True, tag_field="ask", tag="renewal"):
    """Asks for a new certificate in place of one that expires soon.

    Args:
        certificate: The node's current certificate, PEM.
        request: A signing request, PEM.
        signature: By the key of `certificate` over `renewal_text`, ECDSA with SHA-256, hexadecimal.
    """

    certificate: Pem
    request: Pem
    signature: Annotated[str, Meta(max_length=512)]


Ask = AuthorityRequest | JoinRequest | RenewalRequest


class AuthorityReply(msgspec.Struct, frozen=True):
    """The certificate that authenticates the hub, an authority's or its own, and the hub's name."""

    certificate: Pem
    node: Short


class JoinReply(msgspec.Struct, frozen=True):
    """The certificate and terms of the new node.

    Args:
        node: The hub's name.
        certificate: The new node's certificate, PEM.
        send: The channels that the node should send.
        receive: The channels that it will receive.
        private: The authenticating certificate signed the hub's; else a public authority did.
        proof: `hub_proof` of this reply.
        authorities: Those that may sign the hub's certificate, one PEM each: the current one and,
            well before it expires, its successor. Empty if another authority signs it.
    """

    node: Short
    certificate: Pem
    send: tuple[str, ...]
    receive: tuple[str, ...]
    private: bool
    proof: Short
    authorities: Authorities = ()


class RenewalReply(msgspec.Struct, frozen=True):
    """The new certificate, PEM, and the authorities as in `JoinReply`."""

    certificate: Pem
    authorities: Authorities = ()


class RefusalReply(msgspec.Struct, frozen=True):
    """The reason of a refusal."""

    error: Short
    message: Annotated[str, Meta(max_length=1024)]


def join_proof(secret: bytes, leaf: bytes, ask: JoinRequest) -> str:
    """Return the joining node's proof that it knows the secret and talks to the holder of `leaf`.

    Args:
        secret: The code's 80 bits.
        leaf: The certificate, DER, that the hub shows in this TLS connection.
        ask: The request; its `proof` is not covered.
    """
    parts = ("join", _digest(leaf), ask.invitation, ask.name, ask.request)
    return hmac.new(secret, encode_fields(*parts), hashlib.sha256).hexdigest()


def der_of(leaf: x509.Certificate) -> bytes:
    """Return a certificate in DER form."""
    return leaf.public_bytes(serialization.Encoding.DER)


def proved(
    secret: bytes, ask: JoinRequest, shown: list[x509.Certificate]
) -> x509.Certificate | None:
    """Return the listener's leaf for which a proof fits a code; None if it fits none."""
    proof = ask.proof.encode("utf-8", "replace")
    for leaf in shown:
        if hmac.compare_digest(join_proof(secret, der_of(leaf), ask).encode(), proof):
            return leaf
    return None


def hub_proof(secret: bytes, leaf: bytes, ask: JoinRequest, answer: JoinReply) -> str:
    """Return the hub's proof that this answer to `ask` comes from the creator of the code."""
    parts = (
        "hub",
        _digest(leaf),
        ask.proof,
        answer.node,
        answer.certificate,
        "private" if answer.private else "public",
        " ".join(answer.send),
        " ".join(answer.receive),
        *answer.authorities,
    )
    return hmac.new(secret, encode_fields(*parts), hashlib.sha256).hexdigest()


def renewal_text(leaf: bytes, request: str) -> bytes:
    """Return the text that the old key signs: the hub's certificate, DER, and the new request."""
    return encode_fields("renewal", _digest(leaf), request)


def _digest(leaf: bytes) -> str:
    return hashlib.sha256(leaf).hexdigest()
