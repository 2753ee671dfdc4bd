"""Nonces are fresh, single and short-lived; proofs fit one attempt; secrets stay closed."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linkd.errors import ConfigError
from linkd.net.auth import (
    FOREIGN_NONCE,
    NONCE_LIFETIME,
    SETTLED_SECONDS,
    Nonces,
    SecretCache,
    encode_fields,
    load_secret,
    prove,
    secret_path,
    verify,
)

SECRET = b"0123456789abcdef0123456789abcdef"


def issue(nonces: Nonces, now: float, address: str = "192.0.2.7") -> str:
    nonce = nonces.issue(now, address)
    assert nonce is not None
    return nonce


def test_a_nonce_is_good_once() -> None:
    nonces = Nonces()
    nonce = issue(nonces, 100.0)
    assert nonces.refusal(nonce, 100.5) is None
    assert nonces.refusal(nonce, 100.6) is not None
    assert nonces.refusal(nonce, 100.7) == "the nonce was used before"


@pytest.mark.parametrize(("age", "good"), [(0.0, True), (29.9, True), (30.0, False), (31.0, False)])
def test_a_nonce_is_good_for_30_seconds(age: float, good: bool) -> None:
    nonces = Nonces()
    nonce = issue(nonces, 1000.0)
    assert (nonces.refusal(nonce, 1000.0 + age) is None) is good


def test_why_a_late_nonce_is_refused() -> None:
    nonces = Nonces()
    why = nonces.refusal(issue(nonces, 0.0), 31.0)
    assert why == "the nonce is 31 s old, at most 30 s are allowed"


def test_a_spent_nonce_stays_spent_for_as_long_as_it_lives() -> None:
    nonces = Nonces()
    spent = issue(nonces, 0.0)
    assert nonces.refusal(spent, 0.0) is None
    for second in range(1, 100):
        nonces.refusal(issue(nonces, float(second)), float(second))
        assert nonces.refusal(spent, float(second)) is not None


@given(st.text(max_size=80))
def test_what_was_not_given_out_is_refused(text: str) -> None:
    assert Nonces().refusal(text, 1.0) is not None


@given(st.integers(0, 53), st.sampled_from("AZaz09-_=+/ é"))
def test_a_changed_nonce_is_refused(index: int, letter: str) -> None:
    nonces = Nonces()
    nonce = issue(nonces, 5.0)
    changed = nonce[:index] + letter + nonce[index + 1 :]
    assert (nonces.refusal(changed, 5.0) is None) is (changed == nonce)


def test_another_spelling_of_a_spent_nonce_is_refused() -> None:
    nonces = Nonces()
    nonce = issue(nonces, 5.0)
    assert nonces.refusal(nonce, 5.0) is None
    for other in (nonce + "=", nonce + "==", nonce + "\n", " " + nonce):
        assert nonces.refusal(other, 5.0) is not None


def test_a_restart_voids_all() -> None:
    assert Nonces().refusal(issue(Nonces(), 1.0), 1.0) == FOREIGN_NONCE
    assert Nonces().refusal("made-up", 1.0) == "the nonce is malformed"


def test_all_are_different_and_fit_a_header() -> None:
    nonces = Nonces(per_address=10_000)
    made = {issue(nonces, 1.0) for _ in range(5000)}
    assert len(made) == 5000
    assert max(map(len, made)) <= 64
    assert all(
        nonce.isascii() and nonce.replace("-", "").replace("_", "").isalnum() for nonce in made
    )


def test_an_address_has_its_share_and_leaves_the_others_theirs() -> None:
    nonces = Nonces(per_address=3)
    assert [nonces.issue(1.0, "192.0.2.1") is None for _ in range(5)] == [False] * 3 + [True] * 2
    assert nonces.issue(1.0, "192.0.2.2") is not None
    assert nonces.issue(1.0 + NONCE_LIFETIME, "192.0.2.1") is not None


def test_memory_is_bounded() -> None:
    nonces = Nonces(total=50, addresses=10)
    for number in range(1000):
        nonces.issue(1.0, f"192.0.2.{number}")
    assert len(nonces._given) <= 10
    refusals = [nonces.refusal(issue(nonces, 1.0, f"x{number}"), 1.0) for number in range(200)]
    spent = refusals.count(None)
    assert spent == 50
    assert nonces.refusal(issue(nonces, 1.0, "y"), 1.0) == "too many nonces were spent at once"
    assert nonces.refusal(issue(nonces, 70.0), 70.0) is None
    assert len(nonces._spent) == 1


def test_a_proof_fits_what_it_was_made_for() -> None:
    proof = prove(SECRET, "dialer", "edge-1", "hub", "nonce")
    assert len(proof) == 64
    assert verify(SECRET, "dialer", "edge-1", "hub", "nonce", proof)


@pytest.mark.parametrize(
    ("secret", "role", "dialer", "listener", "nonce"),
    [
        (SECRET[::-1], "dialer", "edge-1", "hub", "nonce"),
        (SECRET, "listener", "edge-1", "hub", "nonce"),
        (SECRET, "dialer", "edge-2", "hub", "nonce"),
        (SECRET, "dialer", "edge-1", "hub-2", "nonce"),
        (SECRET, "dialer", "edge-1", "hub", "nonce2"),
        (SECRET, "dialer", "hub", "edge-1", "nonce"),
        (SECRET, "dialer", "edge-1h", "ub", "nonce"),
    ],
)
def test_a_proof_fits_nothing_else(
    secret: bytes, role: str, dialer: str, listener: str, nonce: str
) -> None:
    proof = prove(SECRET, "dialer", "edge-1", "hub", "nonce")
    assert not verify(secret, role, dialer, listener, nonce, proof)  # type: ignore[arg-type]


@pytest.mark.parametrize("proof", ["", "0" * 64, "é" * 64, "\ud800", "x" * 10_000])
def test_any_other_proof_is_refused(proof: str) -> None:
    assert not verify(SECRET, "dialer", "edge-1", "hub", "nonce", proof)


def test_a_proof_as_docs_protocol_computes_it() -> None:
    """The example in docs/protocol.md, so that another implementation can check itself."""
    assert prove(SECRET, "dialer", "edge-1", "hub", "nonce") == (
        "90defc0a62b5b98d5875d26c8655af81234b1d27ea257fc91ee6a033c3777271"
    )


@given(st.lists(st.text(max_size=5), max_size=4), st.lists(st.text(max_size=5), max_size=4))
def test_no_two_lists_have_one_encoding(one: list[str], other: list[str]) -> None:
    assert (encode_fields(*one) == encode_fields(*other)) is (one == other)


def test_cutting_points_do_not_matter() -> None:
    words = "abcd"
    cuts = {
        encode_fields(words[:a], words[a:b], words[b:])
        for a, b in itertools.combinations(range(5), 2)
    }
    assert len(cuts) == 10


def secret_file(directory: Path, content: bytes, mode: int = 0o600) -> Path:
    path = directory / "hub.secret"
    path.write_bytes(content)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640, 0o440])
@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n", b" \n", b"\n\n", b"\t"])
def test_a_secret_without_its_line_s_end(tmp_path: Path, mode: int, end: bytes) -> None:
    assert load_secret(secret_file(tmp_path, SECRET + end, mode)) == SECRET


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o602, 0o666, 0o601])
def test_a_secret_that_everyone_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    path = secret_file(tmp_path, SECRET, mode)
    with pytest.raises(ConfigError, match=f"chmod o= {path}") as caught:
        load_secret(path)
    assert "0123456789" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "at least 32 characters, got 0"),
        (SECRET[:31] + b"\n", "at least 32 characters, got 31"),
        ("é".encode() * 31, "at least 32 characters, got 31"),
        (b"x" * 5000, "at most 4096 bytes"),
    ],
)
def test_a_secret_of_the_wrong_length(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_secret(secret_file(tmp_path, content))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_secret_with_a_byte_order_mark_names_it(tmp_path: Path, encoding: str) -> None:
    path = secret_file(tmp_path, SECRET.decode().encode(encoding))
    with pytest.raises(ConfigError, match=r"byte order mark \(BOM\)"):
        load_secret(path)


def test_a_secret_in_a_named_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(ConfigError, match="expected a file, got a named pipe"):
        load_secret(tmp_path / "pipe")


def test_a_secret_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the secret"):
        load_secret(tmp_path / "none")
    with pytest.raises(ConfigError, match="cannot read the secret"):
        load_secret(tmp_path)
    with pytest.raises(ConfigError, match="got something else"):
        load_secret("/dev/null")


def test_a_systemd_credential(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret_file(tmp_path, SECRET, 0o400)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert load_secret("hub.secret") == SECRET
    assert load_secret("$CREDENTIALS_DIRECTORY/hub.secret") == SECRET
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    with pytest.raises(ConfigError, match="LoadCredential="):
        load_secret("hub.secret")
    assert secret_path("/etc/linkd/hub.secret") == Path("/etc/linkd/hub.secret")


def test_a_file_is_read_again_only_once_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def load(path: str) -> bytes:
        read.append(path)
        return load_secret(path)

    monkeypatch.setattr("linkd.net.auth.load_secret", load)
    path = tmp_path / "secret"
    path.touch(0o600)
    path.write_bytes(SECRET)
    now = [path.stat().st_ctime]
    cache = SecretCache(lambda: now[0])
    for _ in range(2):
        assert cache.load(str(path)) == SECRET
    assert len(read) == 2  # it may still change within the same tick
    now[0] += SETTLED_SECONDS + 0.1
    for _ in range(3):
        assert cache.load(str(path)) == SECRET
    assert len(read) == 3
    path.write_bytes(SECRET[::-1] + b"!")
    assert cache.load(str(path)) == SECRET[::-1] + b"!"
    path.chmod(0o604)
    with pytest.raises(ConfigError, match="chmod"):
        cache.load(str(path))
    path.unlink()
    with pytest.raises(ConfigError):
        cache.load(str(path))
