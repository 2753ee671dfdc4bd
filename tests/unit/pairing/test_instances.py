"""Pairing at several instances of a node: invited at one, joined at another, revoked at a third."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from linkd.config import Config, ListenSettings, NodeSettings, files, load
from linkd.errors import Unavailable
from linkd.log.cursor_store import CursorStore, Done, Taken
from linkd.net.certificates import load_certificates, load_revocation_lists, names_host
from linkd.pairing import ca, messages, shared
from linkd.pairing.ca import Authority, Issued, IssuedState, NotRevoked, prepare
from linkd.pairing.client import make_request
from linkd.pairing.messages import Code, PairingHooks, PairingRefused, Terms, decode_code
from linkd.pairing.server import PairingServer
from linkd.pairing.shared import (
    AUTHORITY,
    CERTIFICATE,
    INVITATION,
    INVITED,
    JOINED,
    TERMS,
    TRIES,
    Agreed,
    SharedRows,
    decode_agreed,
    decode_invitation,
    encode,
)

NOW = 1_800_000_000.0
DAY = 86_400.0


class Store(CursorStore):
    """A store that a test can take away."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False
        self.error: Exception | None = None
        self.on_refresh: list[Callable[[], None]] = []

    def share(self, kind: str, key: str, value: bytes | None, done: Done | None = None) -> None:
        """Share, and answer if it is there."""
        super().share(kind, key, value)
        if done is not None and not self.away:
            done(self.error)

    def take(self, kind: str, key: str, done: Taken) -> None:
        """Take, if it is there."""
        if self.error is not None:
            done(self.error)
        elif not self.away:
            super().take(kind, key, done)

    def refresh(self, done: Callable[[], None]) -> None:
        """Refresh, if it is there."""
        for call in self.on_refresh:
            call()
        if not self.away:
            done()


class World:
    """What the instances have in common."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store()
        self.now = NOW
        self.slept: list[float] = []

    def instance(self, name: str, copied: str | None = None) -> Instance:
        """Make an instance; with the authority of another one if that is named."""
        if copied is not None:
            shutil.copytree(self.folder / copied / "state", self.folder / name / "state")
        return Instance(self, name)


class Instance:
    """One hub's side of pairing."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.directory = world.folder / name
        self.state = self.directory / "state"
        self.state.mkdir(parents=True, exist_ok=True)
        self.place = self.state / "pairing"
        self.listen = ListenSettings(
            address="127.0.0.1:9443",
            certificate=str(self.place / "hub.crt"),
            key=str(self.place / "hub.key"),
            client_ca=str(self.place / "ca.crt"),
        )
        self.base = Config(
            node=NodeSettings(name="hub", state_dir=str(self.state)), listen=self.listen
        )
        self.config = self.base
        self.ended: list[str] = []
        self.reloads = 0
        self.name = name
        self.open()

    def open(self) -> None:
        """Start."""
        hooks = PairingHooks(lambda: self.config, self.leaf, self.reload, self.ended.append)
        world = self.world
        rows = SharedRows(world.store, instance=self.name, sleep=world.slept.append)
        folder = self.directory / "linkd.d"
        self.pairing = PairingServer(hooks, folder, lambda: world.now, lambda: world.now, rows)
        self.pairing.open()

    def leaf(self) -> x509.Certificate | None:
        """Return the listener's certificate."""
        path = self.place / "hub.crt"
        return load_certificates(path)[0] if path.exists() else None

    def reload(self) -> None:
        """Read linkd.d again."""
        self.reloads += 1
        main = self.directory / "linkd.toml"
        listen = self.listen
        main.write_text(
            f'[node]\nname = "hub"\nstate_dir = "{self.state}"\n'
            f'[listen]\naddress = "127.0.0.1:9443"\ncertificate = "{listen.certificate}"\n'
            f'key = "{listen.key}"\nclient_ca = "{listen.client_ca}"\n'
        )
        peers = load(files(main)).peers
        self.config = msgspec.structs.replace(self.base, peers=peers)

    def ask(self, code: Code, key: ec.EllipticCurvePrivateKey | None = None) -> bytes:
        """Return a request to join, as on a connection to this instance."""
        request = make_request(key or ec.generate_private_key(ec.SECP256R1()), code.name)
        return self.again(code, request)

    def again(self, code: Code, request: str, secret: bytes = b"") -> bytes:
        """Return that request, proved for this instance."""
        leaf = self.leaf()
        assert leaf is not None
        bare = messages.JoinRequest(code.invitation, code.name, request, "")
        der = leaf.public_bytes(serialization.Encoding.DER)
        proof = messages.join_proof(secret or code.secret, der, bare)
        return msgspec.json.encode(msgspec.structs.replace(bare, proof=proof))

    def post(self, body: bytes) -> tuple[int, dict[str, Any]]:
        """Post it."""
        self.world.now += 1.0
        status, answer = self.pairing.post(body, "192.0.2.7", self.world.now)
        return status, msgspec.json.decode(answer)

    def invite(self, name: str = "edge-1", **more: Any) -> Code:
        """Invite a node."""
        return decode_code(self.pairing.invite(name, "127.0.0.1", **more))

    def join(self, code: Code) -> x509.Certificate:
        """Let a node join here; return its certificate."""
        status, answer = self.post(self.ask(code))
        assert status == 200, answer
        return x509.load_pem_x509_certificate(answer["certificate"].encode())

    def states(self) -> dict[str, str]:
        """Return what `linkd peers` shows."""
        return {each.name: each.state for each in self.pairing.peers()}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def hubs(world: World) -> tuple[Instance, Instance, Instance]:
    first = Instance(world, "a")
    prepare(first.base, lambda: world.now)
    first.open()
    return first, world.instance("b", "a"), world.instance("c", "a")


def test_invited_at_one_joined_at_another_and_known_at_all(
    hubs: tuple[Instance, Instance, Instance], world: World
) -> None:
    a, b, c = hubs
    code = a.invite(receive=["orders"])
    assert b.states() == c.states() == {"edge-1": "invited"}
    leaf = b.join(code)
    assert world.slept == [shared.SETTLE_SECONDS]
    for hub in hubs:
        hub.pairing.learn()
        (peer,) = hub.config.peers
        assert (peer.name, peer.receive) == ("edge-1", ("orders",))
        assert (hub.directory / "linkd.d" / "edge-1.toml").exists()
        assert hub.states() == {"edge-1": "paired"}
        assert hub.pairing._open_authority().good(leaf) is not None
    reloads = c.reloads
    c.pairing.learn()
    assert c.reloads == reloads


def test_no_code_and_no_private_key_is_shared(
    hubs: tuple[Instance, Instance, Instance], world: World
) -> None:
    a, b, _ = hubs
    code = a.invite()
    b.join(a.invite("edge-2"))
    rows = repr(world.store._rows).encode()
    assert code.secret not in rows
    assert b"PRIVATE" not in rows
    assert code.secret.hex().encode() not in rows
    value = b"".join(world.store.shared(INVITATION).values())
    assert code.secret not in value


def test_an_invitation_that_was_changed_in_the_database_fits_no_code(
    hubs: tuple[Instance, Instance, Instance], world: World
) -> None:
    a, b, _ = hubs
    code = a.invite()
    (value,) = world.store.shared(INVITATION).values()
    wider = msgspec.structs.replace(decode_invitation(value), terms=Terms((">",), (">",), True))
    world.store.share(INVITATION, code.invitation, encode(wider))
    status, answer = b.post(b.ask(code))
    assert (status, answer["error"]) == (403, "refused")
    assert "the proof does not fit the code" in answer["message"]


def test_a_code_is_used_once_at_all_instances(
    hubs: tuple[Instance, Instance, Instance], world: World
) -> None:
    a, b, c = hubs
    code = a.invite()
    request = make_request(ec.generate_private_key(ec.SECP256R1()), "edge-1")
    status, first = b.post(b.again(code, request))
    assert status == 200
    for hub in hubs:  # the answer was lost, and the balancer chose another one
        status, again = hub.post(hub.again(code, request))
        assert (status, again["certificate"]) == (200, first["certificate"])
        status, refused = hub.post(hub.ask(code))
        assert (status, "used before" in refused["message"]) == (403, True)
    other = c.invite("edge-2")
    world.store.on_refresh.append(lambda: world.store.share(INVITATION, other.invitation, None))
    status, refused = a.post(a.ask(other))  # two at the same time
    assert (status, "used before" in refused["message"]) == (403, True)


def test_wrong_proofs_are_counted_over_all_instances(
    hubs: tuple[Instance, Instance, Instance], world: World
) -> None:
    a = hubs[0]
    code = a.invite()
    request = make_request(ec.generate_private_key(ec.SECP256R1()), "edge-1")
    for number in range(10):
        hub = hubs[number % 3]
        world.now += 2.0
        assert "proof" in hub.post(hub.again(code, request, b"wrong"))[1]["message"]
    status, refused = hubs[1].post(hubs[1].again(code, request))
    assert (status, "expired or was taken back" in refused["message"]) == (403, True)
    assert len(world.store.shared(TRIES)) == 3
    world.now += 5000.0
    a.invite("edge-2")
    assert not world.store.shared(TRIES)
    assert set(world.store.shared(INVITED)) == {"edge-2"}


def test_a_newer_code_of_another_instance_replaces_the_older(
    hubs: tuple[Instance, Instance, Instance],
) -> None:
    a, b, c = hubs
    old, new = a.invite(), b.invite()
    assert c.post(c.ask(old))[0] == 403
    c.join(new)


def test_a_revocation_at_one_instance_is_in_force_at_all(
    hubs: tuple[Instance, Instance, Instance], world: World
) -> None:
    a, b, c = hubs
    leaf = b.join(a.invite())
    for hub in hubs:
        hub.pairing.learn()
    assert c.pairing.revoke("edge-1") == 1
    assert set(c.ended) == {"edge-1"}
    for hub in (a, b):
        hub.pairing.learn()
        assert hub.ended == ["edge-1"]
        assert leaf.serial_number in hub.pairing.revoked
        (entry,) = load_revocation_lists(hub.place / "revoked.crl")[0]
        assert entry.serial_number == leaf.serial_number
        assert hub.states() == {"edge-1": "revoked"}
    assert not world.store.shared(TERMS)
    assert a.config.peers  # until its file is deleted
    a.open()
    assert a.pairing.revoked == {leaf.serial_number}


def test_a_revocation_takes_back_codes_of_all_instances(
    hubs: tuple[Instance, Instance, Instance],
) -> None:
    a, b, c = hubs
    code = a.invite()
    assert b.pairing.revoke("edge-1") == 0
    assert c.states() == {}
    status, refused = c.post(c.ask(code))
    assert (status, "taken back" in refused["message"]) == (403, True)
    with pytest.raises(PairingRefused, match="no node 'edge-2'"):
        c.pairing.revoke("edge-2")


def test_a_revocation_during_a_join_elsewhere_wins(
    hubs: tuple[Instance, Instance, Instance], world: World
) -> None:
    a, b, _ = hubs
    code = a.invite()
    place = b.pairing._open_authority()

    def revoked_elsewhere() -> None:
        if place.issued:
            world.store.share(INVITED, "edge-1", b"-")

    world.store.on_refresh.append(revoked_elsewhere)
    status, refused = b.post(b.ask(code))
    assert (status, "taken back" in refused["message"]) == (403, True)
    assert b.states() == {"edge-1": "revoked"}


def test_paired_again_at_another_instance_ends_no_connection(
    hubs: tuple[Instance, Instance, Instance],
) -> None:
    a, b, c = hubs
    first = a.join(b.invite())
    c.pairing.learn()
    second = c.join(b.invite())
    a.pairing.learn()
    assert a.pairing.revoked == {first.serial_number}
    assert a.ended == []
    assert a.pairing._open_authority().good(second) is not None


def test_what_renews_a_revoked_certificate_is_revoked() -> None:
    def issued(serial: str, at: float, **more: Any) -> Issued:
        return Issued("edge-1", serial, at, at + 365 * DAY, **more)

    old, new = issued("a", 1.0), issued("b", 2.0, replaces="a")
    state = IssuedState(1, (issued("c", 3.0, replaces="b"), new, old))
    gone = issued("a", 1.0, revoked=9.0)
    assert state.merged({"a": gone}).revoked() == {0xA, 0xB, 0xC}
    assert state.merged({"a": old}).revoked() == frozenset()
    ours = IssuedState(1, (gone,))
    assert ours.merged({"a": old}).revoked() == {0xA}
    unknown = Issued(ca.UNKNOWN, "a", 5.0, 6.0, revoked=5.0)
    assert IssuedState(1, (unknown,)).merged({"a": gone}).certificates == (gone,)
    (named,) = IssuedState(1, (old,)).merged({"a": unknown}).certificates
    assert (named.name, named.revoked) == ("edge-1", 5.0)


def test_a_certificate_counts_only_for_the_name_in_it(
    hubs: tuple[Instance, Instance, Instance], world: World
) -> None:
    a, b, _ = hubs
    leaf = a.join(a.invite())
    serial, value = next(iter(world.store.shared(CERTIFICATE).items()))
    entry = msgspec.json.decode(value, type=Issued)
    other = msgspec.structs.replace(entry, name="edge-2")
    world.store.share(CERTIFICATE, serial, msgspec.json.encode(other))
    world.store.share(CERTIFICATE, "ff", msgspec.json.encode(other))
    world.store.share(CERTIFICATE, "fe", b"{")
    b.pairing.learn()
    assert b.pairing._open_authority().good(leaf) is None


def test_what_was_paired_before_there_were_several_is_shared(world: World) -> None:
    a = Instance(world, "a")
    prepare(a.base, lambda: world.now)
    authority = Authority(a.place, "hub", lambda: world.now)
    for name in ("edge-1", "edge-2"):
        request = make_request(ec.generate_private_key(ec.SECP256R1()), name)
        authority.issue(x509.load_pem_x509_csr(request.encode()), name)
    authority.revoke("edge-2")
    a.open()
    b = world.instance("b", "a")
    (b.place / "issued.json").unlink()
    (b.place / "revoked.crl").unlink()
    b.open()
    assert b.states() == {"edge-1": "paired", "edge-2": "revoked"}
    assert b.pairing.revoked == a.pairing.revoked


def test_an_instance_without_the_authority_says_where_it_is(
    hubs: tuple[Instance, Instance, Instance], world: World
) -> None:
    a, *_ = hubs
    bare = Instance(world, "d")
    with pytest.raises(PairingRefused, match="has not the authority of the instance a") as caught:
        bare.invite()
    assert f"copy the files of {bare.place} from there to here" in str(caught.value)
    shutil.copy(a.place / "hub.crt", bare.state / "shown.crt")
    bare.place.mkdir()
    shutil.copy(a.place / "hub.crt", bare.place / "hub.crt")
    status, refused = bare.post(bare.ask(a.invite()))
    assert (status, "has not the authority" in refused["message"]) == (403, True)
    leaf = a.join(a.invite())
    a.join(a.invite("edge-2"))
    bare.pairing.learn()
    assert bare.pairing.revoked == frozenset()
    assert bare.states() == {"edge-1": "paired", "edge-2": "paired"}
    assert bare.pairing.revoke("edge-1") == 1
    assert bare.pairing.revoked == {leaf.serial_number}
    a.pairing.learn()
    assert a.pairing.revoked == {leaf.serial_number}
    a.pairing.revoke("edge-2")
    bare.pairing.learn()
    assert sorted(set(bare.ended)) == ["edge-1", "edge-2"]
    assert len(bare.pairing.revoked) == 2


def test_another_authority_is_refused_and_warned_of(
    hubs: tuple[Instance, Instance, Instance], world: World
) -> None:
    a, *_ = hubs
    a.invite()
    other = Instance(world, "d")
    prepare(other.base, lambda: world.now)
    other.open()
    with pytest.raises(PairingRefused, match="has another authority than the instance a"):
        other.invite()
    other.pairing.learn()
    assert "another authority" in str(other.pairing.warning())
    shutil.rmtree(other.place)
    shutil.copytree(a.place, other.place)
    other.open()
    other.pairing.learn()
    assert other.pairing.warning() is None
    other.invite("edge-2")


def test_the_hubs_certificates_are_for_the_names_of_all_invitations(
    hubs: tuple[Instance, Instance, Instance],
) -> None:
    a, b, _ = hubs
    a.pairing.invite("edge-1", "hub.example.net")
    b.pairing.learn()
    leaf = b.leaf()
    assert leaf is not None
    assert names_host(leaf, "hub.example.net")
    assert b.reloads == 1
    b.pairing.learn()
    assert b.reloads == 1
    b.base = b.config = msgspec.structs.replace(b.base, listen=None)
    b.pairing.learn()
    assert b.pairing.warning() is None


def test_a_peers_file_is_written_once_and_never_over_an_operators(
    hubs: tuple[Instance, Instance, Instance], world: World
) -> None:
    a, b, c = hubs
    (c.directory / "linkd.d").mkdir()
    own = c.directory / "linkd.d" / "own.toml"
    own.write_text('[[peer]]\nname = "edge-1"\nsend = ["mine"]\n')
    c.reload()
    a.join(a.invite())
    for hub in hubs:
        hub.pairing.learn()
    assert "the [[peer]] edge-1 in the configuration has send" in str(c.pairing.warning())
    own.unlink()
    c.reload()
    c.pairing.learn()
    assert c.pairing.warning() is None
    assert [peer.send for peer in c.config.peers] == [("edge-1.>",)]
    file = b.directory / "linkd.d" / "edge-1.toml"
    file.unlink()
    b.reload()
    b.pairing.learn()
    assert not file.exists()
    a.join(a.invite(receive=["orders"]))
    b.pairing.learn()
    assert "orders" in file.read_text()
    (b.place / "peers.json").write_text("{")
    b.pairing.learn()
    assert msgspec.json.decode((b.place / "peers.json").read_bytes())["edge-1"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("../etc", encode(Agreed("x", Terms((), (), False)))),
        ("edge", encode(Agreed("x", Terms(("a b",), (), False)))),
        ("edge", encode(Agreed("x", Terms((), ("",), False)))),
        ("edge", b"\xc1"),
    ],
)
def test_terms_that_linkd_did_not_write_are_left_out(name: str, value: bytes) -> None:
    assert decode_agreed(name, value) is None


def test_without_the_database_nothing_is_half_done(
    hubs: tuple[Instance, Instance, Instance], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "WAIT_SECONDS", 0.01)
    a, b, c = hubs
    leaf, code = a.join(a.invite()), a.invite("edge-2")
    for hub in hubs:
        hub.pairing.learn()
    world.store.away = True
    with pytest.raises(Unavailable, match="does not answer"):
        a.invite("edge-3")
    assert b.post(b.ask(code))[0] == 503
    assert b.states() == {"edge-1": "paired", "edge-2": "invited"}
    with pytest.raises(NotRevoked, match="is revoked at this instance, and the others may not"):
        b.pairing.revoke("edge-1")
    assert leaf.serial_number in b.pairing.revoked
    assert set(b.ended) == {"edge-1"}
    assert "edge-1 is revoked at this instance" in str(b.pairing.warning())
    shutil.rmtree(c.place)
    c.open()
    c.pairing._elsewhere = frozenset()
    world.store._rows[CERTIFICATE].pop(f"{leaf.serial_number:x}")
    with pytest.raises(NotRevoked):
        c.pairing.revoke("edge-9")
    world.store.away = False
    b.join(code)
    b.pairing.revoke("edge-1")
    assert b.pairing.warning() is None


def test_a_revocation_ends_the_link_here_before_it_asks_the_database(
    hubs: tuple[Instance, Instance, Instance],
    world: World,
) -> None:
    a, b, _ = hubs
    leaf = a.join(a.invite())
    b.pairing.learn()
    seen: list[object] = []
    world.store.on_refresh.append(
        lambda: seen.append((leaf.serial_number in b.pairing.revoked, list(b.ended)))
    )
    b.pairing.revoke("edge-1")
    assert seen[0] == (True, ["edge-1"])


def test_a_database_that_refuses_is_named(
    hubs: tuple[Instance, Instance, Instance], world: World
) -> None:
    a, b, _ = hubs
    code = a.invite()
    rows = b.pairing._rows
    rows.put(JOINED, {})
    world.store.error = OSError(28, "No space left on device")
    with pytest.raises(Unavailable, match=r"refuses it: .*No space"):
        rows.put(JOINED, {"x": b"1", "y": b"2"})
    with pytest.raises(Unavailable, match=r"refuses it: .*No space"):
        rows.take(INVITATION, code.invitation)
    world.store.error = None
    SharedRows(world.store, sleep=world.slept.append).settle()
    assert world.slept == []


def test_an_invitation_stays_where_the_certificate_could_not_be_made(
    hubs: tuple[Instance, Instance, Instance], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c = hubs
    code = a.invite()

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patched:
        patched.setattr(ca, "write_atomically", refuse)
        assert b.post(b.ask(code))[0] == 503
    c.join(code)


def test_what_cannot_be_written_is_refused_all_the_same(
    hubs: tuple[Instance, Instance, Instance], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, _ = hubs
    leaf = a.join(a.invite())
    b.pairing.learn()
    a.pairing.revoke("edge-1")

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patched:
        patched.setattr(ca, "write_atomically", refuse)
        b.pairing.learn()
    assert leaf.serial_number in b.pairing.revoked
    assert "Read-only file system" in str(b.pairing.warning())
    b.pairing.learn()
    assert b.pairing.warning() is None


def test_no_instance_makes_a_successor_that_the_others_lack(
    hubs: tuple[Instance, Instance, Instance], world: World
) -> None:
    a, *_ = hubs
    world.now += 3000 * DAY
    a.pairing.renew_own()
    assert len(a.pairing._open_authority().signers.all) == 1
    assert AUTHORITY in world.store._rows
    assert "copy" in str(a.pairing.warning())


def test_a_renewal_at_another_instance(
    hubs: tuple[Instance, Instance, Instance], world: World
) -> None:
    a, b, c = hubs
    key = ec.generate_private_key(ec.SECP256R1())
    status, answer = a.post(a.ask(a.invite(), key))
    assert status == 200
    for hub in hubs:
        hub.pairing.learn()
    world.now += 250 * DAY
    leaf = b.leaf()
    assert leaf is not None
    request = make_request(key, "edge-1")
    text = messages.renewal_text(leaf.public_bytes(serialization.Encoding.DER), request)
    signature = key.sign(text, ec.ECDSA(hashes.SHA256())).hex()
    renewal = messages.RenewalRequest(answer["certificate"], request, signature)
    status, fresh = b.post(msgspec.json.encode(renewal))
    assert status == 200
    c.pairing.revoke("edge-1")
    a.pairing.learn()
    serial = x509.load_pem_x509_certificate(fresh["certificate"].encode()).serial_number
    assert serial in a.pairing.revoked
