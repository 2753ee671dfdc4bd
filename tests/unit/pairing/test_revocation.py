"""A revocation is in force, over restarts too, or the command fails, whatever write fails."""

from __future__ import annotations

import errno
import io
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from linkd import events
from linkd.config import ListenSettings
from linkd.net.certificates import load_certificates, load_revocation_lists
from linkd.net.tls import ServerTls
from linkd.pairing.ca import Authority, NotRevoked
from linkd.pairing.client import make_request
from linkd.pairing.signers import GRACE_DAYS, load_keys

NOW = 1_800_000_000.0
LIST = "revoked.crl"


class Killed(BaseException):
    """The process is gone: nothing is cleaned up."""


class Hub:
    """A hub's authority with one paired peer, and the start of the daemon's listener."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        self.place = directory / "pairing"
        self.authority = self.start()
        self.certificate, self.key = map(str, self.authority.hub_certificate(["hub"]))
        request = make_request(ec.generate_private_key(ec.SECP256R1()), "edge")
        text = self.authority.issue(x509.load_pem_x509_csr(request.encode()), "edge")
        self.leaf = x509.load_pem_x509_certificate(text.encode())

    def start(self) -> Authority:
        """Start the daemon."""
        self.authority = Authority(self.place, "hub", lambda: NOW)
        return self.authority

    def refuses(self) -> bool:
        """Return whether the listener refuses the peer's certificate."""
        listen = ListenSettings(
            address=":9443",
            certificate=self.certificate,
            key=self.key,
            client_ca=str(self.place / "ca.crt"),
        )
        tls = ServerTls(listen, self.place, lambda: NOW, lambda: self.authority.revoked)
        return tls.revoked(Shown(self.leaf))

    def listed(self) -> bool:
        """Return whether the list on disk has the certificate."""
        (found,) = load_revocation_lists(self.place / LIST)
        serial = self.leaf.serial_number
        return found.get_revoked_certificate_by_serial_number(serial) is not None


class Shown:
    """The transport of a connection whose other end has shown a certificate."""

    def __init__(self, leaf: x509.Certificate) -> None:
        self._leaf = leaf

    def getPeerCertificate(self) -> Shown:
        return self

    def to_cryptography(self) -> x509.Certificate:
        return self._leaf


@contextmanager
def failing(at: int | None, error: Callable[[], BaseException]) -> Iterator[list[str]]:
    """Have the call of number `at` that changes a disk fail, or each one; yield those made."""
    made: list[str] = []
    real_open, real_fsync, real_replace, real_unlink = os.open, os.fsync, Path.replace, Path.unlink

    def call(name: str) -> None:
        made.append(name)
        if at is None or len(made) > at:
            raise error()

    def fake_open(path: object, flags: int, *rest: int) -> int:
        if flags & os.O_CREAT:
            call(f"open {path}")
        return real_open(path, flags, *rest)  # type: ignore[arg-type]

    class FailingWriter(io.BufferedWriter):
        """Its content reaches the system at the first flush."""

        has_flushed = False

        def flush(self) -> None:
            if not self.has_flushed:
                self.has_flushed = True
                call("write")
            super().flush()

    def fake_fdopen(descriptor: int, mode: str) -> FailingWriter:
        return FailingWriter(io.FileIO(descriptor, mode))

    def fake_fsync(descriptor: int) -> None:
        call("fsync")
        real_fsync(descriptor)

    def fake_replace(self: Path, target: Path) -> Path:
        call(f"replace {target}")
        return real_replace(self, target)

    def fake_unlink(self: Path) -> None:
        if error is not Killed:
            real_unlink(self)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "open", fake_open)
        patched.setattr(os, "fdopen", fake_fdopen)
        patched.setattr(os, "fsync", fake_fsync)
        patched.setattr(Path, "replace", fake_replace)
        patched.setattr(Path, "unlink", fake_unlink)
        yield made


def system_error(number: int) -> Callable[[], BaseException]:
    """Return what makes the system's error of that number."""
    return lambda: OSError(number, os.strerror(number))


def attempt(hub: Hub) -> str:
    """Revoke the peer; return what the command reports."""
    try:
        revoked = len(hub.authority.revoke("edge"))
    except NotRevoked as failure:
        told = str(failure)
    except Killed:
        return "killed"
    else:
        assert revoked == 1
        assert hub.refuses()
        return "revoked"
    assert told.startswith("edge is NOT revoked")
    assert "run `linkd revoke edge` again" in told
    assert hub.refuses(), "refused by this run all the same"
    return "not revoked"


@pytest.mark.parametrize(
    "error",
    [*map(system_error, (errno.ENOSPC, errno.EROFS, errno.EIO)), Killed],
    ids=["ENOSPC", "EROFS", "EIO", "kill -9"],
)
def test_a_revocation_is_in_force_or_the_command_fails(
    tmp_path: Path, error: Callable[[], BaseException]
) -> None:
    outcomes = []
    for step in count():
        hub = Hub(tmp_path / str(step))
        with failing(step, error) as made:
            outcomes.append(attempt(hub))
        hub.start()
        if outcomes[-1] == "revoked":
            assert hub.refuses(), f"step {step} of {made}"
        assert hub.listed() == hub.refuses(), "the list follows from what was issued"
        assert len(hub.authority.revoke("edge")) == 1
        hub.start()
        assert hub.refuses()
        assert hub.listed()
        if len(made) <= step:
            break
    assert len(outcomes) == 11  # ten calls, and one run without a failure
    assert outcomes[0] == ("killed" if error is Killed else "not revoked")
    assert outcomes[-1] == "revoked"


def kill_this_process() -> BaseException:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


def test_a_hub_that_is_killed_at_any_step_refuses_what_it_reported_as_revoked(
    tmp_path: Path,
) -> None:
    """A process of its own ends by SIGKILL ahead of each call that changes the disk."""
    ends = []
    for step in count():
        hub = Hub(tmp_path / str(step))
        child = os.fork()
        if child == 0:
            with suppress(BaseException), failing(step, kill_this_process):
                os._exit(0 if attempt(hub) == "revoked" else 1)
            os._exit(2)
        _, status = os.waitpid(child, 0)
        ends.append(os.waitstatus_to_exitcode(status))
        hub.start()
        assert hub.listed() == hub.refuses(), f"step {step}"
        if ends[-1] == 0:
            assert hub.refuses()
            break
        assert len(hub.authority.revoke("edge")) == 1
        hub.start()
        assert hub.refuses()
        assert hub.listed()
    assert ends == [-signal.SIGKILL] * 10 + [0]


def test_a_full_disk_is_an_error_each_time_and_room_is_enough(tmp_path: Path) -> None:
    hub = Hub(tmp_path)
    with failing(None, lambda: OSError(errno.ENOSPC, "No space left on device")):
        for _ in range(3):
            with pytest.raises(NotRevoked, match=r"NOT revoked: .*issued.json .*No space left"):
                hub.authority.revoke("edge")
            assert hub.refuses()
        assert hub.authority.good(hub.leaf) is None
    assert len(hub.authority.revoke("edge")) == 1
    hub.start()
    assert hub.refuses()


def test_what_is_not_written_does_not_outlive_the_daemon(tmp_path: Path) -> None:
    hub = Hub(tmp_path)
    full = failing(None, lambda: OSError(errno.ENOSPC, "No space left on device"))
    with full, pytest.raises(NotRevoked, match="refused until linkd restarts"):
        hub.authority.revoke("edge")
    hub.start()
    assert not hub.refuses()


def test_a_list_of_before_is_replaced_at_the_start(tmp_path: Path) -> None:
    hub = Hub(tmp_path)
    before = (hub.place / LIST).read_bytes()
    hub.authority.revoke("edge")
    (hub.place / LIST).write_bytes(before)  # a crash between the two files, or a backup
    hub.start()
    assert hub.listed()
    assert hub.refuses()


def test_a_start_without_room_refuses_what_was_revoked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(events, "emit", lambda event, *_, **__: said.append(event))
    hub = Hub(tmp_path)
    before = (hub.place / LIST).read_bytes()
    hub.authority.revoke("edge")
    (hub.place / LIST).write_bytes(before)
    with failing(None, lambda: OSError(errno.ENOSPC, "No space left on device")):
        hub.start()
    assert said == ["pairing.list-not-written"]
    assert hub.refuses()


def test_a_revocation_lasts_as_long_as_the_certificate_could_be_renewed(tmp_path: Path) -> None:
    hub = Hub(tmp_path)
    hub.authority.revoke("edge")
    serial = hub.leaf.serial_number
    for days, is_kept in ((GRACE_DAYS - 1, True), (GRACE_DAYS + 1, False)):
        then = hub.leaf.not_valid_after_utc.timestamp() + days * 86_400
        authority = Authority(hub.place, "hub", lambda then=then: then)
        request = make_request(ec.generate_private_key(ec.SECP256R1()), "edge")
        authority.issue(x509.load_pem_x509_csr(request.encode()), "edge")
        assert (serial in authority.revoked) is is_kept
        found = load_revocation_lists(hub.place / LIST)[0]
        assert (found.get_revoked_certificate_by_serial_number(serial) is not None) is is_kept


def test_a_list_that_would_end_is_made_again(tmp_path: Path) -> None:
    hub = Hub(tmp_path)
    (first,) = load_revocation_lists(hub.place / LIST)
    later = Authority(hub.place, "hub", lambda: NOW + 2000 * 86_400)
    (second,) = load_revocation_lists(hub.place / LIST)
    assert first.next_update_utc is not None
    assert second.next_update_utc is not None
    assert second.next_update_utc > first.next_update_utc
    assert later.revoked == frozenset()


def test_a_certificate_that_could_not_be_written_is_not_issued(tmp_path: Path) -> None:
    hub = Hub(tmp_path)
    request = x509.load_pem_x509_csr(
        make_request(ec.generate_private_key(ec.SECP256R1()), "edge").encode()
    )
    with (
        failing(None, lambda: OSError(errno.EROFS, "Read-only")),
        pytest.raises(OSError, match="R"),
    ):
        hub.authority.issue(request, "edge")
    assert len(hub.authority.issued) == 1
    assert hub.authority.good(hub.leaf) is not None


@pytest.mark.parametrize("error", [system_error(errno.ENOSPC), Killed], ids=["ENOSPC", "kill -9"])
def test_a_successor_that_was_cut_short_is_made_at_the_next_start(
    tmp_path: Path, error: Callable[[], BaseException]
) -> None:
    """What was issued stays good, and what was revoked stays revoked, under both authorities."""
    for step in count():
        hub = Hub(tmp_path / str(step))
        first = hub.authority.signers.all[-1].certificate
        later = NOW + 2600 * 86_400
        authority = Authority(hub.place, "hub", lambda now=later: now)
        with failing(step, error) as made, suppress(OSError, Killed):
            authority.signers.succeed()
        authority = Authority(hub.place, "hub", lambda now=later: now)
        authority.signers.succeed()
        assert load_certificates(hub.place / "ca.crt")[0] == first
        assert (
            load_certificates(hub.place / "ca.crt")[-1]
            == authority.signers.all[-1].certificate
            != first
        )
        assert len(authority.signers.all) == len(load_keys(hub.place / "ca.key")) == 2
        assert authority.good(hub.leaf) is not None
        authority.revoke("edge")
        lists = load_revocation_lists(hub.place / LIST)
        assert [each.issuer for each in lists] == [
            each.certificate.subject for each in authority.signers.all
        ]
        serial = hub.leaf.serial_number
        assert all(each.get_revoked_certificate_by_serial_number(serial) for each in lists)
        if len(made) <= step:
            break
    assert len(made) == 10


@pytest.mark.parametrize("is_put_back", [False, True])
def test_a_revocation_outlives_the_loss_of_what_was_issued(
    tmp_path: Path, is_put_back: bool
) -> None:
    """The list was derived anew from the file that was missing, or older: it was empty then."""
    hub = Hub(tmp_path)
    issued = hub.place / "issued.json"
    before = issued.read_bytes()
    hub.authority.revoke("edge")
    issued.unlink()
    if is_put_back:
        issued.write_bytes(before)
    hub.start()
    assert hub.refuses()
    assert hub.listed()
    (entry,) = hub.authority.issued
    assert (entry.name, entry.revoked) == ("edge" if is_put_back else "(unknown)", NOW)
