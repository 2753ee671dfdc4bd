"""The one code that a person copies from a hub to the node that joins it."""

from __future__ import annotations

import hashlib
import re
from base64 import b32decode, b32encode
from typing import Final

import msgspec

from linkd.config.settings import NAME_PATTERN
from linkd.errors import ConfigError

SECRET_BYTES: Final = 10
FINGERPRINT_BYTES: Final = 10
_VERSION: Final = 1
_CHECK_BYTES: Final = 3
_GROUP: Final = 5
_MISREAD: Final = str.maketrans({"0": "O", "1": "I", "8": "B"})
_ADDRESS = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9.-]+):[0-9]{1,5}")


class Code(msgspec.Struct, frozen=True):
    """What a code says.

    Args:
        name: The node that is invited.
        address: The hub's `HOST:PORT` or `[IPV6]:PORT`.
        fingerprint: The first 10 bytes of the SHA-256 of the certificate that vouches for the hub.
        secret: 80 random bits.
    """

    name: str
    address: str
    fingerprint: bytes
    secret: bytes

    @property
    def invitation(self) -> str:
        """What names the invitation on the wire; it says nothing of the secret."""
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
    """Return what a code says, however it was typed: case, spaces, 0 for O, 1 for I, 8 for B.

    Raises:
        ConfigError: It is no code, is mistyped or incomplete, or is of a newer linkd.
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
    """Return what finds a mistyped letter."""
    return hashlib.sha256(b"linkd code\0" + raw).digest()[:_CHECK_BYTES]
