"""A hub that answers `POST /pair` over TLS on loopback, and the settings of a node that joins."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from twisted.internet import reactor
from twisted.internet.tcp import Port
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.web.http import Request
from twisted.web.resource import Resource
from twisted.web.server import Site

from linkd.config import Config, ListenSettings, files, load
from linkd.net.tls import ServerTls
from linkd.pairing import messages
from linkd.pairing.ca import Authority
from linkd.pairing.client import make_request
from linkd.pairing.messages import Code, PairingHooks
from linkd.pairing.server import PairingServer
from tests.support.tls_lab import Files, Listener


def edge_config(directory: Path, name: str, more: str = "") -> Config:
    """Write and load the configuration of a node that will join."""
    directory.mkdir()
    main = directory / "linkd.toml"
    main.write_text(f'[node]\nname = "{name}"\nstate_dir = "{directory / "state"}"\n{more}')
    return load(files(main))


class Hub:
    """A hub: its configuration, its TLS, its pairing, served as the daemon would."""

    def __init__(
        self,
        directory: Path,
        name: str = "hub",
        leaf: trustme.LeafCert | None = None,
        top: trustme.CA | None = None,
    ) -> None:
        directory.mkdir()
        self.directory = directory
        self.ahead = 0.0
        self.wall_ahead = 0.0
        self.posts = 0
        self.reloads = 0
        self.revoked: list[str] = []
        self._other: Hub | None = None
        self.state = directory / "state"
        self.state.mkdir(mode=0o700)
        self.place = self.state / "pairing"
        authority = Authority(self.place, name, self.wall)
        if leaf is None:
            certificate, key = map(str, authority.hub_certificate(["127.0.0.1", "localhost"]))
        else:
            certificate, key = Files(directory).write("own", leaf)
            if top is not None:
                with Path(certificate).open("ab") as file:
                    file.write(top.cert_pem.bytes())
        self.listen = ListenSettings(
            address="127.0.0.1:0",
            certificate=certificate,
            key=key,
            client_ca=str(self.place / "ca.crt"),
        )
        self.tls = ServerTls(self.listen, self.place, self.wall)
        self.port: Port = reactor.listenTCP(
            0, TLSMemoryBIOFactory(self.tls, False, Site(_Tree(self))), interface="127.0.0.1"
        )
        self.number = int(self.port.getHost().port)
        self.echo = Listener(self.tls)
        self.echo_number = self.echo.number
        self.main = directory / "linkd.toml"
        self.main.write_text(
            f'[node]\nname = "{name}"\nstate_dir = "{self.state}"\n'
            f'[listen]\naddress = "127.0.0.1:{self.number}"\ncertificate = "{certificate}"\n'
            f'key = "{key}"\nclient_ca = "{self.listen.client_ca}"\n'
        )
        self.config = load(files(self.main))
        hooks = PairingHooks(lambda: self.config, lambda: self.tls.leaf, self.reload, self.end)
        self.pairing = PairingServer(hooks, directory / "linkd.d", self.clock, self.wall)

    def clock(self) -> float:
        """Return monotonic seconds, ahead by what a test says."""
        return time.monotonic() + self.ahead

    def wall(self) -> float:
        """Return Unix seconds, ahead by what a test says."""
        return time.time() + self.wall_ahead

    def reload(self) -> None:
        """Do what SIGHUP does."""
        self.reloads += 1
        self.config = load(files(self.main))
        self.tls.check()

    def end(self, name: str) -> None:
        """Note who was revoked, and have TLS know it."""
        self.revoked.append(name)
        self.tls.reload()

    def pass_on(self, other: Hub) -> None:
        """Have another hub answer what comes in here: a man in the middle."""
        self._other = other

    def answer(self, path: str, body: bytes, address: str) -> tuple[int, bytes]:
        """Answer a request, or pass it on."""
        self.posts += 1
        if self._other is not None:
            return self._other.answer(path, body, address)
        return self.pairing.post(body, address, self.clock())

    def post(self, ask: messages.Ask) -> tuple[int, bytes]:
        """Post without any socket."""
        self.ahead += 1.0
        return self.pairing.post(msgspec.json.encode(ask), "192.0.2.7", self.clock())

    def ask(self, code: Code, leaf: x509.Certificate) -> messages.JoinRequest:
        """Return a request to join, proved for the certificate `leaf`."""
        request = make_request(ec.generate_private_key(ec.SECP256R1()), code.name)
        bare = messages.JoinRequest(code.invitation, code.name, request, "")
        der = leaf.public_bytes(serialization.Encoding.DER)
        proof = messages.join_proof(code.secret, der, bare)
        return msgspec.structs.replace(bare, proof=proof)

    def wrong_proof(self, code: Code) -> messages.JoinRequest:
        """Return a request to join whose proof is wrong."""
        return msgspec.structs.replace(self.ask(code, self.tls.leaf), proof="0" * 64)

    def tls_with(self, certificate: str, key: str) -> ServerTls:
        """Return the TLS of a listener with another certificate."""
        listen = msgspec.structs.replace(self.listen, certificate=certificate, key=key)
        return ServerTls(listen, self.place, self.wall)

    async def close(self) -> None:
        """End all that listens."""
        await self.echo.close()
        await self.port.stopListening()


class _Tree(Resource):
    """Answers every POST by the hub's pairing."""

    isLeaf = True

    def __init__(self, hub: Hub) -> None:
        super().__init__()
        self._hub = hub

    def render_POST(self, request: Request) -> bytes:
        status, body = self._hub.answer(
            request.path.decode(), request.content.read(), request.getClientAddress().host
        )
        request.setResponseCode(status)
        request.setHeader("Connection", "close")
        return body
