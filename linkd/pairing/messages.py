"""What goes over `POST /pair`: JSON objects told apart by `ask`; docs/protocol.md, "Pairing"."""

from __future__ import annotations

import hashlib
import hmac
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from linkd.net.identity import encode_fields

MAX_BODY_BYTES: Final = 16_384
MAX_AUTHORITIES: Final = 4
PATH: Final = "/pair"

Short = Annotated[str, Meta(max_length=128)]
Pem = Annotated[str, Meta(max_length=8192)]
Authorities = Annotated[tuple[Pem, ...], Meta(max_length=MAX_AUTHORITIES)]


class AskAuthority(msgspec.Struct, frozen=True, tag_field="ask", tag="authority"):
    """Which certificate vouches for the hub? The one who asks knows its fingerprint."""


class AskJoin(msgspec.Struct, frozen=True, tag_field="ask", tag="join"):
    """A certificate, please, by this invitation.

    Args:
        invitation: Which one (`Code.invitation`).
        name: The node that joins.
        request: Its certificate signing request, PEM.
        proof: `join_proof` of all that.
    """

    invitation: Short
    name: Short
    request: Pem
    proof: Short


class AskRenewal(msgspec.Struct, frozen=True, tag_field="ask", tag="renewal"):
    """A new certificate in place of one that ends soon.

    Args:
        certificate: The one that the node has, PEM.
        request: A signing request, PEM.
        signature: By the key of `certificate` over `renewal_text`, ECDSA with SHA-256, hexadecimal.
    """

    certificate: Pem
    request: Pem
    signature: Annotated[str, Meta(max_length=512)]


Ask = AskAuthority | AskJoin | AskRenewal


class Vouched(msgspec.Struct, frozen=True):
    """The certificate that vouches for the hub, an authority's or its own, and its name."""

    certificate: Pem
    node: Short


class Joined(msgspec.Struct, frozen=True):
    """Welcome.

    Args:
        node: The hub's name.
        certificate: The new node's certificate, PEM.
        send: What of its log the node should send.
        receive: What it will get.
        private: The hub's certificate is signed by what vouched for it; else by a public authority.
        proof: `hub_proof` of all that.
        authorities: Those that may sign the hub's certificate, PEM, each alone: the one in use and,
            in good time, its successor. Empty where another authority signs the hub's certificate.
    """

    node: Short
    certificate: Pem
    send: tuple[str, ...]
    receive: tuple[str, ...]
    private: bool
    proof: Short
    authorities: Authorities = ()


class Renewed(msgspec.Struct, frozen=True):
    """The new certificate, PEM, and the authorities as in `Joined`."""

    certificate: Pem
    authorities: Authorities = ()


class Refused(msgspec.Struct, frozen=True):
    """No, and why."""

    error: Short
    message: Annotated[str, Meta(max_length=1024)]


def join_proof(secret: bytes, leaf: bytes, ask: AskJoin) -> str:
    """Return the joining node's proof: it knows the secret, and talks to the holder of `leaf`.

    Args:
        secret: The code's 80 bits.
        leaf: The certificate, DER, that the hub shows in this TLS connection.
        ask: The request; its `proof` does not count.
    """
    parts = ("join", _digest(leaf), ask.invitation, ask.name, ask.request)
    return hmac.new(secret, encode_fields(*parts), hashlib.sha256).hexdigest()


def hub_proof(secret: bytes, leaf: bytes, ask: AskJoin, answer: Joined) -> str:
    """Return the hub's proof that this answer to `ask` comes from who made the code."""
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
    """Return what the old key signs: the hub's certificate, DER, and the new request."""
    return encode_fields("renewal", _digest(leaf), request)


def _digest(leaf: bytes) -> str:
    return hashlib.sha256(leaf).hexdigest()
