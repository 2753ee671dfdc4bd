"""`linkd publish`: one message, or one for each line."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Final
from urllib.parse import urlencode

from linkd.cli import exits, http
from linkd.cli.exits import CommandError
from linkd.cli.options import add_socket, seconds, socket_path, wait_seconds
from linkd.cli.output import print_json
from linkd.client.http import call, expect
from linkd.errors import BadRecord
from linkd.protocol.json import JSON, render_body
from linkd.protocol.records import check_headers

MAX_BODY_BYTES: Final = 16 * 1024 * 1024
DEFAULT_TIMEOUT: Final = 30.0


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's description, arguments and options."""
    parser.description = (
        "Publish one message, or with --lines one a line; return once it is on disk."
    )
    add_socket(parser)
    parser.add_argument("channel", metavar="CHANNEL", help="words between dots, such as orders.new")
    parser.add_argument(
        "body",
        nargs="?",
        default="-",
        metavar="BODY",
        help="the message; absent or -: standard input, all of it; '' is an empty message",
    )
    parser.add_argument("--lines", action="store_true", help="each line of the input is a message")
    parser.add_argument(
        "--type", default="", metavar="T", help="the kind of message, in the application's words"
    )
    parser.add_argument(
        "--id", default="", metavar="ID", help="published again with it, nothing is stored"
    )
    parser.add_argument(
        "--ttl", type=seconds, metavar="S", help="drop it if it is not there after S seconds"
    )
    parser.add_argument(
        "--content-type",
        default="",
        metavar="TYPE",
        help="what the body is, such as text/plain; a JSON object or array is application/json",
    )
    parser.add_argument(
        "--header",
        type=_header,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a short string to go with it; may be given up to 16 times",
    )
    parser.add_argument("--wait", metavar="PEER", help="return only once that peer has it on disk")
    parser.add_argument(
        "--timeout",
        type=wait_seconds,
        default=DEFAULT_TIMEOUT,
        metavar="S",
        help="how long --wait waits (default: %(default)g seconds)",
    )
    parser.add_argument("--json", action="store_true", help="print the answer as an object")


def run(arguments: argparse.Namespace) -> int:
    """Publish; returns once it is on disk, or with `--wait` on the peer's disk."""
    if arguments.lines:
        if arguments.id:
            raise CommandError("--id names one message, --lines publishes many")
        from linkd.cli.streaming import publish_lines  # noqa: PLC0415 - one message starts fast

        return publish_lines(arguments)
    body = _body(arguments.body)
    answer = expect(
        call(
            socket_path(arguments),
            "POST",
            _target(arguments),
            body,
            _headers(arguments, body),
            timeout=10.0 + (arguments.timeout if arguments.wait else 0.0),
        )
    ).json()
    if arguments.json:
        print_json(answer)
    elif answer.get("duplicate"):
        print(f"offset {answer['offset']} (published before, nothing stored)")
    else:
        has_it = "" if arguments.wait is None else f", {arguments.wait} has it"
        print(f"offset {answer['offset']}{has_it}" + ("" if body else " (an empty message)"))
    return exits.OK


def _target(arguments: argparse.Namespace) -> str:
    target = f"/v1/channels/{http.quoted(arguments.channel)}"
    if arguments.wait is None:
        return target
    return f"{target}?{urlencode({'wait': arguments.wait, 'timeout': arguments.timeout})}"


def content_type_of(body: bytes) -> str:
    """Return the content type of a JSON object or array, so that clients read it as one."""
    return JSON if body[:1] in (b"{", b"[") and render_body(body, "")[0] == "data" else ""


def _headers(arguments: argparse.Namespace, body: bytes) -> dict[str, str]:
    given = {
        "Content-Type": arguments.content_type or content_type_of(body),
        "Linkd-Type": arguments.type,
        "Linkd-Id": arguments.id,
        "Linkd-Ttl": "" if arguments.ttl is None else f"{arguments.ttl:g}",
    }
    about = {f"Linkd-Header-{name}": value for name, value in headers_of(arguments).items()}
    return {name: value for name, value in given.items() if value} | about


def headers_of(arguments: argparse.Namespace) -> dict[str, str]:
    """Return the record's headers as given.

    Raises:
        CommandError: A name occurs twice, or a record can't carry them.
    """
    given = dict(arguments.header)
    try:
        headers = check_headers(given) or {}
    except BadRecord as error:
        raise CommandError(f"--header: {error}") from None
    if len(headers) < len(arguments.header):
        raise CommandError("--header: a name is given twice")
    return headers


def _header(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    return name, value.strip()


def check_input() -> None:
    """Raise CommandError if standard input was closed: that is not an empty message."""
    if getattr(sys.stdin, "name", "") == os.devnull:  # what the command line put in its place
        raise CommandError("expected a message on standard input, which is closed")


def _body(given: str) -> bytes:
    """Return the message: the argument, or all of standard input."""
    if given != "-":
        return given.encode("utf-8", "surrogateescape")
    check_input()
    if sys.stdin.isatty():
        sys.stderr.write("linkd: the message is read from here: type it, then ^D\n")
    try:
        body = sys.stdin.buffer.read(MAX_BODY_BYTES + 1)
    except OSError as error:  # a bad disk: half a file is no message
        raise CommandError(f"cannot read the input: {error.strerror}") from None
    if len(body) > MAX_BODY_BYTES:
        raise CommandError(f"expected at most {MAX_BODY_BYTES} bytes, got more; try --lines")
    return body
