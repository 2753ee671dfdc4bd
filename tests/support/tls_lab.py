"""A TLS listener and a TLS dialer on loopback, and certificates of every kind for them."""

from __future__ import annotations

import contextlib
import datetime
import socket
import ssl
import warnings
from pathlib import Path
from typing import Any, cast

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import ClientFactory, Factory, Protocol
from twisted.internet.tcp import Port
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure

from linkd.config import ListenSettings, PeerSettings
from linkd.errors import AttemptFailed
from linkd.net.tls import ClientTls, ServerTls, TlsFactory, client_context, peer_names

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


def at(days: float) -> datetime.datetime:
    """Return the moment so many days from now."""
    return NOW + days * DAY


class Files:
    """Writes certificates below one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def write(self, name: str, leaf: trustme.LeafCert) -> tuple[str, str]:
        """Write a leaf with its chain, and its key; return both paths."""
        certificate, key = self.directory / f"{name}.crt", self.directory / f"{name}.key"
        certificate.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        key.write_bytes(leaf.private_key_pem.bytes())
        key.chmod(0o600)
        return str(certificate), str(key)

    def authority(self, name: str, *authorities: trustme.CA, lists: bytes = b"") -> str:
        """Write authorities, and revocation lists, into one file; return its path."""
        path = self.directory / f"{name}.crt"
        path.write_bytes(b"".join(each.cert_pem.bytes() for each in authorities) + lists)
        return str(path)


def serial(leaf: trustme.LeafCert) -> int:
    """Return a leaf's serial number."""
    return x509.load_pem_x509_certificate(leaf.cert_chain_pems[0].bytes()).serial_number


def revocation_list(authority: trustme.CA, *serials: int, until: float = 30.0) -> bytes:
    """Return a PEM revocation list of `authority`, valid for `until` days."""
    key = serialization.load_pem_private_key(authority.private_key_pem.bytes(), None)
    issuer = x509.load_pem_x509_certificate(authority.cert_pem.bytes())
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.subject)
        .last_update(at(-60))
        .next_update(at(until))
    )
    for number in serials:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder().serial_number(number).revocation_date(at(-1)).build()
        )
    signed = builder.sign(key, hashes.SHA256())  # type: ignore[arg-type]
    return signed.public_bytes(serialization.Encoding.PEM)


class End(Protocol):
    """One end of a connection; remembers what it heard and how it ended."""

    def __init__(self) -> None:
        self.heard = b""
        self.alive = False
        self.reason: Failure | None = None
        self.data: Deferred[bytes] = Deferred()
        self.lost: Deferred[BaseException | None] = Deferred()

    def connectionMade(self) -> None:
        self.alive = True

    def dataReceived(self, data: bytes) -> None:
        self.heard += data
        if not self.data.called:
            self.data.callback(data)

    def connectionLost(self, reason: Failure = Failure(Exception())) -> None:  # noqa: B008
        self.alive = False
        self.reason = reason
        self.lost.callback(reason.value)


class EchoEnd(End):
    """The accepting end: notes who came, and sends back what it hears."""

    def __init__(self, tls: ServerTls) -> None:
        super().__init__()
        self.tls = tls
        self.names: list[str] = []
        self.why: str | None = None

    def dataReceived(self, data: bytes) -> None:
        super().dataReceived(data)
        self.names = peer_names(self.transport)
        self.transport.write(data)

    def connectionLost(self, reason: Failure = Failure(Exception())) -> None:  # noqa: B008
        self.why = self.tls.explain(self.transport, reason)
        super().connectionLost(reason)


class Listener(Factory):
    """An echo listener on 127.0.0.1."""

    def __init__(self, tls: ServerTls) -> None:
        self.tls = tls
        self.ends: list[EchoEnd] = []
        self.port: Port = reactor.listenTCP(  # type: ignore[attr-defined]
            0, TlsFactory(cast(Any, tls), False, self), interface="127.0.0.1"
        )

    @property
    def number(self) -> int:
        """The port's number."""
        return int(self.port.getHost().port)

    def buildProtocol(self, addr: object) -> EchoEnd:
        end = EchoEnd(self.tls)
        self.ends.append(end)
        return end

    async def close(self) -> None:
        """Listen no more, and end what is up."""
        for end in self.ends:
            if end.alive:
                end.transport.abortConnection()
                await end.lost
        await self.port.stopListening()


class _One(ClientFactory):
    """Builds one given protocol."""

    noisy = False

    def __init__(self, end: End) -> None:
        self.end = end

    def buildProtocol(self, addr: object) -> End:
        return self.end


def dial(port: int, tls: ClientTls) -> End:
    """Return the dialing end of a TLS connection to loopback, under way; it sends `hi` first."""
    end = Greeter()
    reactor.connectTCP(  # type: ignore[attr-defined]
        "127.0.0.1", port, TLSMemoryBIOFactory(tls, True, _One(end)), timeout=3
    )
    return end


def dial_plain(port: int, payload: bytes) -> End:
    """Return the dialing end of a TCP connection to loopback, which sends `payload`."""
    end = Greeter(payload)
    reactor.connectTCP("127.0.0.1", port, _One(end), timeout=3)  # type: ignore[attr-defined]
    return end


class Greeter(End):
    """Speaks first."""

    def __init__(self, greeting: bytes = b"hi") -> None:
        super().__init__()
        self.greeting = greeting

    def connectionMade(self) -> None:
        super().connectionMade()
        self.transport.write(self.greeting)


class Pair:
    """The usual case, to be spoilt by a test: an authority, a listener `hub`, a dialer `edge-1`."""

    def __init__(self, directory: Path) -> None:
        self.files = Files(directory)
        self.ca = trustme.CA()
        self.stranger = trustme.CA()
        self.hub_leaf = self.ca.issue_cert("localhost", "127.0.0.1", "hub")
        self.edge_leaf = self.ca.issue_cert("edge-1")
        self.ca_file = self.files.authority("ca", self.ca)

    def listen(self, leaf: trustme.LeafCert | None = None, ca: str | None = None) -> ServerTls:
        """Return the listener's TLS."""
        certificate, key = self.files.write("hub", leaf or self.hub_leaf)
        return ServerTls(
            ListenSettings(
                address="127.0.0.1:0",
                certificate=certificate,
                key=key,
                client_ca=ca or self.ca_file,
            )
        )

    def dialer(
        self, leaf: trustme.LeafCert | None = None, host: str = "localhost", ca: str | None = None
    ) -> ClientTls:
        """Return the dialer's TLS for one attempt."""
        certificate, key = self.files.write("edge", leaf or self.edge_leaf)
        return client_context(
            PeerSettings(
                name="hub",
                dial=("wss://localhost/link",),
                ca=ca or self.ca_file,
                certificate=certificate,
                key=key,
            ),
            host,
        )


def self_signed(*names: str) -> trustme.LeafCert:
    """Return a certificate that its own key has signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, names[0])])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(at(-1))
        .not_valid_after(at(30))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(n) for n in names]), False)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return trustme.LeafCert(pem, certificate.public_bytes(serialization.Encoding.PEM), [])


def client_hello(version: ssl.TLSVersion) -> bytes:
    """Return the first bytes of a TLS client that speaks nothing newer than `version`."""
    wrap = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    wrap.set_ciphers("ALL:@SECLEVEL=0")
    wrap.check_hostname = False
    wrap.verify_mode = ssl.CERT_NONE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        wrap.minimum_version = wrap.maximum_version = version
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        wrap.wrap_bio(incoming, outgoing).do_handshake()
    return outgoing.read()


def server_hello_1_1() -> bytes:
    """Return the record in which a TLS server chooses version 1.1."""
    body = b"\x03\x02" + bytes(32) + b"\x00" + b"\xc0\x13" + b"\x00"
    message = b"\x02" + len(body).to_bytes(3, "big") + body
    return b"\x16\x03\x02" + len(message).to_bytes(2, "big") + message


class _Answer(Protocol):
    """Answers the first bytes with fixed ones."""

    answer = b""

    def dataReceived(self, data: bytes) -> None:
        self.transport.write(self.answer)

    def connectionLost(self, reason: Failure = Failure(Exception())) -> None:  # noqa: B008
        self.answer = b""


def dial_back(answer: bytes) -> Port:
    """Listen on loopback, and answer the first bytes of everyone with `answer`."""

    class Answer(_Answer):
        pass

    Answer.answer = answer
    port: Port = reactor.listenTCP(  # type: ignore[attr-defined]
        0, Factory.forProtocol(Answer), interface="127.0.0.1"
    )
    return port


def negotiated(wrap: ssl.SSLContext, port: int) -> str | None:
    """Return the version of TLS that a plain client gets; blocks, 3 s at most."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=3) as raw,
        wrap.wrap_socket(raw, server_hostname="localhost") as secured,
    ):
        return secured.version()


def resumes(tls: ServerTls) -> bool:
    """Tell whether the session of one full handshake in memory can be resumed in a second one."""
    wrap = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    wrap.check_hostname = False
    wrap.verify_mode = ssl.CERT_NONE
    first = _handshake(tls, wrap, None)
    assert first.version() == "TLSv1.3"
    return bool(_handshake(tls, wrap, first.session).session_reused)


def _handshake(
    tls: ServerTls, wrap: ssl.SSLContext, session: ssl.SSLSession | None
) -> ssl.SSLObject:
    """Let a plain client and the listener's TLS shake hands in memory; return the client."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = wrap.wrap_bio(incoming, outgoing, session=session)
    transport = _Anyone(tls)
    server = tls.serverConnectionForTLS(cast(Any, transport))
    server.set_accept_state()
    for _ in range(6):
        with contextlib.suppress(ssl.SSLWantReadError):
            client.do_handshake()
        if piece := outgoing.read():
            server.bio_write(piece)
        with contextlib.suppress(SSL.WantReadError):
            server.do_handshake()
        with contextlib.suppress(SSL.WantReadError):
            incoming.write(server.bio_read(65_536))
    with contextlib.suppress(ssl.SSLWantReadError):
        client.read(1)
    return client


def shake(server: ServerTls, client: ClientTls) -> AttemptFailed | None:
    """Let both ends shake hands in memory; return why the dialer refuses, None if it does not."""
    ends = []
    for creator, is_client in ((server, False), (client, True)):
        transport = _Anyone(creator, is_client)
        make = client.clientConnectionForTLS if is_client else server.serverConnectionForTLS
        connection = make(cast(Any, transport))
        (connection.set_connect_state if is_client else connection.set_accept_state)()
        ends.append(connection)
    for _ in range(6):
        for ours, theirs in (ends, reversed(ends)):
            try:
                ours.do_handshake()
            except SSL.WantReadError:
                pass
            except SSL.Error as error:
                return client.explain(error)
            with contextlib.suppress(SSL.WantReadError):
                theirs.bio_write(ours.bio_read(65_536))
    return None


class _Anyone:
    """Stands for a transport that TLS made."""

    def __init__(self, tls: ServerTls | ClientTls, is_client: bool = False) -> None:
        self.factory = TLSMemoryBIOFactory(tls, is_client, Factory())
