"""The joining node's side of pairing: join with a code, and renew certificates in time."""

from __future__ import annotations

import hmac
import http.client
import math
import re
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure

from linkd import events
from linkd.clock import clock_words, is_plausible, wall
from linkd.config import Config, PeerSettings
from linkd.config.addresses import Url, parse_url
from linkd.config.settings import NAME_PATTERN
from linkd.errors import AttemptFailed, ConfigError, LinkdError
from linkd.host import make_directory, write_atomically
from linkd.net.certificates import (
    certificate_names,
    common_name,
    is_issued_by,
    key_pem,
    load_certificates,
    load_key_pair,
    make_key,
    pem,
)
from linkd.net.proxy import ProxySettings, open_tunnel
from linkd.pairing import messages
from linkd.pairing.ca import DIRECTORY
from linkd.pairing.messages import (
    Code,
    PairingRefused,
    check_patterns,
    decode_code,
    fingerprint,
    is_ours,
    peer_table,
)
from linkd.pairing.signers import AUTHORITY_WARN_DAYS

TIMEOUT: Final = 10.0
_TRIES: Final = 3
DIRECT: Final = ProxySettings()
_MAX_ANSWER_BYTES: Final = 65_536
_NOT_YET_VALID: Final = 9
_HAS_EXPIRED: Final = 10
"""OpenSSL's X509_V_ERR numbers; see openssl-verification-options(1)."""

Answer = TypeVar("Answer")
Progress = Callable[[str], None]


class HubUnreachable(LinkdError):
    """The hub does not answer at the address in the code."""


class Joining(NamedTuple):
    """The result of `join`.

    Args:
        peer: The hub's name.
        file: The configuration file that it wrote.
        url: The URL to dial from now on.
        expires: Unix seconds at which the certificate expires.
    """

    peer: str
    file: Path
    url: str
    expires: float


def join(
    text: str,
    config: Config,
    directory: Path,
    progress: Progress = lambda _: None,
    proxy: ProxySettings = DIRECT,
) -> Joining:
    """Join the hub that made the code `text`.

    The hub is trusted only if its certificate is verified by the one whose fingerprint is in the
    code, and its answer is proved with the code's secret.

    Args:
        text: The code.
        config: This node's configuration.
        directory: `linkd.d`, where the new file is written.
        progress: Called with each step, as text for people.
        proxy: The way to the hub, which the new file names too.

    Raises:
        ConfigError: The code is mistyped, for another node, or files can't be written; or the proxy
            is malformed.
        PairingRefused: The hub refuses, or someone else answers in its place.
        HubUnreachable: Nothing answers.
    """
    code = decode_code(text)
    if not is_plausible(wall()):
        raise ConfigError(
            f"this host's clock shows {clock_words(wall())}, which is before this version of linkd"
            " was made: set the clock, or wait for time synchronisation, then join again"
        )
    if code.name != config.node.name:
        raise ConfigError(
            f"the code is for the node {code.name!r}, this one is {config.node.name!r}: set"
            " `node.name`, or have a code made for this name"
        )
    place = Path(config.node.state_dir) / DIRECTORY
    _check_writable(place, directory)
    url = parse_url(code.url)
    hub = _fetch_anchor(url, code, proxy)
    if hub.node in {peer.name for peer in config.peers} and not is_ours(
        directory / f"{hub.node}.toml"
    ):
        raise ConfigError(f"a [[peer]] {hub.node!r} is in the configuration already: remove it")
    anchor = hub.certificate
    progress(f"{code.address} is the node that made the code")
    key = make_key()
    answer = _request_join(url, anchor, code, key, proxy)
    leaf = x509.load_pem_x509_certificate(answer.certificate.encode())
    if answer.node != hub.node:
        raise PairingRefused(f"{hub.node} calls itself {answer.node} now")
    if leaf.public_key() != key.public_key() or code.name not in certificate_names(leaf):
        raise PairingRefused(f"{answer.node} sent a certificate that is not for this node")
    progress(f"{answer.node} has given this node a certificate")
    trusted = None
    if answer.private or not _is_publicly_trusted(url, proxy):
        trusted = "".join(answer.authorities) or anchor
    file = _write_files(_Written(code, answer, key, trusted, proxy), place, directory)
    return Joining(answer.node, file, code.url, leaf.not_valid_after_utc.timestamp())


def renew(peer: PeerSettings) -> float:
    """Get a new certificate from the hub `peer` in place of the expiring one; the key stays.

    The hub also renews an expired one for `GRACE_DAYS`: its key proves the identity.

    Returns:
        Unix seconds at which the new one expires.

    Raises:
        ConfigError: Its files can't be used or written.
        PairingRefused: The hub refuses.
        HubUnreachable: Nothing answers at any of its URLs.
    """
    if peer.certificate is None or peer.key is None:
        raise ConfigError(f"peer {peer.name}: expected `certificate` and `key`")
    pair = load_key_pair(peer.certificate, peer.key)
    key = pair.key
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{peer.key}: expected a P-256 key")
    request = make_request(key, peer.name)
    old = pem(pair.leaf).decode()
    anchor = None if peer.ca is None else Path(peer.ca).read_text()
    proxy = ProxySettings(peer.proxy, peer.proxy_secret_file)
    failure: LinkdError = HubUnreachable(f"peer {peer.name} has no wss:// URL")
    for url in (parse_url(text) for text in peer.dial):
        if not url.secure:
            continue

        def ask(leaf: bytes) -> messages.Ask:
            text = messages.renewal_text(leaf, request)
            signature = key.sign(text, ec.ECDSA(hashes.SHA256()))
            return messages.RenewalRequest(old, request, signature.hex())

        try:
            context = _client_context(anchor)
            renewed, shown = _exchange(url, context, ask, messages.RenewalReply, proxy)
        except HubUnreachable as error:
            failure = error
            continue
        leaf = x509.load_pem_x509_certificate(renewed.certificate.encode())
        if leaf.public_key() != key.public_key():
            raise PairingRefused(f"{peer.name} sent a certificate that is not for this node's key")
        _update_authorities(peer, renewed.authorities, shown)
        write_atomically(Path(peer.certificate), renewed.certificate.encode(), 0o640)
        return leaf.not_valid_after_utc.timestamp()
    raise failure


def _split_pem(text: str) -> list[str]:
    """Return the set of certificates in a PEM file; their order does not matter."""
    end = "-----END CERTIFICATE-----\n"
    return [piece + end for piece in text.split(end)[:-1]]


def _update_authorities(peer: PeerSettings, authorities: tuple[str, ...], shown: bytes) -> None:
    """Trust the authorities that a hub has sent, if pairing wrote the file that names them.

    Args:
        peer: The hub.
        authorities: PEM; one of them must have signed the hub's certificate.
        shown: That certificate, DER.
    """
    file = Path(peer.ca or "")
    ours = peer.certificate is not None and file == Path(peer.certificate).with_suffix(".ca")
    text = "".join(authorities)
    if not ours or not authorities or sorted(authorities) == sorted(_split_pem(file.read_text())):
        return
    try:
        found = x509.load_pem_x509_certificates(text.encode())
        leaf = x509.load_der_x509_certificate(shown)
    except ValueError:
        raise PairingRefused(f"{peer.name} sent an authority that can't be read") from None
    if not any(is_issued_by(leaf, each) for each in found):
        raise PairingRefused(f"{peer.name} sent no authority that has signed its own certificate")
    write_atomically(file, text.encode(), 0o640)
    events.emit("pairing.trusts", peer=peer.name, certificate=str(file))


def _check_writable(place: Path, directory: Path) -> None:
    """Check that the results can be written, before the code is used up."""
    try:
        make_directory(place.parent, 0o700)
        make_directory(place, 0o700)
        make_directory(directory, 0o750)
        for each in (place, directory):
            write_atomically(each / ".writable", b"", 0o600)
            (each / ".writable").unlink()
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}: run this as root") from None


def _fetch_anchor(url: Url, code: Code, proxy: ProxySettings) -> messages.AuthorityReply:
    """Return the certificate that authenticates the hub and matches the code."""
    blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    blind.check_hostname = False
    blind.verify_mode = ssl.CERT_NONE
    ask = messages.AuthorityRequest()
    reply, _ = _exchange(url, blind, lambda _: ask, messages.AuthorityReply, proxy)
    try:
        der = x509.load_pem_x509_certificate(reply.certificate.encode()).public_bytes(
            serialization.Encoding.DER
        )
    except ValueError:
        raise PairingRefused(f"{code.address} answered with no certificate") from None
    if not re.fullmatch(NAME_PATTERN, reply.node):
        raise PairingRefused(f"{code.address} gives no name that a node may have")
    if not hmac.compare_digest(fingerprint(der), code.fingerprint):
        raise PairingRefused(
            f"{code.address} is not the node that made the code: someone else answers there"
        )
    return reply


def _request_join(
    url: Url, anchor: str, code: Code, key: ec.EllipticCurvePrivateKey, proxy: ProxySettings
) -> messages.JoinReply:
    """Return the hub's proved answer."""
    request = make_request(key, code.name)
    asked: messages.JoinRequest | None = None

    def ask(leaf: bytes) -> messages.Ask:
        nonlocal asked
        bare = messages.JoinRequest(code.invitation, code.name, request, "")
        proof = messages.join_proof(code.secret, leaf, bare)
        asked = msgspec.structs.replace(bare, proof=proof)
        return asked

    answer, leaf = _exchange(url, _client_context(anchor), ask, messages.JoinReply, proxy)
    assert asked is not None
    expected = messages.hub_proof(code.secret, leaf, asked, answer)
    if not hmac.compare_digest(expected.encode(), answer.proof.encode("utf-8", "replace")):
        raise PairingRefused(f"{code.address} did not prove that it made the code")
    return answer


def _exchange(
    url: Url,
    context: ssl.SSLContext,
    ask: Callable[[bytes], messages.Ask],
    answer: type[Answer],
    proxy: ProxySettings = DIRECT,
) -> tuple[Answer, bytes]:
    """Post the request that `ask` makes for the hub's leaf, DER; return the answer and the leaf.

    A lost answer is requested again: the hub answers the same request alike.
    """
    for tries_left in reversed(range(_TRIES)):
        connection = http.client.HTTPSConnection(
            url.host, url.port, timeout=TIMEOUT, context=context
        )
        try:
            tunnel = open_tunnel(proxy, url, TIMEOUT)
            if tunnel is None:
                connection.connect()
            else:
                connection.sock = context.wrap_socket(tunnel, server_hostname=url.host)
            leaf = _shown_certificate(connection)
            body = msgspec.json.encode(ask(leaf))
            connection.request("POST", messages.PATH, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return _decode_reply(response.status, response.read(_MAX_ANSWER_BYTES), answer), leaf
        except ssl.SSLCertVerificationError as error:
            if error.verify_code in (_NOT_YET_VALID, _HAS_EXPIRED):
                raise PairingRefused(
                    f"{url.host}:{url.port}: {error.verify_message} by this host's clock, which"
                    f" shows {clock_words(wall())}: correct that clock; if it is right, the hub's"
                    " clock was wrong when it made the certificate, or nobody renewed it: see"
                    " `linkd status` there"
                ) from None
            raise PairingRefused(
                f"{url.host}:{url.port} showed a certificate that is not of the authority that this"
                f" node knows, or its code ({error.verify_message}): someone may intercept the"
                " connection, or that authority has expired; if so, pair again with a new code"
            ) from None
        except (OSError, http.client.HTTPException, AttemptFailed) as error:
            if not tries_left or getattr(error, "kind", None) == "rejected":
                why = getattr(error, "strerror", None) or error
                raise HubUnreachable(f"{url.host}:{url.port} does not answer: {why}") from None
        finally:
            connection.close()
    raise HubUnreachable(f"{url.host}:{url.port} does not answer")


def _shown_certificate(connection: http.client.HTTPSConnection) -> bytes:
    """Return the certificate, DER, that the hub has shown."""
    shown = (
        connection.sock.getpeercert(True) if isinstance(connection.sock, ssl.SSLSocket) else None
    )
    if not isinstance(shown, bytes):
        raise PairingRefused("the hub has shown no certificate")
    return shown


def _decode_reply(status: int, body: bytes, answer: type[Answer]) -> Answer:
    """Return the hub's answer, or raise its refusal."""
    try:
        if status == 200:
            return msgspec.json.decode(body, type=answer)
        refused = msgspec.json.decode(body, type=messages.RefusalReply)
    except msgspec.DecodeError:
        raise PairingRefused(
            f"expected an answer of linkd's pairing, got status {status}: is that a linkd node?"
        ) from None
    raise PairingRefused(refused.message)


def _client_context(anchor: str | None) -> ssl.SSLContext:
    """Return the settings of a client that trusts one certificate, or the system's authorities."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if anchor is None:
        context.load_default_certs()
        return context
    context.load_verify_locations(cadata=anchor)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def _is_publicly_trusted(url: Url, proxy: ProxySettings) -> bool:
    """Return whether the system's authorities verify the hub."""
    try:
        _exchange(
            url,
            _client_context(None),
            lambda _: messages.AuthorityRequest(),
            messages.AuthorityReply,
            proxy,
        )
    except LinkdError:
        return False
    return True


def make_request(key: ec.EllipticCurvePrivateKey, name: str) -> str:
    """Return a signing request, PEM."""
    request = x509.CertificateSigningRequestBuilder().subject_name(common_name(name))
    return request.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


class _Written(NamedTuple):
    """What is to be written."""

    code: Code
    answer: messages.JoinReply
    key: ec.EllipticCurvePrivateKey
    anchor: str | None
    proxy: ProxySettings


def _write_files(what: _Written, place: Path, directory: Path) -> Path:
    """Write key, certificate and authority into the state, then the one file of the peer."""
    hub = what.answer.node
    write_atomically(place / f"to-{hub}.key", key_pem(what.key), 0o600)
    write_atomically(place / f"to-{hub}.crt", what.answer.certificate.encode(), 0o640)
    more: list[tuple[str, str | tuple[str, ...]]] = [
        ("dial", (what.code.url,)),
        ("certificate", str(place / f"to-{hub}.crt")),
        ("key", str(place / f"to-{hub}.key")),
    ]
    proxy, secret_file = what.proxy
    more += [("proxy", proxy)] if proxy else []
    more += [("proxy_secret_file", secret_file)] if secret_file else []
    if what.anchor is not None:
        write_atomically(place / f"to-{hub}.ca", what.anchor.encode(), 0o640)
        more.append(("ca", str(place / f"to-{hub}.ca")))
    send, receive = check_patterns(what.answer.send), check_patterns(what.answer.receive)
    text = peer_table(hub, send, receive, more)
    write_atomically(directory / f"{hub}.toml", text.encode(), 0o640)
    return directory / f"{hub}.toml"


def due(peer: PeerSettings, state_dir: Path, wall: float) -> float | None:
    """Return the Unix seconds at which a paired certificate expires, if it is time to renew it.

    That is when less than a third of its life is left. None if pairing did not write it.
    """
    if peer.certificate is None or Path(peer.certificate).parent != state_dir / DIRECTORY:
        return None
    leaf = load_certificates(peer.certificate)[0]
    ends, began = leaf.not_valid_after_utc.timestamp(), leaf.not_valid_before_utc.timestamp()
    return ends if ends - wall < (ends - began) / 3 else None


CHECK_INTERVAL: Final = 3600.0
RETRY_INTERVAL: Final = 60.0
"""For a certificate that has expired, or whose files can't be used: its link is down meanwhile."""

Threads = Callable[..., "Deferred[Renewed | None]"]
EXPIRY_WARN_DAYS: Final = 14.0
"""For certificates and authorities that an operator renews."""

_WARN_SECONDS: Final = 86_400.0
"""An authority that ends is named so often."""

EndsSoon = Callable[[PeerSettings, float], None]


class Renewed(NamedTuple):
    """A renewed certificate: Unix seconds at which it and the previous one expire."""

    expires: float
    before: float


def renew_if_due(
    peer: PeerSettings, state_dir: Path, wall: float, ends_soon: EndsSoon
) -> Renewed | None:
    """Renew a paired certificate that expires soon; blocks for the disk and the hub.

    Args:
        peer: The hub.
        state_dir: The node's.
        wall: Unix seconds.
        ends_soon: Called with the seconds left if the authority of the peer expires soon.

    Raises:
        NotRenewed: It expires soon and could not be renewed; has the seconds left.
        LinkdError: Its file, or that of the hub's authority, can't be used or has expired.
    """
    left = authority_left(peer, state_dir, wall)
    if left is not None:
        ends_soon(peer, left)
    ends = due(peer, state_dir, wall)
    if ends is None:
        return None
    try:
        return Renewed(renew(peer), ends)
    except (LinkdError, OSError) as error:
        raise NotRenewed(f"it could not be renewed: {error}", ends - wall) from None


class NotRenewed(LinkdError):
    """A certificate expires soon and could not be renewed.

    Args:
        message: Why.
        left: Seconds until it expires.
    """

    def __init__(self, message: str, left: float) -> None:
        super().__init__(message)
        self.left = left


def authority_left(peer: PeerSettings, state_dir: Path, wall: float) -> float | None:
    """Return the seconds until the authority of a peer expires, if that is soon.

    Soon is two years for files written by pairing, because the hub sends its successor long before;
    and two weeks for others, which may be valid for a few months only.

    Raises:
        LinkdError: The file can't be used.
    """
    if peer.ca is None:
        return None
    left = max(each.not_valid_after_utc.timestamp() for each in load_certificates(peer.ca)) - wall
    ours = Path(peer.ca).parent == state_dir / DIRECTORY
    return left if left < (AUTHORITY_WARN_DAYS if ours else EXPIRY_WARN_DAYS) * 86_400 else None


class Renewal:
    """Checks once an hour whether a certificate expires soon, and renews it in a thread.

    Args:
        config: Returns the configuration in force.
        wall: Returns Unix seconds.
        in_thread: Runs a function in a thread: `twisted.internet.threads.deferToThread`.
        own: Renews this node's own certificate: `PairingServer.renew_own`, in a thread.
        usable: Called with a peer that can be dialed again after the renewal of an expired one.
    """

    def __init__(
        self,
        config: Callable[[], Config],
        wall: Callable[[], float],
        in_thread: Threads,
        own: Callable[[], Deferred[None]] = lambda: succeed(None),
        usable: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._config = config
        self._wall = wall
        self._in_thread = in_thread
        self._own = own
        self._usable = usable
        self._busy: set[str | None] = set()
        self._unusable: set[str] = set()
        self._warned: dict[str, float] = {}
        self._loops = (
            (LoopingCall(self.check), CHECK_INTERVAL),
            (LoopingCall(self._retry_unusable), RETRY_INTERVAL),
        )

    def start(self, reactor: IReactorTime) -> None:
        """Check now and once an hour; what can't be used once a minute."""
        for loop, interval in self._loops:
            loop.clock = reactor
            loop.start(interval, now=interval == CHECK_INTERVAL)

    def stop(self) -> None:
        """Stop checking."""
        for loop, _ in self._loops:
            if loop.running:
                loop.stop()

    def check(self) -> None:
        """Renew what expires soon; failures are logged, and retried an hour later."""
        config = self._config()
        if None not in self._busy:
            self._busy.add(None)
            own = self._own().addErrback(self._log_failed, None)
            own.addBoth(lambda _: self._busy.discard(None))
        for peer in config.peers:
            if peer.certificate is not None or peer.ca is not None:
                self._renew_in_thread(peer, self._log_failed)

    def _retry_unusable(self) -> None:
        """Renew what can't be used; `check` logs failures once an hour."""
        for peer in self._config().peers:
            if peer.name in self._unusable:
                self._renew_in_thread(peer, lambda *_: None)

    def _renew_in_thread(
        self, peer: PeerSettings, failed: Callable[[Failure, PeerSettings], None]
    ) -> None:
        if peer.name in self._busy:
            return
        self._busy.add(peer.name)
        state_dir = Path(self._config().node.state_dir)
        looked = self._in_thread(renew_if_due, peer, state_dir, self._wall(), self._ends_soon)
        looked.addCallback(self._log_renewed, peer)
        looked.addErrback(failed, peer).addBoth(lambda _: self._busy.discard(peer.name))

    def _ends_soon(self, peer: PeerSettings, left: float) -> None:
        """Warn once a day that the authority of a peer expires; in the thread."""
        wall = self._wall()
        if wall - self._warned.get(peer.name, -math.inf) < _WARN_SECONDS:
            return
        self._warned[peer.name] = wall
        events.emit(
            "tls.expiring",
            peer=peer.name,
            certificate=peer.ca,
            expires_seconds=round(left),
            days=round(left / 86_400, 1),
            detail="the authority that the peer is trusted by ends: a paired hub sends its"
            " successor with the next renewal; without that, pair again with a new code",
        )

    def _log_renewed(self, fresh: Renewed | None, peer: PeerSettings) -> None:
        self._unusable.discard(peer.name)
        if fresh is not None:
            left = fresh.expires - self._wall()
            events.emit(
                "tls.loaded",
                peer=peer.name,
                certificate=peer.certificate,
                expires_seconds=round(left),
                days=round(left / 86_400, 1),
            )
            if fresh.before <= self._wall() and peer in self._config().peers:
                self._usable(peer.name)

    def _log_failed(self, failure: Failure, peer: PeerSettings | None) -> None:
        error = failure.value
        if peer is None:
            events.emit("tls.expiring", detail=f"this node's own certificate: {error}")
            return
        left = error.left if isinstance(error, NotRenewed) else None
        if left is None or left <= 0:
            self._unusable.add(peer.name)
        events.emit(
            "tls.expiring",
            peer=peer.name,
            certificate=peer.certificate,
            expires_seconds=None if left is None else round(left),
            days=None if left is None else round(left / 86_400, 1),
            detail=str(error),
        )
