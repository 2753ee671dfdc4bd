"""`linkd token`: a token that opens one connection, or the dashboard."""

from __future__ import annotations

import argparse
import socket

from linkd.cli import exits, http
from linkd.cli.exits import CommandError
from linkd.cli.options import add_socket, configuration
from linkd.cli.output import print_json

_ANY_4 = "0.0.0.0"  # noqa: S104 - it is looked for, not bound


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's description, arguments and options."""
    parser.description = "Print a token: it opens one connection within 30 s, once."
    add_socket(parser)
    parser.add_argument("--channel", metavar="PATTERN", help="good for these channels only")
    parser.add_argument(
        "--dashboard", action="store_true", help="print an address of the dashboard for a browser"
    )
    parser.add_argument("--json", action="store_true", help="print an object")


def run(arguments: argparse.Namespace) -> int:
    """Print a new token: valid once, for 30 s."""
    body = None if arguments.channel is None else {"channel": arguments.channel}
    base = _base(arguments) if arguments.dashboard else None
    answer = http.post(arguments, "/v1/token", body).json()
    if base is not None:
        print(f"{base}/?token={answer['token']}")
    elif arguments.json:
        print_json(answer)
    else:
        print(answer["token"])
    return exits.OK


def _base(arguments: argparse.Namespace) -> str:
    """Return the address of the daemon's `http` out of the configuration."""
    api = configuration(arguments).api
    if api.http is None:
        raise CommandError("the dashboard needs `http` in [api], such as 127.0.0.1:9480")
    host, _, port = api.http.rpartition(":")
    host = {_ANY_4: "127.0.0.1", "[::]": "[::1]", "": "127.0.0.1"}.get(host, host)
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=3.0).close()
    except OSError as error:
        raise CommandError(
            f"nothing answers at {host}:{port} ({error.strerror or error}): a new `http` needs"
            " `systemctl restart linkd`",
            exits.REFUSED,
        ) from None
    return f"{'https' if api.certificate else 'http'}://{host}:{port}"
