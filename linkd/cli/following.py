"""What commands on the stream share: a connection that must be up at first, and may fall later."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, TextIO

from linkd.cli.audience import when_gone
from linkd.cli.exits import ReaderGone
from linkd.cli.options import socket_path
from linkd.cli.text import json_text, printable
from linkd.client import connect
from linkd.client.aio import Node
from linkd.client.errors import NoDaemon, Refused
from linkd.client.record import Record


@asynccontextmanager
async def connected(arguments: argparse.Namespace, **options: Any) -> AsyncIterator[Node]:
    """Yield a node that is up; it then outlives restarts of the daemon, which are told on stderr.

    Raises:
        NoDaemon: Nobody answers at the socket at first.
        Refused: The daemon refuses the connection.
    """
    path = socket_path(arguments)
    is_up = False

    def report(error: Exception) -> None:
        if is_up:  # before, the error is raised
            sys.stderr.write(f"linkd: {error}\n")

    logging.getLogger("linkd.client").addHandler(logging.NullHandler())  # stderr has it already
    node = connect(path, max_delay=2.0, on_error=report, **options)
    async with node:
        async for status in node.status:
            if status.state == "up":
                break
            if status.state == "rejected":
                raise Refused("refused", status.reason or "")
            if status.state == "waiting":
                raise NoDaemon(status.reason or f"no daemon at {path}")
        is_up = True
        yield node


def follow(arguments: argparse.Namespace, output: TextIO) -> None:
    """Print records until there were `--count` of them.

    Raises:
        ReaderGone: Nobody reads `output` any more.
    """
    asyncio.run(_follow(arguments, output))


async def _follow(arguments: argparse.Namespace, output: TextIO) -> None:
    """Print until all is printed, or the reader of the output is gone."""
    loop = asyncio.get_running_loop()
    printing = asyncio.create_task(_print(arguments, output))
    gone = asyncio.Event()

    def end() -> None:
        gone.set()
        printing.cancel()

    def tell() -> None:
        with suppress(RuntimeError):  # The loop has ended.
            loop.call_soon_threadsafe(end)

    when_gone(output, tell)
    try:
        await printing
    except asyncio.CancelledError:
        if gone.is_set():
            raise ReaderGone from None
        raise


async def _print(arguments: argparse.Namespace, output: TextIO) -> None:
    left = arguments.count
    async with connected(arguments) as node:
        records = node.subscribe(
            *arguments.patterns, consumer=arguments.consumer, start=arguments.start
        )
        async for run in records.batches():
            shown = run if left is None else run[:left]
            lines = [_line(record, arguments.json) for record in shown]
            output.write("\n".join(lines) + "\n")
            output.flush()
            acked = records.ack(shown[-1].offset + 1) if arguments.consumer else None
            if left is not None:
                left -= len(shown)
                if left <= 0:
                    if acked is not None:
                        await acked
                    return


def _line(record: Record, as_json: bool) -> str:
    """Return a record in one line."""
    if as_json:
        return json_text(record.to_json())
    type_ = f" [{record.type}]" if record.type else ""
    headers = " ".join([f"{name}={value}" for name, value in record.headers.items()])
    about = f" {{{headers}}}" if headers else ""
    offset = f"{record.offset:>8}" if record.offset else "volatile"
    return printable(f"{offset} {record.channel}{type_}{about} {_body(record)}")


def _body(record: Record) -> str:
    """Return a body for people: text, or how many bytes, or that there are none."""
    if record.unreadable:
        return f"(unreadable: {len(record.body)} bytes that are no record; see --json)"
    try:
        return record.body.decode() or "(empty)"
    except UnicodeDecodeError:
        return f"({len(record.body)} bytes)"
