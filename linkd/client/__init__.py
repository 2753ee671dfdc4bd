"""The client of a linkd daemon for asyncio: publish, subscribe, acknowledge, watch its links.

    async with linkd.client.connect() as node:
        await node.publish("orders", {"total": 12})

All of it survives a restart of the daemon. `linkd.client.twisted` is the same for Twisted.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Unpack

if TYPE_CHECKING:
    from linkd.client.aio import Node
    from linkd.client.options import ConnectOptions

__all__ = ["connect"]


def connect(where: str | os.PathLike[str] | None = None, **options: Unpack[ConnectOptions]) -> Node:
    """Return a node; `async with` starts and closes it.

    Args:
        where: The daemon's socket, or `http://HOST:PORT`; None: `LINKD_SOCKET`, else the usual one.
        **options: See ConnectOptions.

    Raises:
        ValueError: `where` is a URL of another kind.
        TypeError: An option is unknown.
    """
    from linkd.client.aio import Node  # noqa: PLC0415
    from linkd.client.options import ConnectSettings, address  # noqa: PLC0415 - commands start fast

    return Node(address(where), ConnectSettings(**options))
