"""Pairing as people ask for it: calls on the daemon's unix socket, below `/v1/pairing`."""

from __future__ import annotations

from typing import Annotated, Final
from urllib.parse import unquote

import msgspec
from msgspec import Meta

from linkd.errors import LinkdError
from linkd.pairing.hub import CODE_SECONDS, Pairing
from linkd.pairing.terms import PairedPeer, PairingRefused

PREFIX: Final = "/v1/pairing"

Patterns = Annotated[tuple[Annotated[str, Meta(max_length=255)], ...], Meta(max_length=256)]


class Invite(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /v1/pairing/invite`; see `Pairing.invite`."""

    name: Annotated[str, Meta(max_length=63)]
    address: Annotated[str, Meta(max_length=300)] | None = None
    send: Patterns | None = None
    receive: Patterns | None = None
    relay: bool = False


class Invited(msgspec.Struct, frozen=True):
    """Its answer: the code, and for how many seconds it is good."""

    code: str
    expires_seconds: float


class Peers(msgspec.Struct, frozen=True):
    """The answer of `GET /v1/pairing/peers`."""

    peers: list[PairedPeer]


class Revoked(msgspec.Struct, frozen=True):
    """The answer of `POST …/peers/NAME/revoke`: how many certificates the listener refuses now."""

    certificates: int


class _Problem(msgspec.Struct, frozen=True):
    error: str
    message: str


def local_call(pairing: Pairing, method: str, path: str, body: bytes) -> tuple[int, bytes]:
    """Answer a call below `/v1/pairing`; return status and body (JSON). For the unix socket only.

    Args:
        pairing: The hub's end.
        method: As in HTTP.
        path: The whole path, still quoted.
        body: The request's body.
    """
    words = [unquote(word) for word in path.removeprefix(PREFIX).strip("/").split("/")]
    answer: msgspec.Struct
    try:
        match (method, words):
            case ("POST", ["invite"]):
                ask = msgspec.json.decode(body, type=Invite)
                code = pairing.invite(ask.name, ask.address, ask.send, ask.receive, ask.relay)
                answer = Invited(code, CODE_SECONDS)
            case ("GET", ["peers"]):
                answer = Peers(pairing.peers())
            case ("POST", ["peers", name, "revoke"]):
                answer = Revoked(pairing.revoke(name))
            case _:
                return _problem(404, "not-found", f"there is no {method} {path[:200]}")
    except msgspec.DecodeError as error:
        return _problem(400, "malformed", str(error))
    except PairingRefused as error:
        return _problem(409, "pairing-refused", str(error))
    except (LinkdError, OSError) as error:
        return _problem(500, "pairing-failed", str(error))
    return (201 if isinstance(answer, Invited) else 200), msgspec.json.encode(answer)


def _problem(status: int, error: str, message: str) -> tuple[int, bytes]:
    return status, msgspec.json.encode(_Problem(error, message))
