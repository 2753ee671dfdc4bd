"""What patterns cover, and what a caller may do."""

from __future__ import annotations

import pytest

from linkd.api.auth import Caller, covers
from linkd.api.errors import Refusal
from linkd.protocol.channels import Patterns


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
def test_covers(allowed: str, wanted: str, does: bool) -> None:
    assert covers((allowed,), wanted) is does


def test_a_narrowed_caller_is_never_wider() -> None:
    caller = Caller("shop", (Patterns(("orders",)),), (Patterns(("orders", "news.*")),), False)
    wide = caller.narrowed(">")
    assert wide.check_publish("orders") == "orders"
    for refused in ("news.a", "other"):
        with pytest.raises(Refusal) as caught:
            wide.check_publish(refused)
        assert caught.value.error == "channel-refused"
    narrow = caller.narrowed("news.*")
    assert narrow.check_subscribe("news.a") == "news.a"
    for refused in ("orders", ">", "news.>"):
        with pytest.raises(Refusal):
            narrow.check_subscribe(refused)
    with pytest.raises(Refusal):
        narrow.check_publish("orders")
    with pytest.raises(Refusal):
        narrow.check_operator()


@pytest.mark.parametrize("channel", ["", "a..b", ">", "a" * 256, "a." * 1_000_000])
def test_what_is_no_channel_is_never_matched(channel: str) -> None:
    rights = Patterns(("a.>",))
    with pytest.raises(Refusal) as caught:
        Caller("shop", (rights,), (), False).check_publish(channel)
    assert caught.value.error == "malformed"
    assert not rights._known  # it would be kept


@pytest.mark.parametrize("pattern", ["", "a..b", "a.>.b", "ä", "a b", "a" * 256])
def test_what_is_no_pattern_is_malformed(pattern: str) -> None:
    with pytest.raises(Refusal) as caught:
        Caller("anyone").check_subscribe(pattern)
    assert caught.value.error == "malformed"
