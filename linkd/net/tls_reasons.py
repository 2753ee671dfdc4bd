"""What went wrong in a TLS handshake, in words that say what to do."""

from __future__ import annotations

from typing import Final

from OpenSSL import SSL

from linkd.clock import clock_words, wall
from linkd.errors import AttemptFailed

HOSTNAME_MISMATCH: Final = 62

_VERDICTS: Final[dict[int, str]] = {
    2: "is signed by an authority that is not trusted here: add it to {ca}, or pair again",
    9: "is not valid yet: correct the clock of this host ({now}) or of the one that issued it",
    10: "has expired: renew it or pair again, or correct the clock of this host, which shows {now}",
    12: "could not be checked, the revocation list has expired: renew that list in {ca}",
    18: "is self-signed and not trusted here: name it, or its authority, in {ca}",
    19: "is signed by an authority that is not trusted here: add it to {ca}, or pair again",
    20: "is signed by an authority that is not trusted here: add it to {ca}, or pair again",
    21: "is signed by an authority that is not trusted here: add it to {ca}, or pair again",
    23: "has been revoked: pair that node again, or give it a new certificate",
    26: "is not meant for this use: its extended key usage lacks {usage}",
    HOSTNAME_MISMATCH: "is not for the name that was dialed: dial one that it holds, or renew it",
    66: "has a key that is too short: renew it with a longer key",
    68: "is signed with a digest that is too weak: renew it",
}
"""By OpenSSL's X509_V_ERR number; see openssl-verification-options(1)."""

_NO_TLS: Final = (
    "answered with something that is not TLS: give its [listen] a certificate, or dial ws:// where"
    " the line is safe by itself"
)

_DATED: Final[dict[int, str]] = {
    9: "is not valid yet: correct the clock of this host ({now}) or of the one that issued it",
    10: "has expired: pair again with a new code, or replace it in {ca}; this host's clock shows"
    " {now}",
}
"""The same where the dates are those of an authority."""

_ALERTS: Final[tuple[tuple[str, str], ...]] = (
    (
        "certificate expired",
        "says that this node's certificate, or the authority of it, has expired: renew it or pair"
        " again, or compare both clocks",
    ),
    ("certificate revoked", "says that this node's certificate has been revoked: pair again"),
    ("unknown ca", "does not know the authority of this node's certificate: its {their_ca}"),
    ("certificate required", "asks for a certificate: set `certificate` and `key`"),
    ("bad certificate", "refuses this node's certificate: see its log for the reason"),
    ("certificate unknown", "refuses this node's certificate: see its log for the reason"),
    ("unsupported certificate", "refuses this node's certificate: its key usage does not fit"),
    ("protocol version", "speaks no version of TLS that is allowed here: 1.2 is the oldest"),
    ("handshake failure", "found no common cipher, or refuses this node's certificate"),
    ("internal error", "refuses this node's certificate: is it for the name that was dialed?"),
    ("insufficient security", "finds this node's ciphers too weak"),
)
"""What the other end told us in an alert, by words in OpenSSL's text for it."""

_LOCAL: Final[tuple[tuple[str, str], ...]] = (
    ("http request", "sent plain HTTP to a port that expects TLS: use wss:// there"),
    ("https proxy request", "sent plain HTTP to a port that expects TLS: use wss:// there"),
    ("unsupported protocol", "speaks no version of TLS that is allowed here: 1.2 is the oldest"),
    ("wrong version number", _NO_TLS),
    ("unknown protocol", _NO_TLS),
    ("version too low", "speaks no version of TLS that is allowed here: 1.2 is the oldest"),
    ("packet length too long", _NO_TLS),
    ("record layer failure", _NO_TLS),
    ("bad record type", _NO_TLS),
    ("no shared cipher", "offers no cipher that is allowed here"),
    ("no suitable", "offers no signature or group that is allowed here"),
)


def verdict(number: int, depth: int, whose: str, ca: str, usage: str) -> str:
    """Return one sentence for a certificate that was not accepted here.

    Args:
        number: OpenSSL's X509_V_ERR number.
        depth: Which certificate of the chain: 0 its first, above that an authority.
        whose: Whose certificate, to begin the sentence with: "the certificate of hub.example.net".
        ca: Where trusted authorities are configured.
        usage: The key usage that was needed: `serverAuth` or `clientAuth`.
    """
    text = _VERDICTS.get(number)
    if depth > 0 and number in _DATED:
        text = _DATED[number]
        whose = f"an authority in the chain of {whose}"
    if text is None:
        return f"{whose} was not accepted: verification error {number}"
    return f"{whose} {text.format(ca=ca, usage=usage, now=clock_words(wall()))}"


def openssl_words(error: BaseException) -> str:
    """Return OpenSSL's reasons in `error`, joined; empty where there are none."""
    if not isinstance(error, SSL.Error) or not error.args or not isinstance(error.args[0], list):
        return ""
    return "; ".join(str(entry[-1]) for entry in error.args[0] if entry and entry[-1])


def said(error: BaseException, who: str, their_ca: str) -> str | None:
    """Return why a handshake failed, where it was not for a certificate refused here.

    Args:
        error: What ended the connection.
        who: The other end, to begin the sentence with.
        their_ca: Where the other end configures authorities that it trusts.

    Returns:
        None where `error` is not TLS's: the connection was cut, reset or timed out.
    """
    words = openssl_words(error)
    if not words or "unexpected eof" in words.lower():
        return None
    lowered = words.lower()
    table = _ALERTS if "alert" in lowered else _LOCAL
    for needle, text in table:
        if needle in lowered:
            return f"{who} {text.format(their_ca=their_ca)}"
    return f"TLS with {who} failed: {words}"


def rejected(detail: str) -> AttemptFailed:
    """Return the failure of an attempt that someone must mend."""
    return AttemptFailed("rejected", "tls", detail)
