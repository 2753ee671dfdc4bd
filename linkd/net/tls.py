"""TLS at both ends: 1.2 or newer, names checked, certificates reloaded, errors explained.

Every accepted connection asks `ServerTls` for the current settings, and the dialer reads its files
for every attempt: new files take effect immediately, without touching live links.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Final, NamedTuple
from weakref import WeakKeyDictionary, ref

from cryptography import x509
from OpenSSL import SSL, crypto
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.interfaces import (
    IAddress,
    IOpenSSLClientConnectionCreator,
    IOpenSSLServerConnectionCreator,
    IReactorTime,
)
from twisted.internet.ssl import CertificateOptions, TLSVersion
from twisted.internet.task import LoopingCall
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from linkd import events
from linkd.clock import clock_words, wall
from linkd.config import ListenSettings, PeerSettings
from linkd.errors import AttemptFailed, ConfigError, Unavailable
from linkd.net.certificates import (
    KeyPair,
    certificate_names,
    load_certificates,
    load_key_pair,
    load_revocation_lists,
    names_host,
)

HOSTNAME_MISMATCH: Final = 62

_VERDICTS: Final[dict[int, str]] = {
    2: "is signed by an authority that is not trusted here: add it to {ca}, or pair again",
    9: "is not valid yet, but from {begin} on: correct the clock of this host ({now}) or of the one"
    " that issued it",
    10: "has expired on {end}: renew it or pair again, or correct the clock of this host, which"
    " shows {now}",
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
    9: _VERDICTS[9],
    10: "has expired on {end}: pair again with a new code, or replace it in {ca}; this host's clock"
    " shows {now}",
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
"""The meaning of the peer's TLS alerts, by words in OpenSSL's text for them."""

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


class _Verdict(NamedTuple):
    """Why a certificate was refused here.

    Args:
        number: OpenSSL's X509_V_ERR number.
        depth: Which certificate of the chain: 0 its first, above that an authority.
        certificate: That certificate.
        names: The node names in it, which prove nothing.
    """

    number: int
    depth: int
    certificate: x509.Certificate
    names: Sequence[str] = ()


def verdict(found: _Verdict, whose: str, ca: str, usage: str) -> str:
    """Return one sentence for a certificate that was not accepted here.

    Args:
        found: Why it was not.
        whose: Whose certificate, to begin the sentence with: "the certificate of hub.example.net".
        ca: Where trusted authorities are configured.
        usage: The key usage that was needed: `serverAuth` or `clientAuth`.
    """
    text = _VERDICTS.get(found.number)
    if found.depth > 0 and found.number in _DATED:
        text = _DATED[found.number]
        whose = f"an authority in the chain of {whose}"
    if text is None:
        return f"{whose} was not accepted: verification error {found.number}"
    begin, end = (
        clock_words(date.timestamp())
        for date in (found.certificate.not_valid_before_utc, found.certificate.not_valid_after_utc)
    )
    return (
        f"{whose} {text.format(ca=ca, usage=usage, now=clock_words(wall()), begin=begin, end=end)}"
    )


def openssl_words(error: BaseException) -> str:
    """Return OpenSSL's reasons in `error`, joined; empty where there are none."""
    if not isinstance(error, SSL.Error) or not error.args or not isinstance(error.args[0], list):
        return ""
    return "; ".join(str(entry[-1]) for entry in error.args[0] if entry and entry[-1])


def handshake_failure(error: BaseException, who: str, their_ca: str) -> str | None:
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
    """Return the failure of an attempt that needs an operator."""
    return AttemptFailed("rejected", "tls", detail)


WATCH_INTERVAL: Final = 3.0
"""Seconds between looks at the files' times."""

WARN_DAYS: Final = 14.0
"""From so many days before its end on, a certificate is named in the log, once a day."""

AUTHORITY_FILE: Final = "ca.crt"
REVOCATION_FILE: Final = "revoked.crl"
"""In the state directory's `pairing`: this node's own authority and its revocation list."""

_NO_REVOCATION_LIST: Final = 3
"""X509_V_ERR_UNABLE_TO_GET_CRL: an authority without a list; it can't revoke, which is no error."""


def _options(
    pair: KeyPair | None,
    trusted: Sequence[x509.Certificate] | None,
    lists: Sequence[x509.CertificateRevocationList] = (),
) -> CertificateOptions:
    """Return the options of one end: TLS 1.2 at least, nothing resumed past a check.

    Args:
        pair: This end's certificate and key, if it has one.
        trusted: Authorities; None for the system's.
        lists: Revocation lists of these authorities.
    """
    options = CertificateOptions(raiseMinimumTo=TLSVersion.TLSv1_2)
    context = options.getContext()
    if pair is not None:
        context.use_certificate(pair.leaf)
        context.use_privatekey(pair.key)  # type: ignore[arg-type]
        for each in pair.chain:
            context.add_extra_chain_cert(each)
        context.check_privatekey()
    if trusted is None:
        context.set_default_verify_paths()
        return options
    store = context.get_cert_store()
    assert store is not None
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
    for certificate in trusted:
        store.add_cert(crypto.X509.from_cryptography(certificate))
    for revoked in lists:
        store.add_crl(revoked)
    if lists:
        store.set_flags(crypto.X509StoreFlags.CRL_CHECK)
    return options


class TlsFactory(TLSMemoryBIOFactory):
    """Speaks TLS on accepted connections; one that the wrapped factory refuses is closed.

    Twisted's own would wrap the None of a refusal: the socket stayed open, in no table and without
    a time-out, until the other end closed it.
    """

    noisy = False

    def buildProtocol(  # type: ignore[override]  # as of any factory
        self, addr: IAddress | None
    ) -> TLSMemoryBIOProtocol | None:
        """Return the protocol of a connection, or None to close it."""
        inner = self.wrappedFactory.buildProtocol(addr)
        return None if inner is None else self.protocol(self, inner)


@implementer(IOpenSSLServerConnectionCreator)
class ServerTls:
    """The listener's TLS settings, whose files may change at any time.

    Where authorities are configured, a dialer's certificate is requested, and verified if it sends
    one. It is not required here: a dialer without one must know the shared secret, or an
    invitation's code.

    Args:
        listen: The paths of certificate, key and authorities.
        pairing: The directory of `linkd.pairing`, whose authority and revocation list count too.
        wall: Returns Unix seconds, to judge how long the certificate lasts.
        serials: Returns the serials that pairing has revoked, whatever its list on disk holds.

    Attributes:
        complaint: Why the files as they are now can't be used; None: what they hold is in force.

    Raises:
        ConfigError: The files can't be used.
    """

    def __init__(
        self,
        listen: ListenSettings,
        pairing: Path | None = None,
        wall: Callable[[], float] = wall,
        serials: Callable[[], Container[int]] = frozenset,
    ) -> None:
        self._serials = serials
        self._listen = listen
        self._pairing = pairing
        self._wall = wall
        self._verdicts: WeakKeyDictionary[object, _Verdict] = WeakKeyDictionary()
        self._looping: LoopingCall | None = None
        self._warned: float | None = None
        self.complaint: str | None = None
        self._stamps = self._look()
        self._asks = False
        self.leaf_before: x509.Certificate | None = None
        self._pair, self._options, self._revoked = self._load()

    @property
    def leaf(self) -> x509.Certificate:
        """The certificate in force."""
        return self._pair.leaf

    def configure(self, listen: ListenSettings) -> str | None:
        """Use other files from now on, or check whether the current ones have changed.

        As `reload`; where it fails the old settings stay in force.
        """
        before, self._listen = self._listen, listen
        if listen == before and self._look() == self._stamps:
            return None
        complaint = self.reload()
        if complaint is not None and listen != before:
            self._listen, self.complaint = before, None
        return complaint

    def reload(self) -> str | None:
        """Reload leaf, key, authorities and revocation lists; live links are not touched.

        Returns:
            None where the new files are in force, else one sentence: what is wrong, and the old
            stay.
        """
        self._stamps = self._look()
        leaf = self.leaf
        try:
            self._pair, self._options, self._revoked = self._load()
            if self.leaf != leaf:
                self.leaf_before = leaf
        except (ConfigError, Unavailable) as error:
            complaint = f"{error}; the certificate in force stays"
            if complaint != self.complaint:
                self.complaint = complaint
                events.emit(
                    "tls.reload-failed", certificate=self._listen.certificate, detail=complaint
                )
            return complaint
        self.complaint = None
        self._tell("tls.loaded")
        return None

    def watch(self, reactor: IReactorTime, interval: float = WATCH_INTERVAL) -> None:
        """Look every `interval` seconds whether a file has changed, and reload then."""
        self.stop()
        self._looping = LoopingCall(self.check)
        self._looping.clock = reactor
        self._looping.start(interval, now=False)

    def stop(self) -> None:
        """Stop watching."""
        if self._looping is not None and self._looping.running:
            self._looping.stop()
        self._looping = None

    def check(self) -> None:
        """Reload if a file has changed since it was read; warn where the certificate ends soon.

        Files that could not be used are tried again each time: their permissions may have changed.
        """
        if self.complaint is not None or self._look() != self._stamps:
            self.reload()
        left, now = self._left(), self._wall()
        if left > WARN_DAYS * 86_400:
            self._warned = None
        elif self._warned is None or now - self._warned >= 86_400:
            self._warned = now
            self._tell("tls.expiring")

    def _tell(self, event: str) -> None:
        """Log how long the certificate in force lasts."""
        left = self._left()
        events.emit(
            event,
            certificate=self._listen.certificate,
            expires_seconds=round(left),
            days=round(left / 86_400, 1),
        )

    def serverConnectionForTLS(self, tls_protocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """Return the OpenSSL connection of an accepted connection, with the current settings."""
        connection = self._options.serverConnectionForTLS(tls_protocol)
        weak = ref(tls_protocol)

        def judge(_: object, shown: crypto.X509, number: int, depth: int, ok: int) -> bool:
            if ok or number == _NO_REVOCATION_LIST:
                return True
            if (transport := weak()) is not None:
                refused = shown.to_cryptography()
                names = certificate_names(refused) if depth == 0 else ()
                self._verdicts[transport] = _Verdict(number, depth, refused, names)
            return False

        connection.set_verify(SSL.VERIFY_PEER if self._asks else SSL.VERIFY_NONE, judge)
        return connection

    def explain(self, transport: object, reason: Failure | BaseException) -> str | None:
        """Return why an accepted connection's handshake failed; None if it was not TLS.

        Args:
            transport: The protocol's transport, which TLS made.
            reason: What its `connectionLost` got.
        """
        found = self._verdicts.get(transport)
        if found is not None:
            where, whose = "`listen.client_ca`", "the dialer's certificate"
            return verdict(found, whose, where, "clientAuth")
        return handshake_failure(_error(reason), "the dialer", "`ca` of this peer")

    def claimed(self, transport: object) -> list[str]:
        """Return the node names in a certificate that was refused: nothing of it is proved."""
        found = self._verdicts.get(transport)
        return [] if found is None else list(found.names)

    def revoked(self, transport: object) -> bool:
        """Return whether the peer's certificate has been revoked."""
        certificate = peer_certificate(transport)
        if certificate is None:
            return False
        return certificate.serial_number in self._serials() or any(
            each.issuer == certificate.issuer
            and each.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None
            for each in self._revoked
        )

    def _left(self) -> float:
        return self._pair.leaf.not_valid_after_utc.timestamp() - self._wall()

    def _files(self) -> list[Path]:
        listen = self._listen
        named = [Path(each) for each in (listen.certificate, listen.key, listen.client_ca) if each]
        if self._pairing is not None:
            named += [self._pairing / AUTHORITY_FILE, self._pairing / REVOCATION_FILE]
        return named

    def _look(self) -> list[tuple[int, int, int] | None]:
        """Return inode, size and time of a file, which show whether it has changed."""
        stamps: list[tuple[int, int, int] | None] = []
        for path in self._files():
            try:
                status = path.stat()
            except OSError:
                stamps.append(None)
            else:
                stamps.append((status.st_ino, status.st_size, status.st_mtime_ns))
        return stamps

    def _load(self) -> tuple[KeyPair, CertificateOptions, list[x509.CertificateRevocationList]]:
        listen = self._listen
        if listen.certificate is None or listen.key is None:
            raise ConfigError("listen: expected both `certificate` and `key` for TLS")
        pair = load_key_pair(listen.certificate, listen.key)
        trusted: list[x509.Certificate] = []
        lists: list[x509.CertificateRevocationList] = []
        if listen.client_ca is not None:
            trusted += load_certificates(listen.client_ca)
            lists += load_revocation_lists(listen.client_ca)
        if self._pairing is not None and (self._pairing / AUTHORITY_FILE).exists():
            trusted += load_certificates(self._pairing / AUTHORITY_FILE)
        if self._pairing is not None and (self._pairing / REVOCATION_FILE).exists():
            lists += load_revocation_lists(self._pairing / REVOCATION_FILE)
        try:
            options = _options(pair, trusted, lists)
        except (SSL.Error, crypto.Error, ValueError) as error:
            raise ConfigError(f"{listen.certificate}: OpenSSL refuses it: {error}") from None
        self._asks = bool(trusted)
        return pair, options, lists


@implementer(IOpenSSLClientConnectionCreator)
class ClientTls:
    """The dialer's TLS settings for one attempt; made by `client_context`."""

    def __init__(self, options: CertificateOptions, host: str) -> None:
        self._options = options
        self._host = host
        self._verdict: _Verdict | None = None

    def clientConnectionForTLS(self, tls_protocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """Return the OpenSSL side of it: verifies chain and name, names the host (SNI)."""
        connection = self._options.clientConnectionForTLS(tls_protocol)
        if not (isIPAddress(self._host) or isIPv6Address(self._host)):
            connection.set_tlsext_host_name(self._host.encode("idna"))
        connection.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, self._judge)
        return connection

    def explain(self, reason: Failure | BaseException) -> AttemptFailed | None:
        """Return the attempt's failure if TLS was the reason, else None."""
        if self._verdict is not None:
            whose = f"the certificate of {self._host}"
            return rejected(verdict(self._verdict, whose, "`ca` of this peer", "serverAuth"))
        detail = handshake_failure(_error(reason), self._host, "`listen.client_ca`")
        return None if detail is None else rejected(detail)

    def _judge(
        self, _: SSL.Connection, certificate: crypto.X509, number: int, depth: int, ok: int
    ) -> bool:
        if ok and depth > 0:
            return self._verdict is None
        shown = certificate.to_cryptography()
        if not ok:
            self._verdict = _Verdict(number, depth, shown)
        elif not names_host(shown, self._host):
            self._verdict = _Verdict(HOSTNAME_MISMATCH, depth, shown)
        return self._verdict is None


def client_context(peer: PeerSettings, host: str) -> ClientTls:
    """Return the dialer's TLS settings for one attempt, from the current files.

    Args:
        peer: The paths of authority, certificate and key; without `ca` the system's authorities are
            trusted.
        host: The URL's host, a name or an address, without brackets.

    Raises:
        AttemptFailed: The files can't be used; rejected, with what to correct.
        Unavailable: A file can't be read now; the reason may pass.
    """
    try:
        pair = None
        if peer.certificate is not None or peer.key is not None:
            if peer.certificate is None or peer.key is None:
                raise ConfigError(f"peer {peer.name}: expected both `certificate` and `key`")
            pair = load_key_pair(peer.certificate, peer.key)
        options = _options(pair, None if peer.ca is None else load_certificates(peer.ca))
    except ConfigError as error:
        raise rejected(str(error)) from None
    except (SSL.Error, crypto.Error, ValueError) as error:
        raise rejected(f"peer {peer.name}: OpenSSL refuses its files: {error}") from None
    return ClientTls(options, host)


def peer_certificate(transport: object) -> x509.Certificate | None:
    """Return the peer's verified certificate, or None."""
    get = getattr(transport, "getPeerCertificate", None)
    shown: crypto.X509 | None = None if get is None else get()
    return None if shown is None else shown.to_cryptography()


def peer_names(transport: object) -> list[str]:
    """Return the node names in the peer's certificate; none without one."""
    certificate = peer_certificate(transport)
    return [] if certificate is None else certificate_names(certificate)


def certificate_expires(transport: object) -> float | None:
    """Return the Unix seconds at which the peer's certificate expires, or None without one."""
    certificate = peer_certificate(transport)
    return None if certificate is None else certificate.not_valid_after_utc.timestamp()


def _error(reason: Failure | BaseException) -> BaseException:
    """Return the exception in a Failure, which is an exception itself."""
    if isinstance(reason, Failure):
        return reason.value if reason.value is not None else ConnectionError()
    return reason
