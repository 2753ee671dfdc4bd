"""Paths of a link and of its token, alone and below the path of a proxy."""

from __future__ import annotations

import pytest

from linkd.net.http_head import LINK_PATH, is_below, token_path, usual_upgrade

UPGRADE = (
    "GET {} HTTP/1.1\r\nHost: hub\r\nUpgrade: websocket\r\nConnection: upgrade\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Protocol: linkd.1"
)


@pytest.mark.parametrize(
    ("link", "token"),
    [
        ("/link", "/token"),
        ("/linkd/link", "/linkd/token"),
        ("/a/b/", "/a/b/token"),
        ("/x", "/token"),
    ],
)
def test_a_token_is_asked_for_beside_the_link(link: str, token: str) -> None:
    assert token_path(link) == token


@pytest.mark.parametrize(
    ("path", "is_link"),
    [
        ("/link", True),
        ("/linkd/link", True),
        ("/linkd/link/", False),
        ("/uplink", False),
        ("/?/link", False),
        ("link", False),
        ("/link/elsewhere", False),
    ],
)
def test_only_the_last_segment_of_a_path_counts(path: str, is_link: bool) -> None:
    assert is_below(path, LINK_PATH) is is_link
    found = usual_upgrade(UPGRADE.format(path).encode())
    assert (found is not None) is is_link
    assert found is None or found.path == path
