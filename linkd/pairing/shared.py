"""What the instances of a node share of pairing: no private key and no code is among it."""

from __future__ import annotations

import hashlib
import hmac
import queue
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from linkd.config.settings import NAME_PATTERN
from linkd.errors import Unavailable
from linkd.log import CursorStore
from linkd.pairing.messages import SECRET_BYTES, Terms
from linkd.protocol.channels import is_pattern

INVITATION: Final = "invitation"
"""Kinds of the shared values: invitations that can be used, by the hash of their code;"""

JOINED: Final = "joined"
"""invitations that were used, by the same hash;"""

INVITED: Final = "invited"
"""the hash of the newest code of each name, the only one that is good;"""

TRIES: Final = "tries"
"""how often an invitation was tried at each instance: `HASH/INSTANCE`;"""

CERTIFICATE: Final = "certificate"
"""certificates that were signed for peers, by serial;"""

TERMS: Final = "terms"
"""what was agreed with a peer, by its name;"""

AUTHORITY: Final = "authority"
"""which authority this node has, and which hosts its certificates are for (`host/NAME`)."""

WAIT_SECONDS: Final = 5.0

SETTLE_SECONDS: Final = 1.0
"""After so long all instances that run have written a new peer's file."""

TAKEN_BACK: Final = b"-"


class Invitation(msgspec.Struct, array_like=True, frozen=True):
    """An invitation as it is kept; with the authority's key its code is made again from it.

    `ends` is in the seconds of whoever keeps it.
    """

    name: str
    nonce: bytes
    ends: float
    terms: Terms

    def secret(self, key: ec.EllipticCurvePrivateKey) -> bytes:
        """Return the secret of the code: nobody else has the key, so nobody else knows it.

        It covers all of the invitation: one that was changed in the database fits no code.
        """
        text = b"linkd invitation secret\0" + encode(self)
        return hmac.new(_hash_of(key), text, hashlib.sha256).digest()[:SECRET_BYTES]


class Joined(msgspec.Struct, array_like=True, frozen=True):
    """An invitation that was used, the hash of the request, and the certificate."""

    invitation: Invitation
    request: bytes
    certificate: str


class Agreed(msgspec.Struct, array_like=True, frozen=True):
    """The terms with a peer, and by which invitation they were made."""

    invitation: str
    terms: Terms


class KnownAuthority(NamedTuple):
    """The authority of all instances: a hash of its first key, and the instance that had it."""

    key: str
    instance: str


encode = msgspec.msgpack.Encoder().encode
decode_invitation = msgspec.msgpack.Decoder(Invitation).decode
decode_joined = msgspec.msgpack.Decoder(Joined).decode
_agreed = msgspec.msgpack.Decoder(Agreed)
_authority = msgspec.msgpack.Decoder(KnownAuthority)


def decode_agreed(name: str, value: bytes) -> Agreed | None:
    """Return the terms with a peer; None where they could not be those of `linkd invite`."""
    try:
        agreed = _agreed.decode(value)
    except msgspec.DecodeError:
        return None
    patterns = (*agreed.terms.send, *agreed.terms.receive)
    if not re.fullmatch(NAME_PATTERN, name) or not all(map(is_pattern, patterns)):
        return None
    return agreed


def _hash_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a key for codes, from that of the authority."""
    der = key.private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return hashlib.sha256(b"linkd codes\0" + der).digest()


def public_hash(key: ec.EllipticCurvePrivateKey) -> str:
    """Return a hash of the public key."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    der = key.public_key().public_bytes(serialization.Encoding.DER, form)
    return hashlib.sha256(der).hexdigest()


class SharedRows:
    """The shared values as pairing's thread uses them: what changes something waits.

    Args:
        store: Has them.
        call: Makes a call in the reactor's thread, some time.
        instance: This instance; None: there is only this one, and the values end with it.
        sleep: Waits.
    """

    def __init__(
        self,
        store: CursorStore,
        call: Callable[[Callable[[], None]], None] = lambda function: function(),
        instance: str | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._store = store
        self._call = call
        self._sleep = sleep
        self.instance = instance

    def get(self, kind: str) -> Mapping[str, bytes]:
        """Return all values of a kind, as known here."""
        return self._store.shared(kind).copy()

    def note(self, kind: str, key: str, value: bytes | None) -> None:
        """Set or remove a value; soon durable."""
        self._call(lambda: self._store.share(kind, key, value))

    def put(self, kind: str, values: Mapping[str, bytes | None]) -> None:
        """Set values, or remove them; return once they are durable.

        Raises:
            Unavailable: That is not known; it happens once the database answers again.
        """
        if not values:
            return
        *first, last = values.items()
        for key, value in first:
            self.note(kind, key, value)
        error = self._wait(lambda done: self._store.share(kind, *last, done))
        if error is not None:
            raise Unavailable(f"the database of the log refuses it: {error}")

    def take(self, kind: str, key: str) -> bytes | None:
        """Remove a value; return it at one instance alone.

        Raises:
            Unavailable: The database does not answer.
        """
        found: bytes | Exception | None = self._wait(lambda done: self._store.take(kind, key, done))
        if isinstance(found, Exception):
            raise Unavailable(f"the database of the log refuses it: {found}")
        return found

    def refresh(self) -> None:
        """Return once all is known that other instances have set until now.

        Raises:
            Unavailable: The database does not answer.
        """
        self._wait(lambda done: self._store.refresh(lambda: done(None)))

    def settle(self) -> None:
        """Give the other instances time for what they do by themselves."""
        if self.instance is not None:
            self._sleep(SETTLE_SECONDS)

    def authority(self) -> KnownAuthority | None:
        """Return the authority of all instances, if it is known."""
        value = self.get(AUTHORITY).get("key")
        return None if value is None else _authority.decode(value)

    def _wait(self, begin: Callable[[Callable[[Any], None]], None]) -> Any:
        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._call(lambda: begin(answers.put))
        try:
            return answers.get(timeout=WAIT_SECONDS)
        except queue.Empty:
            raise Unavailable("the database of the log does not answer") from None
