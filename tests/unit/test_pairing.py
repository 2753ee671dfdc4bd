"""Codes, the authority's files, invitations and what they refuse; no socket."""

from __future__ import annotations

import random
import ssl
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from linkd import events
from linkd.config import Config, ListenSettings, NodeSettings, PeerSettings
from linkd.errors import ConfigError, StateTooNew, Unavailable
from linkd.host import write_atomically
from linkd.net.certificates import (
    certificate_names,
    load_certificates,
    load_revocation_lists,
    names_host,
)
from linkd.net.tls import ServerTls
from linkd.pairing import client, messages
from linkd.pairing.ca import Authority, host_of, prepare, public_address
from linkd.pairing.client import make_request
from linkd.pairing.messages import Code, PairingHooks, PairingRefused, decode_code, encode_code
from linkd.pairing.server import PairingServer, local_call
from linkd.preflight import check_files

CODE = Code("edge-1", "hub.example.net:9443", bytes(range(10)), bytes(range(10, 20)))
NAMES = st.from_regex(r"[a-z0-9][a-z0-9.-]{0,62}", fullmatch=True)
TEN = st.binary(min_size=10, max_size=10)


@given(NAMES, st.from_regex(r"[a-z0-9.-]{1,80}:[0-9]{1,5}", fullmatch=True), TEN, TEN)
def test_a_code_says_what_was_put_in(name: str, address: str, print_: bytes, secret: bytes) -> None:
    code = Code(name, address, print_, secret)
    text = encode_code(code)
    assert decode_code(text) == code
    assert decode_code(f" {text.lower().replace('-', ' ')}\n") == code


def test_a_code_is_misread_as_people_do() -> None:
    text = encode_code(CODE)
    assert decode_code(text.replace("O", "0").replace("I", "1").replace("B", "8")) == CODE


def test_every_mistyped_letter_is_found() -> None:
    text = encode_code(CODE)
    for index, letter in enumerate(text):
        if letter != "-":
            other = "A" if letter != "A" else "C"
            with pytest.raises(ConfigError, match="code"):
                decode_code(text[:index] + other + text[index + 1 :])


@pytest.mark.parametrize("text", ["", "A", "linkd join", "ABCDE-FGHIJ", "€", "9" * 40, "A" * 5000])
def test_what_is_no_code(text: str) -> None:
    with pytest.raises(ConfigError, match="code"):
        decode_code(text)


def test_the_invitation_s_name_tells_nothing_of_the_secret() -> None:
    other = msgspec.structs.replace(CODE, secret=bytes(10))
    assert CODE.invitation != other.invitation
    assert CODE.secret.hex() not in CODE.invitation
    assert CODE.url == "wss://hub.example.net:9443/link"


@pytest.mark.parametrize(
    ("listen", "given_", "expected"),
    [
        (":9443", "hub.example.net", "hub.example.net:9443"),
        ("0.0.0.0:9443", "Hub.Example.Net:443", "hub.example.net:443"),
        ("[::]:9443", "[2001:db8::1]", "[2001:db8::1]:9443"),
        ("[::]:9443", "wss://hub.example.net:8443/link", "hub.example.net:8443"),
        ("192.0.2.7:9443", None, "192.0.2.7:9443"),
        ("[2001:db8::1]:9443", None, "[2001:db8::1]:9443"),
    ],
)
def test_where_others_reach_the_listener(listen: str, given_: str | None, expected: str) -> None:
    assert public_address(listen, given_) == expected


def test_an_address_that_is_none() -> None:
    with pytest.raises(ValueError, match="expected HOST"):
        public_address(":9443", "a b")
    assert host_of("[2001:db8::1]:9443") == "2001:db8::1"


class Wall:
    """A wall clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def csr(name: str = "edge-1") -> x509.CertificateSigningRequest:
    pem = make_request(ec.generate_private_key(ec.SECP256R1()), name)
    return x509.load_pem_x509_csr(pem.encode())


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture
def authority(tmp_path: Path, wall: Wall) -> Authority:
    return Authority(tmp_path / "pairing", "hub", wall)


def test_the_authority_s_files_are_closed(authority: Authority, tmp_path: Path) -> None:
    authority.hub_certificate(["hub.example.net"])
    authority.issue(csr(), "edge-1")
    modes = {each.name: each.stat().st_mode & 0o777 for each in (tmp_path / "pairing").iterdir()}
    assert (tmp_path / "pairing").stat().st_mode & 0o777 == 0o700
    assert modes == {
        "ca.crt": 0o640,
        "ca.key": 0o600,
        "hub.crt": 0o640,
        "hub.key": 0o600,
        "issued.json": 0o600,
        "revoked.crl": 0o640,
    }


def test_the_authority_decides_the_name(authority: Authority) -> None:
    pem = authority.issue(csr("somebody-else"), "edge-1")
    leaf = x509.load_pem_x509_certificate(pem.encode())
    assert certificate_names(leaf) == ["edge-1", "edge-1"]
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert [each.dotted_string for each in usage] == ["1.3.6.1.5.5.7.3.2"]
    basic = leaf.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert not basic.ca


def test_the_authority_survives_a_restart(authority: Authority, tmp_path: Path, wall: Wall) -> None:
    pem = authority.issue(csr(), "edge-1")
    leaf = x509.load_pem_x509_certificate(pem.encode())
    again = Authority(tmp_path / "pairing", "hub", wall)
    assert again.signers.all[-1].certificate == authority.signers.all[-1].certificate
    entry = again.good(leaf)
    assert entry is not None
    assert entry.name == "edge-1"
    assert [each.name for each in again.revoke("edge-1")] == ["edge-1"]
    assert [each.name for each in again.revoke("edge-1")] == ["edge-1"]
    third = Authority(tmp_path / "pairing", "hub", wall)
    assert third.good(leaf) is None
    lists = load_revocation_lists(tmp_path / "pairing" / "revoked.crl")
    assert lists[0].get_revoked_certificate_by_serial_number(leaf.serial_number) is not None


def test_a_certificate_of_another_authority_is_not_good(
    authority: Authority, tmp_path: Path, wall: Wall
) -> None:
    other = Authority(tmp_path / "other", "hub", wall)
    leaf = x509.load_pem_x509_certificate(other.issue(csr(), "edge-1").encode())
    assert authority.good(leaf) is None


def test_the_hub_s_own_certificate_is_kept_until_it_must_change(
    authority: Authority, wall: Wall
) -> None:
    path, _ = authority.hub_certificate(["hub.example.net", "192.0.2.7"])
    first = load_certificates(path)[0]
    authority.hub_certificate(["192.0.2.7"])
    assert load_certificates(path)[0] == first
    authority.hub_certificate(["2001:db8::7"])
    second = load_certificates(path)[0]
    names = second.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["hub.example.net"]
    assert len(names.get_values_for_type(x509.IPAddress)) == 2
    wall.now += 250 * 86_400
    authority.hub_certificate([])
    assert load_certificates(path)[0].not_valid_after_utc > second.not_valid_after_utc
    assert load_certificates(path)[0].public_key() == first.public_key()


def test_state_of_a_newer_linkd_is_refused(
    authority: Authority, tmp_path: Path, wall: Wall
) -> None:
    authority.issue(csr(), "edge-1")
    (tmp_path / "pairing" / "issued.json").write_text('{"version":2,"certificates":[]}')
    with pytest.raises(StateTooNew, match="version 1, got 2"):
        Authority(tmp_path / "pairing", "hub", wall)
    (tmp_path / "pairing" / "issued.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot read"):
        Authority(tmp_path / "pairing", "hub", wall)


def test_a_file_is_whole_or_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old", 0o600)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new", 0o600)
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


class Desk:
    """A `Pairing` on clocks that a test moves, without any listener."""

    def __init__(self, directory: Path, listen: ListenSettings | None) -> None:
        self.wall = Wall()
        self.peers: tuple[PeerSettings, ...] = ()
        (directory / "state").mkdir(parents=True)
        node = NodeSettings(name="hub", state_dir=str(directory / "state"))
        self.config = Config(node=node, listen=listen)
        self.now = 1000.0
        self.ended: list[str] = []
        hooks = PairingHooks(lambda: self.config, self._leaf, lambda: None, self.ended.append)
        self.pairing = PairingServer(hooks, directory / "linkd.d", lambda: self.now, self.wall)

    def _leaf(self) -> x509.Certificate | None:
        listen = self.config.listen
        if listen is None or listen.certificate is None:
            return None
        return load_certificates(listen.certificate)[0]

    def enable(self) -> None:
        """Put into [listen] what `invite` asks for."""
        with pytest.raises(PairingRefused) as caught:
            self.pairing.invite("edge-1", "127.0.0.1")
        lines = dict(
            line.replace('"', "").split(" = ") for line in str(caught.value).splitlines()[1:]
        )
        assert set(lines) == {"certificate", "key", "client_ca"}
        listen = ListenSettings(address="127.0.0.1:9443", **lines)
        self.config = msgspec.structs.replace(self.config, listen=listen)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path, ListenSettings(address="127.0.0.1:9443"))


def test_a_hub_without_tls_is_told_which_lines_it_lacks(desk: Desk) -> None:
    assert desk.pairing.post(b'{"ask":"authority"}', "192.0.2.7", 1.0)[0] == 403
    desk.enable()
    code = decode_code(desk.pairing.invite("edge-1", "127.0.0.1"))
    assert (code.name, code.address) == ("edge-1", "127.0.0.1:9443")


def test_a_node_that_nobody_dials_invites_nobody(tmp_path: Path) -> None:
    desk = Desk(tmp_path, None)
    with pytest.raises(PairingRefused, match=r"add \[listen\]"):
        desk.pairing.invite("edge-1")


@pytest.mark.parametrize("name", ["hub", "", "Edge", "../etc", "a" * 64, "edge\n"])
def test_names_that_nobody_may_have(desk: Desk, name: str) -> None:
    with pytest.raises(PairingRefused, match="can't be invited"):
        desk.pairing.invite(name, "127.0.0.1")


def test_codes_are_bounded_in_number_and_time(desk: Desk) -> None:
    desk.enable()
    for number in range(256):
        desk.pairing.invite(f"edge-{number}", "127.0.0.1")
    with pytest.raises(PairingRefused, match="256 codes are out"):
        desk.pairing.invite("edge-256", "127.0.0.1")
    desk.now += 601.0
    assert desk.pairing.peers() == []
    desk.now += 3600.0
    desk.pairing.invite("edge-256", "127.0.0.1")


def test_revoking_takes_a_code_back(desk: Desk) -> None:
    desk.enable()
    desk.pairing.invite("edge-1", "127.0.0.1")
    assert [each.state for each in desk.pairing.peers()] == ["invited"]
    assert desk.pairing.revoke("edge-1") == 0
    assert desk.ended == ["edge-1"]
    assert desk.pairing.peers() == []
    with pytest.raises(PairingRefused, match="no node 'edge-2'"):
        desk.pairing.revoke("edge-2")


def test_strangers_cause_bounded_work(desk: Desk) -> None:
    desk.enable()
    answers = [desk.pairing.post(b"{}", "192.0.2.7", 5.0)[0] for _ in range(1000)]
    assert answers.count(400) == 10
    assert answers.count(429) == 990
    assert desk.pairing.post(b"{}", "192.0.2.8", 5.0)[0] == 400


def test_any_bytes_are_answered(desk: Desk) -> None:
    desk.enable()
    noise = random.Random(7)
    bodies = [b"", b"null", b"[]", b'{"ask":"join"}', b"\xff" * 100, b"{" * 20_000]
    bodies += [noise.randbytes(noise.randrange(200)) for _ in range(200)]
    for index, body in enumerate(bodies):
        status, answer = desk.pairing.post(body, f"192.0.2.{index % 250}", index * 1.0)
        assert status == 400
        assert msgspec.json.decode(answer)["error"] == "malformed"


def test_calls_on_the_socket(desk: Desk) -> None:
    assert local_call(desk.pairing, "POST", "/v1/pairing/invite", b'{"name":"edge-1"}')[0] == 409
    desk.enable()
    asked = b'{"name":"edge-1","address":"127.0.0.1","receive":["a.*"],"relay":true}'
    status, body = local_call(desk.pairing, "POST", "/v1/pairing/invite", asked)
    assert status == 201
    told = msgspec.json.decode(body)
    assert decode_code(told["code"]).name == "edge-1"
    assert told["expires_seconds"] == 600.0
    status, body = local_call(desk.pairing, "GET", "/v1/pairing/peers", b"")
    assert status == 200
    assert msgspec.json.decode(body) == {
        "peers": [
            {"name": "edge-1", "state": "invited", "expires_seconds": 600.0, "configured": False}
        ]
    }
    assert local_call(desk.pairing, "POST", "/v1/pairing/peers/edge-1/revoke", b"")[0] == 200
    assert local_call(desk.pairing, "POST", "/v1/pairing/peers/edge-9/revoke", b"")[0] == 409
    assert local_call(desk.pairing, "POST", "/v1/pairing/invite", b'{"nome":1}')[0] == 400
    assert local_call(desk.pairing, "DELETE", "/v1/pairing/peers", b"")[0] == 404
    bad = b'{"name":"edge-1","address":"127.0.0.1","send":["a b"]}'
    assert local_call(desk.pairing, "POST", "/v1/pairing/invite", bad)[0] == 409


def test_a_hub_may_name_files_that_pairing_will_make(tmp_path: Path, wall: Wall) -> None:
    place = tmp_path / "state" / "pairing"
    listen = ListenSettings(
        address="0.0.0.0:9443",
        certificate=str(place / "hub.crt"),
        key=str(place / "hub.key"),
        client_ca=str(place / "ca.crt"),
    )
    node = NodeSettings(name="hub", state_dir=str(tmp_path / "state"))
    config = Config(node=node, listen=listen)
    assert prepare(config, wall)
    before = (place / "hub.crt").read_bytes()
    assert not prepare(config, wall)
    assert (place / "hub.crt").read_bytes() == before
    assert ServerTls(listen, place, wall).leaf.subject.rfc4514_string() == "CN=hub"
    elsewhere = msgspec.structs.replace(listen, certificate="/nowhere/hub.crt", key="/nowhere/k")
    assert not prepare(msgspec.structs.replace(config, listen=elsewhere), wall)
    assert not prepare(msgspec.structs.replace(config, listen=None), wall)


def test_a_state_directory_that_cannot_be_written_is_named(tmp_path: Path, wall: Wall) -> None:
    (tmp_path / "state").write_text("a file")
    place = tmp_path / "state" / "pairing"
    listen = ListenSettings(address=":9443", certificate=str(place / "hub.crt"), key="k")
    node = NodeSettings(name="hub", state_dir=str(tmp_path / "state"))
    with pytest.raises(ConfigError, match="cannot write there"):
        prepare(Config(node=node, listen=listen), wall)


def test_a_listener_that_still_runs_without_tls(desk: Desk) -> None:
    desk.enable()
    desk.pairing._hooks = PairingHooks(
        lambda: desk.config, lambda: None, lambda: None, desk.ended.append
    )
    with pytest.raises(PairingRefused, match="restart linkd"):
        desk.pairing.invite("edge-1", "127.0.0.1")


DAY = 86_400.0
IN_1970 = 70 * DAY


class Edge:
    """A paired peer's key, and what it asks when it renews."""

    def __init__(self, desk: Desk) -> None:
        desk.enable()
        peer = PeerSettings(name="edge-1")
        desk.config = msgspec.structs.replace(desk.config, peers=(peer,))
        self.desk = desk
        self.key = ec.generate_private_key(ec.SECP256R1())
        request = x509.load_pem_x509_csr(make_request(self.key, "edge-1").encode())
        self.authority = desk.pairing._open_authority()
        self.certificate = self.authority.issue(request, "edge-1")

    def renew(
        self, certificate: str | None = None, key: ec.EllipticCurvePrivateKey | None = None
    ) -> tuple[int, str]:
        """Ask for a renewal; return the status, and the certificate or the refusal."""
        leaf = self.desk._leaf()
        assert leaf is not None
        request = make_request(key or self.key, "edge-1")
        der = leaf.public_bytes(serialization.Encoding.DER)
        text = messages.renewal_text(der, request)
        signature = self.key.sign(text, ec.ECDSA(hashes.SHA256())).hex()
        ask = messages.RenewalRequest(certificate or self.certificate, request, signature)
        self.desk.now += 10.0
        status, body = self.desk.pairing.post(msgspec.json.encode(ask), "192.0.2.7", self.desk.now)
        answer = msgspec.json.decode(body)
        return status, answer.get("certificate") or answer["message"]


@pytest.fixture
def edge(desk: Desk) -> Edge:
    return Edge(desk)


def test_a_renewal_is_refused_before_a_third_is_left(edge: Edge) -> None:
    status, message = edge.renew()
    assert (status, message.partition(":")[0]) == (403, "it is too early")
    edge.desk.wall.now += 240 * DAY
    assert edge.renew()[0] == 403
    edge.desk.wall.now += 3 * DAY
    assert edge.renew()[0] == 200


def test_a_certificate_is_renewed_once_however_often_it_is_asked_for(edge: Edge) -> None:
    edge.desk.wall.now += 250 * DAY
    status, fresh = edge.renew()
    assert status == 200
    before = (edge.desk.pairing._pairing_dir / "issued.json").read_bytes()
    for _ in range(20):
        assert edge.renew() == (200, fresh)
    assert (edge.desk.pairing._pairing_dir / "issued.json").read_bytes() == before
    again = Authority(edge.desk.pairing._pairing_dir, "hub", edge.desk.wall)
    entry = again.good(x509.load_pem_x509_certificate(edge.certificate.encode()))
    assert entry is not None
    assert again.renew(entry, csr()) == fresh
    assert edge.renew(fresh)[0] == 403  # its own third is not left yet
    for _ in range(30):
        edge.desk.wall.now += 245 * DAY
        status, fresh = edge.renew(fresh)
        assert status == 200, fresh
        assert len(edge.authority.issued) <= 3


@pytest.mark.parametrize("days", [366.0, 700.0, 365.0 + 729.0])
def test_one_that_has_expired_is_renewed_by_the_proof_of_its_key(edge: Edge, days: float) -> None:
    edge.desk.wall.now += days * DAY
    assert edge.renew(key=ec.generate_private_key(ec.SECP256R1()))[0] == 403
    status, fresh = edge.renew()
    assert status == 200
    assert edge.renew() == (200, fresh)  # the first answer may have been lost
    edge.desk.wall.now += 400 * DAY  # and the node with it, for so long that this one ends as well
    status, later = edge.renew()
    assert (status, later == fresh) == (200 if days < 700 else 403, False)


def test_after_two_years_the_message_names_the_remedy(edge: Edge) -> None:
    edge.desk.wall.now += (365 + 731) * DAY
    status, message = edge.renew()
    assert status == 403
    assert "expired more than 730 days ago: pair again, with `linkd invite edge-1`" in message


@pytest.mark.parametrize("when", [0.0, 400.0])
def test_what_was_revoked_is_not_renewed_after_its_end(edge: Edge, when: float) -> None:
    edge.desk.wall.now += when * DAY
    edge.desk.pairing.revoke("edge-1")
    edge.desk.wall.now += 400 * DAY
    assert edge.renew() == (403, "this certificate was not given out here, or was revoked")


def test_what_was_replaced_by_pairing_again_is_not_renewed_after_its_end(edge: Edge) -> None:
    edge.desk.wall.now += 400 * DAY
    edge.authority.issue(csr(), "edge-1")
    assert edge.renew() == (403, "this certificate was not given out here, or was revoked")


def test_a_renewal_is_for_the_same_key(edge: Edge) -> None:
    edge.desk.wall.now += 250 * DAY
    status, message = edge.renew(key=ec.generate_private_key(ec.SECP256R1()))
    assert (status, message) == (403, "the request is not for the certificate's own key")


@pytest.mark.parametrize(("keeps_before", "status"), [(True, 200), (False, 403)])
def test_a_renewal_that_began_before_the_hubs_own_renewal_succeeds(
    edge: Edge, keeps_before: bool, status: int
) -> None:
    """It was refused: its signature covers the hub's certificate of the handshake."""
    desk = edge.desk
    shown = desk._leaf()
    newer = x509.load_pem_x509_certificate(edge.authority.issue(csr("edge-9"), "edge-9").encode())
    hooks = PairingHooks(
        lambda: desk.config,
        lambda: newer,
        lambda: None,
        desk.ended.append,
        lambda: shown if keeps_before else None,
    )
    desk.pairing._hooks = hooks
    desk.wall.now += 250 * DAY
    assert edge.renew()[0] == status


def test_a_new_pairing_revokes_what_the_name_had(authority: Authority, tmp_path: Path) -> None:
    first = x509.load_pem_x509_certificate(authority.issue(csr(), "edge-1").encode())
    other = x509.load_pem_x509_certificate(authority.issue(csr("edge-2"), "edge-2").encode())
    second = x509.load_pem_x509_certificate(authority.issue(csr(), "edge-1").encode())
    assert authority.good(first) is None
    assert authority.good(second) is not None
    assert authority.good(other) is not None
    (revoked,) = load_revocation_lists(tmp_path / "pairing" / "revoked.crl")
    assert [each.serial_number for each in revoked] == [first.serial_number]


def test_no_authority_is_founded_in_1970(tmp_path: Path, wall: Wall) -> None:
    config = hub_config(tmp_path)
    right, wall.now = wall.now, IN_1970
    with pytest.raises(Unavailable, match="clock shows 1970-03-12 00:00 UTC, which is before"):
        prepare(config, wall)
    assert list((tmp_path / "state" / "pairing").iterdir()) == []
    wall.now = right
    assert prepare(config, wall)
    authority = Authority(tmp_path / "state" / "pairing", "hub", wall)
    assert authority.signers.expires > right + 3649 * DAY


def test_an_authority_signs_nothing_while_the_clock_is_wrong(
    authority: Authority, wall: Wall
) -> None:
    wall.now = IN_1970
    with pytest.raises(ConfigError, match=r"ca.crt: this authority is valid from 2027-01-14"):
        authority.issue(csr(), "edge-1")
    with pytest.raises(ConfigError, match=r"clock shows 1970-03-12"):
        authority.hub_certificate(["hub.example.net"])
    assert authority.issued == []


def test_an_authority_that_has_ended_is_followed_by_another(tmp_path: Path, wall: Wall) -> None:
    right, wall.now = wall.now, 1_794_000_000.0
    authority = Authority(tmp_path / "pairing", "hub", wall)
    wall.now = right + 3650 * DAY
    first = authority.signers.all[-1].certificate
    leaf = x509.load_pem_x509_certificate(authority.issue(csr(), "edge-1").encode())
    assert authority.signers.all[-1].certificate != first
    leaf.verify_directly_issued_by(authority.signers.all[-1].certificate)


def test_nobody_is_invited_under_an_authority_of_tomorrow(desk: Desk) -> None:
    desk.enable()
    now = desk.wall.now
    for wrong in (now - 2 * DAY, IN_1970):
        desk.wall.now = wrong
        with pytest.raises(PairingRefused, match=r"ca.crt: this authority is valid from"):
            desk.pairing.invite("edge-1", "127.0.0.1")
    desk.wall.now = now
    assert desk.pairing.invite("edge-1", "127.0.0.1")


def test_a_certificate_ends_no_later_than_its_authority(authority: Authority, wall: Wall) -> None:
    wall.now += 3600 * DAY
    leaf = x509.load_pem_x509_certificate(authority.issue(csr(), "edge-1").encode())
    assert leaf.not_valid_after_utc == authority.signers.all[-1].certificate.not_valid_after_utc


def test_an_authority_that_ends_is_warned_of(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[dict[str, object]] = []
    monkeypatch.setattr(events, "emit", lambda event, **fields: lines.append(fields))
    desk.enable()
    desk.pairing.renew_own()
    assert lines == []
    desk.wall.now += 3000 * DAY

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patched:
        patched.setattr("linkd.pairing.signers.write_atomically", refuse)
        for _ in range(3):
            desk.wall.now += 0.4 * DAY
            desk.pairing.renew_own()
    (line,) = lines
    assert str(line["certificate"]).endswith("/ca.crt")
    assert line["days"] == 649.6
    warning = desk.pairing.warning()
    assert warning is not None
    assert "its successor could not be made (Read-only file system)" in warning
    desk.pairing.renew_own()
    assert desk.pairing.warning() is None
    assert [each["certificate"] for each in lines[1:]] == [line["certificate"]]


def hub_config(folder: Path) -> Config:
    place = folder / "state" / "pairing"
    listen = ListenSettings(
        address="0.0.0.0:9443",
        certificate=str(place / "hub.crt"),
        key=str(place / "hub.key"),
        client_ca=str(place / "ca.crt"),
    )
    return Config(node=NodeSettings(name="hub", state_dir=str(folder / "state")), listen=listen)


@pytest.mark.parametrize("name", ["hub.crt", "hub.key", "ca.crt", "revoked.crl"])
@pytest.mark.parametrize("content", [b"", bytes(1000), None])
def test_a_damaged_file_is_made_again(
    tmp_path: Path, wall: Wall, name: str, content: bytes | None
) -> None:
    config, place = hub_config(tmp_path), tmp_path / "state" / "pairing"
    prepare(config, wall)
    authority = Authority(place, "hub", wall)
    authority.hub_certificate(["hub.example.net"])
    revoked = x509.load_pem_x509_certificate(authority.issue(csr(), "edge-1").encode())
    authority.revoke("edge-1")
    kept = x509.load_pem_x509_certificate(authority.issue(csr("edge-2"), "edge-2").encode())
    if content is None:
        (place / name).unlink()
    else:
        (place / name).write_bytes(content)
    assert prepare(config, wall)
    assert not prepare(config, wall)
    assert check_files(config) == []
    leaf = load_certificates(place / "hub.crt")[0]
    assert names_host(leaf, "hub.example.net")
    ca = load_certificates(place / "ca.crt")[0]
    leaf.verify_directly_issued_by(ca)
    kept.verify_directly_issued_by(ca)
    assert config.listen is not None
    ServerTls(config.listen, place, wall)
    (lists,) = load_revocation_lists(place / "revoked.crl")
    assert lists.get_revoked_certificate_by_serial_number(revoked.serial_number) is not None


def test_a_file_that_cannot_be_read_is_not_made_again(
    tmp_path: Path, wall: Wall, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, place = hub_config(tmp_path), tmp_path / "state" / "pairing"
    prepare(config, wall)
    before = (place / "hub.crt").read_bytes()

    def refuse(*_: object) -> bytes:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", refuse)
        patched.setattr("linkd.net.certificates.open_file", refuse)
        assert not prepare(config, wall)
        assert check_files(config) != []
    assert (place / "hub.crt").read_bytes() == before


def test_a_hub_that_was_off_for_years_has_a_new_certificate_before_it_listens(
    tmp_path: Path, wall: Wall
) -> None:
    config, place = hub_config(tmp_path), tmp_path / "state" / "pairing"
    prepare(config, wall)
    wall.now += 400 * DAY
    assert prepare(config, wall)
    assert load_certificates(place / "hub.crt")[0].not_valid_after_utc.timestamp() > wall.now
    wall.now += 4000 * DAY  # the authority has ended too
    assert prepare(config, wall)
    leaf, above = load_certificates(place / "hub.crt")
    assert leaf.not_valid_after_utc.timestamp() > wall.now
    assert above in load_certificates(place / "ca.crt")[1:]


def test_joining_from_a_host_in_1970_blames_its_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "wall", lambda: IN_1970)
    node = NodeSettings(name="edge-1", state_dir=str(tmp_path))
    with pytest.raises(ConfigError, match="this host's clock shows 1970-03-12 00:00 UTC"):
        client.join(encode_code(CODE), Config(node=node), tmp_path / "linkd.d")


@pytest.mark.parametrize(("number", "word"), [(9, "not yet valid"), (10, "has expired")])
def test_a_hub_whose_certificate_is_of_another_time_is_no_attack(
    monkeypatch: pytest.MonkeyPatch, number: int, word: str
) -> None:
    error = ssl.SSLCertVerificationError()
    error.verify_code, error.verify_message = number, f"certificate is {word}"

    def connect(_: object) -> None:
        raise error

    monkeypatch.setattr(client.http.client.HTTPSConnection, "connect", connect)
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    url = client.parse_url(CODE.url)
    with pytest.raises(PairingRefused, match=f"{word} by this host's clock, which shows") as caught:
        client._exchange(
            url, trusting, lambda _: messages.AuthorityRequest(), messages.AuthorityReply
        )
    assert "intercept the connection" not in str(caught.value)


@pytest.mark.parametrize("content", ["{", '{"version":2,"certificates":[]}', '{"version":1}'])
def test_state_that_cannot_be_read_is_a_standing_warning(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    """The daemon starts all the same: links of before stay refused by the list on disk."""
    said: list[str] = []
    desk.enable()
    place = desk.pairing._pairing_dir
    kept = (place / "issued.json").read_text() if (place / "issued.json").exists() else None
    (place / "issued.json").write_text(content)
    monkeypatch.setattr(events, "emit", lambda event, *_, **__: said.append(event))
    again = PairingServer(desk.pairing._hooks, place.parent, lambda: desk.now, desk.wall)
    again.open()
    warning = again.warning()
    assert warning is not None
    assert warning.startswith(f"pairing: {place}/issued.json: ")
    assert said == ["pairing.not-opened"]
    assert again.revoked == frozenset()
    if kept is None:
        (place / "issued.json").unlink()
    else:
        (place / "issued.json").write_text(kept)
    assert again.peers() == []
    assert again.warning() is None


def test_the_listener_refuses_what_was_revoked_from_the_start(edge: Edge) -> None:
    edge.desk.pairing.revoke("edge-1")
    hooks, place = edge.desk.pairing._hooks, edge.desk.pairing._pairing_dir
    again = PairingServer(hooks, place.parent, lambda: edge.desk.now, edge.desk.wall)
    assert again.revoked == frozenset()
    again.open()
    leaf = x509.load_pem_x509_certificate(edge.certificate.encode())
    assert again.revoked == {leaf.serial_number}
