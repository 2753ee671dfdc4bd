"""Heads of requests, nonces and proofs, invitation codes, tokens and cookies."""

from __future__ import annotations

import tempfile
from pathlib import Path

from linkd.api.auth import Keyring
from linkd.errors import ConfigError
from linkd.net.auth import Nonces, prove, verify
from linkd.net.http_head import parse_head, printable
from linkd.pairing.messages import decode_code, encode_code
from linkd.protocol.channels import Patterns
from tests.support.fake_node import make_config

_FOLDER = tempfile.TemporaryDirectory(prefix="linkd-fuzz-")
_KEYRING = Keyring(make_config(Path(_FOLDER.name)), lambda: 10.0, lambda: 1_790_000_000.0)
_NONCES = Nonces()
_SECRET = b"s" * 40
_PATTERNS = b" *.>ax\x00\xff"
"""What an input begins with from which patterns are made: that costs more than all else here."""


def one(content: bytes) -> None:
    """Give one input to each: what a stranger made up is never taken for ours."""
    text = content.decode("latin-1")
    head = parse_head(content)
    if head is not None:
        assert all(name == name.lower() and name for name in head.headers)
        number = head.number("content-length", 1000)
        assert number is None or 0 <= number <= 1000
    assert len(printable(text)) <= 200
    assert _NONCES.refusal(text, 1.0) is not None
    utf8 = content.decode("utf-8", "surrogateescape")
    assert not verify(_SECRET, "dialer", utf8[:5], "hub", "nonce", utf8)
    assert len(prove(_SECRET, "listener", "edge", utf8[:500], text[:60])) == 64
    assert _KEYRING.by_cookie(text) is None
    assert _KEYRING.spend(utf8) is None
    assert _KEYRING.by_key(utf8) is None
    _code(utf8)
    if content[:1] in _PATTERNS:
        Patterns((text[:64],)).match(text[64:300])


def _code(text: str) -> None:
    try:
        code = decode_code(text)
    except ConfigError:
        return
    assert decode_code(encode_code(code)) == code
