"""HTTP requests of the simple commands on the daemon's socket."""

from __future__ import annotations

import argparse
from typing import Any
from urllib.parse import quote

import msgspec

from linkd.cli.exits import CommandError
from linkd.cli.options import socket_path
from linkd.client.http import Answer, call, expect


def get(arguments: argparse.Namespace, target: str) -> Answer:
    """Return the daemon's answer to a GET; raise NoDaemon or Refused."""
    return expect(call(socket_path(arguments), "GET", target))


def post(arguments: argparse.Namespace, target: str, body: Any = None) -> Answer:
    """Return the daemon's answer to a POST of `body` as JSON; raise NoDaemon or Refused."""
    return expect(
        call(
            socket_path(arguments),
            "POST",
            target,
            b"" if body is None else msgspec.json.encode(body),
            {} if body is None else {"Content-Type": "application/json"},
            timeout=60.0,
        )
    )


def delete(arguments: argparse.Namespace, target: str) -> Answer:
    """Return the daemon's answer to a DELETE; raise NoDaemon or Refused."""
    return expect(call(socket_path(arguments), "DELETE", target))


def quoted(word: str) -> str:
    """Return `word` quoted as one segment of a path.

    Raises:
        CommandError: It is empty, or would leave its directory: it is no name.
    """
    if word in ("", ".", ".."):
        raise CommandError(f"expected a name, got {word!r}")
    return quote(word, safe="")
