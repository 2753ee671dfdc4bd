"""Tokens and cookie sessions of several instances of a node."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import Clock

from linkd.api import shared_auth
from linkd.api.auth import SOCKET, TOKEN_SECONDS, Keyring
from linkd.api.errors import ApiError
from linkd.api.shared_auth import SESSION, TOKEN, SharedAuth
from linkd.log.cursor_store import CursorStore, Done, Taken
from tests.support.fake_node import KEY, SHOP_KEY, make_config


class Store(CursorStore):
    """A store whose answers a test can keep back."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: Any = "at once"

    def share(self, kind: str, key: str, value: bytes | None, done: Done | None = None) -> None:
        """Share, and answer as the test says."""
        super().share(kind, key, value)
        if done is not None:
            self._answer(done, None)

    def take(self, kind: str, key: str, done: Taken) -> None:
        """Take, and answer as the test says."""
        super().take(kind, key, lambda found: self._answer(done, found))

    def _answer(self, done: Callable[[Any], None], found: Any) -> None:
        if self.answers == "at once":
            done(found)
        elif self.answers is not None:
            done(self.answers)


class Lab:
    """The keyrings of two instances on one store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store()
        self.clock = Clock()
        self.wall = 1_790_000_000.0
        self.a, self.b = self.keyring("a"), self.keyring("b")

    def keyring(self, name: str) -> Keyring:
        """Start an instance with a state directory of its own."""
        (self.folder / name).mkdir(exist_ok=True)
        now = partial(getattr, self, "wall")
        shared = SharedAuth(self.store, cast("Any", self.clock), now, now, TOKEN_SECONDS)
        config = make_config(self.folder / name)
        return Keyring(config, self.clock.seconds, lambda: self.wall, shared)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def result(call: Any) -> Any:
    """Return what a call answers at once."""
    found: list[Any] = []
    ensureDeferred(call).addBoth(found.append)
    assert found
    if hasattr(found[0], "raiseException"):
        found[0].raiseException()
    return found[0]


def test_a_token_of_one_instance_is_used_once_at_all(lab: Lab) -> None:
    token = result(lab.a.issue_shared(SOCKET, ("orders",)))
    assert lab.b.is_shared(token)
    caller, patterns = result(lab.b.redeem(token))
    assert (caller.name, patterns) == ("socket", ("orders",))
    with pytest.raises(ApiError):
        caller.check_subscribe("news")
    assert result(lab.a.redeem(token)) is None
    assert result(lab.b.redeem(token)) is None


def test_the_key_of_the_first_instance_is_shared_when_it_starts(lab: Lab) -> None:
    """Else the second one replaced it by its own, and refused the first one's token."""
    assert lab.store.shared(SESSION)["key"] == lab.a._own_signing != lab.b._own_signing


def test_what_no_instance_has_made_is_not_looked_up(lab: Lab, tmp_path: Path) -> None:
    token = result(lab.a.issue_shared(SOCKET, ()))
    for forged in ("", "x" * 64, "ä", token[:-2], token[:-2] + "00", token + "00", "00" * 32):
        assert not lab.b.is_shared(forged)
    alone = Keyring(make_config(tmp_path), lab.clock.seconds, lambda: lab.wall)
    assert not alone.is_shared(token)
    assert not lab.b.is_shared(alone.issue(SOCKET, ()))
    assert alone.spend(result(alone.issue_shared(SOCKET, ()))) is not None


def test_a_token_expires_and_only_its_hash_is_shared(lab: Lab) -> None:
    token = result(lab.a.issue_shared(SOCKET, ()))
    (key,) = lab.store.shared(TOKEN)
    assert token not in key
    lab.wall += TOKEN_SECONDS
    assert result(lab.b.redeem(token)) is None


def test_a_token_of_a_key_that_is_gone_is_good_for_nothing(lab: Lab) -> None:
    shop = lab.a.by_key(SHOP_KEY)
    assert shop is not None
    token = result(lab.a.issue_shared(shop, ()))
    lab.b._keys.pop(shop.name)
    assert result(lab.b.redeem(token)) is None


def test_old_tokens_are_removed(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_auth, "MAX_TOKENS", 3)
    spent, *others = [result(lab.a.issue_shared(SOCKET, ())) for _ in range(3)]
    assert result(lab.a.redeem(spent)) is not None
    fresh = result(lab.a.issue_shared(SOCKET, ()))
    assert len(lab.store.shared(TOKEN)) == 3
    last = result(lab.a.issue_shared(SOCKET, ()))
    assert result(lab.b.redeem(others[0])) is None
    assert result(lab.b.redeem(fresh)) is not None
    lab.wall += TOKEN_SECONDS
    result(lab.a.issue_shared(SOCKET, ()))
    assert len(lab.store.shared(TOKEN)) == 1
    assert result(lab.b.redeem(last)) is None


@pytest.mark.parametrize("answer", [None, OSError(5, "away")])
def test_without_the_database_a_caller_is_told_to_try_again(lab: Lab, answer: object) -> None:
    token = result(lab.a.issue_shared(SOCKET, ()))
    lab.store.answers = answer
    calls: list[Deferred[Any]] = [
        ensureDeferred(lab.a.issue_shared(SOCKET, ())),
        ensureDeferred(lab.b.redeem(token)),
    ]
    lab.clock.advance(shared_auth.WAIT_SECONDS)
    for call in calls:
        failed: list[Any] = []
        call.addErrback(failed.append)
        assert failed[0].value.status == 503


def test_an_answer_that_comes_too_late_harms_nothing(lab: Lab) -> None:
    late: list[Any] = []

    async def wait() -> None:
        await lab.a._shared._wait(late.append)  # type: ignore[union-attr]

    failed: list[Any] = []
    waiting: Deferred[None] = ensureDeferred(wait())
    waiting.addErrback(failed.append)
    lab.clock.advance(shared_auth.WAIT_SECONDS)
    assert failed[0].value.error == "unavailable"
    late[0](None)


def test_a_session_is_good_at_all_instances_until_it_is_ended_at_one(lab: Lab) -> None:
    admin = lab.a.by_key(KEY)
    assert admin is not None
    cookie, other = lab.a.open_session(admin, ("orders",)), lab.a.open_session(admin, ())
    found = lab.b.by_cookie(cookie)
    assert found is not None
    assert found.name == admin.name
    lab.b.end_session(cookie)
    lab.b.end_session("nonsense")
    for keyring in (lab.a, lab.b, lab.keyring("c")):
        assert keyring.by_cookie(cookie) is None
        assert keyring.by_cookie(other) is not None


def test_sessions_of_before_outlive_the_first_start_with_several(lab: Lab, tmp_path: Path) -> None:
    alone = Keyring(make_config(tmp_path / "a"), lab.clock.seconds, lambda: lab.wall)
    cookie, ended = alone.open_session(SOCKET, ()), alone.open_session(SOCKET, ())
    alone.end_session(ended)
    again = lab.keyring("a")
    assert again.by_cookie(cookie) is SOCKET
    assert again.by_cookie(ended) is None
    assert lab.b.by_cookie(cookie) is SOCKET


def test_ended_sessions_are_forgotten_in_time(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_auth, "MAX_ENDED", 2)
    cookies = [lab.a.open_session(SOCKET, ()) for _ in range(4)]
    admin = lab.a.by_key(KEY)
    assert admin is not None
    others = lab.b.open_session(admin, ())
    lab.b.end_session(others)
    for cookie in cookies[:3]:
        lab.a.end_session(cookie)
    assert [lab.b.by_cookie(cookie) for cookie in cookies[1:3]] == [None, None]
    assert lab.a.by_cookie(others) is None
    assert len(lab.store.shared(SESSION)) == 4  # and the key
    lab.wall += 50_000.0
    lab.a.end_session(lab.a.open_session(SOCKET, ()))
    assert len(lab.store.shared(SESSION)) == 2
