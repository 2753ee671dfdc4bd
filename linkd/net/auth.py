"""Authenticate a peer by a shared secret: nonces, proofs and secret files.

The secret never crosses the wire. For every attempt the listener gives a fresh nonce; each end
proves that it knows the secret by an HMAC over its role, both names and that nonce, so that a proof
fits one end of one attempt between two nodes and nothing else. docs/protocol.md, "Proof by a shared
secret".
"""

from __future__ import annotations

import codecs
import hashlib
import hmac
import os
import secrets
import stat
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from linkd.config.loading import open_file
from linkd.errors import ConfigError, unusable
from linkd.net.rate_limit import origin
from linkd.protocol.peer import SUBPROTOCOL

NONCE_LIFETIME = 30.0
"""Seconds for which a nonce is valid."""

FOREIGN_NONCE = (
    "the nonce is of another run of this node, or of another hub: a balancer must send all requests"
    " of one node to the same hub"
)

MIN_SECRET_CHARACTERS = 32
MAX_SECRET_BYTES = 4096
MAX_NONCE_CHARACTERS = 64

SETTLED_SECONDS = 1.0
"""A file that changed less than this ago is read each time."""

Role = Literal["dialer", "listener"]

_RANDOM_BYTES = 16
_MAC_BYTES = 16
_TIME_BYTES = 8
_NONCE_BYTES = _TIME_BYTES + _RANDOM_BYTES + _MAC_BYTES


class Nonces:
    """Fresh nonces that can be spent once, within 30 s.

    A nonce carries its own time and a MAC under a key of this object. So unused nonces cost no
    memory, and nobody can fill a table and lock out others. Only spent nonces are remembered, as
    long as they would be valid. A restart voids all of them.

    Args:
        per_address: How many one address is given within a lifetime.
        total: How many may be spent within a lifetime; above that all are refused.
        addresses: How many addresses are counted separately; above that counting restarts.
    """

    def __init__(
        self, per_address: int = 16_384, total: int = 65_536, addresses: int = 16_384
    ) -> None:
        self._key = secrets.token_bytes(32)
        self._per_address = per_address
        self._total = total
        self._addresses = addresses
        self._given: dict[str, int] = {}
        self._window = 0.0
        self._spent: set[str] = set()
        self._order: deque[tuple[float, str]] = deque()

    def issue(self, now: float, address: str) -> str | None:
        """Return a fresh nonce for `address`, or None where that address has used its share.

        Args:
            now: Seconds on the monotonic clock.
            address: Where it is sent to; only counted.
        """
        if now - self._window >= NONCE_LIFETIME or len(self._given) >= self._addresses:
            self._given.clear()
            self._window = now
        address = origin(address)
        given = self._given.get(address, 0)
        if given >= self._per_address:
            return None
        self._given[address] = given + 1
        body = int(now * 1000).to_bytes(_TIME_BYTES, "big", signed=True)
        body += secrets.token_bytes(_RANDOM_BYTES)
        return urlsafe_b64encode(body + self._mac(body)).rstrip(b"=").decode()

    def refusal(self, nonce: str, now: float) -> str | None:
        """Spend a nonce; return None if it was valid, else one sentence with the reason.

        Args:
            nonce: What the dialer sent; anything.
            now: Seconds on the monotonic clock.
        """
        self._forget(now)
        body = _body(nonce)
        if body is None:
            return "the nonce is malformed"
        raw, mac = body
        if not hmac.compare_digest(mac, self._mac(raw)):
            return FOREIGN_NONCE
        issued = int.from_bytes(raw[:_TIME_BYTES], "big", signed=True) / 1000
        if not 0 <= now - issued < NONCE_LIFETIME:
            return (
                f"the nonce is {now - issued:.0f} s old, at most {NONCE_LIFETIME:.0f} s are allowed"
            )
        if nonce in self._spent:
            return "the nonce was used before"
        if len(self._spent) >= self._total:
            return "too many nonces were spent at once"
        self._spent.add(nonce)
        self._order.append((issued + NONCE_LIFETIME, nonce))
        return None

    def _mac(self, body: bytes) -> bytes:
        return hmac.digest(self._key, body, hashlib.sha256)[:_MAC_BYTES]

    def _forget(self, now: float) -> None:
        """Forget spent nonces that have expired, at most 64 a call."""
        for _ in range(64):
            if not self._order or self._order[0][0] > now:
                return
            self._spent.discard(self._order.popleft()[1])


def _body(nonce: str) -> tuple[bytes, bytes] | None:
    """Return a nonce's time and random bytes, and its MAC; None where it is malformed."""
    if len(nonce) > MAX_NONCE_CHARACTERS or not nonce.isascii():
        return None
    try:
        raw = urlsafe_b64decode(nonce + "=" * (-len(nonce) % 4))
    except ValueError:
        return None
    canonical = urlsafe_b64encode(raw).rstrip(b"=").decode()
    if len(raw) != _NONCE_BYTES or canonical != nonce:
        return None
    return raw[:-_MAC_BYTES], raw[-_MAC_BYTES:]


def prove(secret: bytes, role: Role, dialer: str, listener: str, nonce: str) -> str:
    """Return the proof, 64 hexadecimal digits, that the end in `role` knows `secret`.

    HMAC-SHA256 over the protocol's name, role, both nodes' names and the nonce, each in UTF-8 and
    preceded by its length as 2 bytes, big end first, so that no two lists of fields have one
    encoding.
    """
    fields = encode_fields(role, dialer, listener, nonce)
    return hmac.digest(secret, fields, hashlib.sha256).hex()


def verify(secret: bytes, role: Role, dialer: str, listener: str, nonce: str, proof: str) -> bool:
    """Return in constant time whether `proof` is what `prove` returns for the rest."""
    expected = prove(secret, role, dialer, listener, nonce)
    return hmac.compare_digest(expected.encode(), proof.encode("utf-8", "replace"))


def encode_fields(*fields: str) -> bytes:
    """Encode the protocol's name and strings, each after its length, so that it is unambiguous."""
    encoded = [field.encode("utf-8", "surrogatepass") for field in (SUBPROTOCOL, *fields)]
    return b"".join(len(field).to_bytes(2, "big") + field for field in encoded)


def secret_path(name: str | os.PathLike[str]) -> Path:
    """Return the path of a secret: the name itself, or below $CREDENTIALS_DIRECTORY.

    A name without a slash, and one that begins with `$CREDENTIALS_DIRECTORY/`, is a systemd
    credential.

    Raises:
        ConfigError: It is a credential and the service was given none.
    """
    text = os.fspath(name)
    bare = text.removeprefix("$CREDENTIALS_DIRECTORY/")
    if bare == text and "/" in text:
        return Path(text)
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if not directory:
        raise ConfigError(
            f"{text}: expected an absolute path, or a systemd credential of this name;"
            " CREDENTIALS_DIRECTORY is not set: add LoadCredential= to the unit"
        )
    return Path(directory) / bare


def read_secret_file(path: str | os.PathLike[str]) -> tuple[Path, bytes]:
    """Return the path and the content of a file with a secret; see `secret_path` for names.

    Raises:
        ConfigError: It can't be read, others than owner and group may read or write it, or it
            begins with a byte order mark. The message never contains any of the secret.
        Unavailable: It can't be read now; the reason may pass.
    """
    place = secret_path(path)
    try:
        with open(place, "rb", opener=open_file) as file:
            status = os.fstat(file.fileno())
            content = file.read(MAX_SECRET_BYTES + 1)
    except OSError as error:
        raise unusable(f"{place}: cannot read the secret", error) from None
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"{place}: expected a file with a secret, got something else")
    if status.st_mode & stat.S_IRWXO:
        raise ConfigError(
            f"{place}: everyone on this machine may use this secret (mode"
            f" {stat.S_IMODE(status.st_mode):04o}): chmod o= {place}"
        )
    if len(content) > MAX_SECRET_BYTES:
        raise ConfigError(f"{place}: expected at most {MAX_SECRET_BYTES} bytes of secret, got more")
    if content.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ConfigError(
            f"{place}: the secret begins with a byte order mark (BOM), which the other end may not"
            " have: save it as plain text without one"
        )
    return place, content


def load_secret(path: str | os.PathLike[str]) -> bytes:
    """Return the secret in a file, without white space around it.

    Raises:
        ConfigError: As `read_secret_file`, or it has fewer than 32 characters.
        Unavailable: It can't be read now; the reason may pass.
    """
    place, content = read_secret_file(path)
    secret = content.strip()
    characters = len(secret.decode("utf-8", "replace"))
    if characters < MIN_SECRET_CHARACTERS:
        raise ConfigError(
            f"{place}: expected a secret of at least {MIN_SECRET_CHARACTERS} characters, got"
            f" {characters}: make one with `openssl rand -hex 32`"
        )
    return secret


class SecretCache:
    """Keeps the secrets of files, and reads a file again once it has changed.

    Args:
        wall: Returns Unix seconds.
    """

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._known: dict[str, tuple[tuple[int, ...], bytes]] = {}
        self._places: dict[str, str] = {}

    def load(self, path: str) -> bytes:
        """Return what `load_secret` returns, with its errors."""
        place = self._places.get(path)
        if place is None:
            place = self._places[path] = str(secret_path(path))
        try:
            status = os.stat(place)  # noqa: PTH116 - each handshake does it, a Path costs 7 µs
        except OSError:
            return load_secret(path)
        version = (
            *(status.st_dev, status.st_ino, status.st_mode, status.st_size),
            *(status.st_mtime_ns, status.st_ctime_ns),
        )
        known = self._known.get(path)
        if known is not None and known[0] == version:
            return known[1]
        secret = load_secret(path)
        # Two changes within one tick of the kernel's clock look alike.
        if self._wall() - status.st_ctime > SETTLED_SECONDS:
            self._known[path] = (version, secret)
        return secret
