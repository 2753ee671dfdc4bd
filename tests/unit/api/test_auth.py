"""What patterns cover, and what a caller may do. Keys, tokens and cookie sessions: whose they are,
and when they end.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from linkd.api import auth
from linkd.api.auth import (
    ENDED_SESSIONS_FILE,
    SESSION_SECONDS,
    SOCKET,
    TOKEN_SECONDS,
    Caller,
    Keyring,
    covers,
)
from linkd.api.errors import ApiError
from linkd.errors import ConfigError
from linkd.protocol.channels import Patterns
from tests.support.fake_node import KEY, SHOP_KEY, make_config


@pytest.mark.parametrize(
    ("allowed", "wanted", "does"),
    [
        (">", ">", True),
        (">", "a.*.b", True),
        ("a.>", "a.b.>", True),
        ("a.>", "a", False),
        ("a.>", ">", False),
        ("a.>", "*.b", False),
        ("a.*", "a.b", True),
        ("a.*", "a.*", True),
        ("a.*", "a.>", False),
        ("a.*", "a.b.c", False),
        ("a.b", "a.*", False),
        ("a", "a", True),
        ("a.*.>", "a.>", False),
        ("a.*.>", "a.b.>", True),
    ],
)
def test_a_pattern_covers_another_word_by_word(allowed: str, wanted: str, does: bool) -> None:
    assert covers((allowed,), wanted) is does


def test_a_narrowed_caller_is_never_wider() -> None:
    caller = Caller("shop", (Patterns(("orders",)),), (Patterns(("orders", "news.*")),), False)
    wide = caller.narrowed(">")
    assert wide.check_publish("orders") == "orders"
    for refused in ("news.a", "other"):
        with pytest.raises(ApiError) as caught:
            wide.check_publish(refused)
        assert caught.value.error == "channel-refused"
    narrow = caller.narrowed("news.*")
    assert narrow.check_subscribe("news.a") == "news.a"
    for refused in ("orders", ">", "news.>"):
        with pytest.raises(ApiError):
            narrow.check_subscribe(refused)
    with pytest.raises(ApiError):
        narrow.check_publish("orders")
    with pytest.raises(ApiError):
        narrow.check_operator()


@pytest.mark.parametrize("channel", ["", "a..b", ">", "a" * 256, "a." * 1_000_000])
def test_publishing_refuses_names_that_are_no_channels(channel: str) -> None:
    rights = Patterns(("a.>",))
    with pytest.raises(ApiError) as caught:
        Caller("shop", (rights,), (), False).check_publish(channel)
    assert caught.value.error == "malformed"
    assert not rights._known  # it would be kept


@pytest.mark.parametrize("pattern", ["", "a..b", "a.>.b", "ä", "a b", "a" * 256])
def test_subscribing_refuses_names_that_are_no_patterns(pattern: str) -> None:
    with pytest.raises(ApiError) as caught:
        Caller("anyone").check_subscribe(pattern)
    assert caught.value.error == "malformed"


class Lab:
    """A keyring whose clocks a test sets."""

    def __init__(self, folder: Path) -> None:
        self.config = make_config(folder)
        self.now = 10.0
        self.wall = 1_790_000_000.0
        self.open()

    def open(self) -> Keyring:
        """Start anew."""
        self.keyring = Keyring(self.config, lambda: self.now, lambda: self.wall)
        return self.keyring

    def caller(self, secret: str) -> Caller:
        """Return whose key that is."""
        found = self.keyring.by_key(secret)
        assert found is not None
        return found


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def test_a_key_with_too_many_tokens_loses_its_own_oldest(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "MAX_TOKENS", 100)
    keyring = lab.keyring
    admins = keyring.issue(lab.caller(KEY), ())
    shops = [keyring.issue(lab.caller(SHOP_KEY), ()) for _ in range(500)]
    assert keyring.spend(admins) is not None
    assert keyring.spend(admins) is None
    good = [token for token in shops if keyring.spend(token) is not None]
    assert good == shops[-99:]


def test_a_token_opens_one_connection_within_its_time(lab: Lab) -> None:
    early, late = (lab.keyring.issue(lab.caller(KEY), ()) for _ in range(2))
    lab.now += TOKEN_SECONDS - 0.1
    assert lab.keyring.spend(early) is not None
    lab.now += 0.1
    assert lab.keyring.spend(late) is None


def test_expired_tokens_are_removed(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "MAX_TOKENS", 3)
    old = [lab.keyring.issue(lab.caller(KEY), ()) for _ in range(3)]
    lab.now += TOKEN_SECONDS
    fresh = lab.keyring.issue(SOCKET, ("orders",))
    assert all(lab.keyring.spend(token) is None for token in old)
    spent = lab.keyring.spend(fresh)
    assert spent is not None
    assert (spent[0].name, spent[1]) == ("socket", ("orders",))


def test_an_ended_session_stays_ended_over_restarts(lab: Lab) -> None:
    shop = lab.caller(SHOP_KEY)
    ended, other = lab.keyring.open_session(shop, ()), lab.keyring.open_session(shop, ("orders",))
    lab.keyring.end_session(ended)
    lab.keyring.end_session("nothing of ours")
    for keyring in (lab.keyring, lab.open()):
        assert keyring.by_cookie(ended) is None
        found = keyring.by_cookie(other)
        assert found is not None
        assert (found.name, found.narrowing) == ("shop", ("orders",))


def test_ended_sessions_are_kept_until_they_expire_and_bounded(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(auth, "MAX_ENDED", 5)
    admin = lab.keyring.open_session(lab.caller(KEY), ())
    lab.keyring.end_session(admin)
    for _ in range(20):
        lab.keyring.end_session(lab.keyring.open_session(lab.caller(SHOP_KEY), ()))
    assert lab.keyring.by_cookie(admin) is None
    lab.wall += SESSION_SECONDS
    lab.keyring.end_session(lab.keyring.open_session(lab.caller(SHOP_KEY), ()))
    found = msgspec.msgpack.decode((tmp_path / ENDED_SESSIONS_FILE).read_bytes())
    assert {name: len(mine) for name, mine in found.items()} == {"shop": 1}


def test_a_session_ends_although_its_file_cannot_be_written(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / ENDED_SESSIONS_FILE).mkdir()
    cookie = lab.keyring.open_session(lab.caller(KEY), ())
    lab.keyring.end_session(cookie)
    assert lab.keyring.by_cookie(cookie) is None
    assert lab.open().by_cookie(cookie) is not None


def test_a_session_ends_with_its_key(lab: Lab) -> None:
    cookie = lab.keyring.open_session(lab.caller(SHOP_KEY), ())
    api = msgspec.structs.replace(lab.config.api, keys=lab.config.api.keys[:1])
    lab.keyring.reload(msgspec.structs.replace(lab.config, api=api))
    assert lab.keyring.by_cookie(cookie) is None
    assert lab.keyring.by_cookie("x.y") is None


@pytest.mark.parametrize("name", ["socket", "anyone", "stranger", "unowned"])
def test_a_key_cannot_use_the_name_of_a_built_in_owner(lab: Lab, name: str) -> None:
    keys_ = (msgspec.structs.replace(lab.config.api.keys[0], name=name),)
    api = msgspec.structs.replace(lab.config.api, keys=keys_)
    with pytest.raises(ConfigError, match="choose another name"):
        lab.keyring.reload(msgspec.structs.replace(lab.config, api=api))
