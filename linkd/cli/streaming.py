"""Commands on the stream: connect, follow, and publish many lines in batches."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, TextIO

from linkd.cli import exits
from linkd.cli.exits import CommandError, ReaderGone, on_reader_closed
from linkd.cli.options import socket_path
from linkd.cli.output import json_text, plural, print_json, printable, size
from linkd.cli.publish import check_input, content_type_of, headers_of
from linkd.client import connect
from linkd.client.aio import Enqueued, Node
from linkd.client.errors import NoDaemon, Refused, TimedOut
from linkd.client.options import PublishManyOptions, Stored
from linkd.client.record import Record
from linkd.errors import BodyTooLarge, LinkdError


@asynccontextmanager
async def connected(arguments: argparse.Namespace, **options: Any) -> AsyncIterator[Node]:
    """Yield a connected node; it outlives restarts of the daemon and reports them on stderr.

    Raises:
        NoDaemon: Nothing answers at the socket at first.
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
    """Print records, up to `--count`.

    Raises:
        ReaderGone: `output` has no reader any more.
    """
    asyncio.run(_follow(arguments, output))


async def _follow(arguments: argparse.Namespace, output: TextIO) -> None:
    """Print until done, or until the reader of the output is gone."""
    loop = asyncio.get_running_loop()
    printing = asyncio.create_task(_print(arguments, output))
    gone = asyncio.Event()

    def end() -> None:
        gone.set()
        printing.cancel()

    def notify() -> None:
        with suppress(RuntimeError):  # The loop has ended.
            loop.call_soon_threadsafe(end)

    on_reader_closed(output, notify)
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
            *arguments.patterns, consumer=arguments.consumer or "", start=arguments.start
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
    """Return a body for people: text, or the number of bytes."""
    if record.unreadable:
        return f"(unreadable: {len(record.body)} bytes that are no record; see --json)"
    try:
        return record.body.decode() or "(empty)"
    except UnicodeDecodeError:
        return f"({len(record.body)} bytes)"


READ_BYTES: Final = 262_144
MAX_AHEAD: Final = 16
"""So many pieces of input may be read, and so many publishes be under way, ahead of the daemon."""

PROGRESS_SECONDS: Final = 0.2
SETTLE_SECONDS: Final = 3.0
"""After an error or ^C the answers to what is under way are awaited for so long."""


def publish_lines(arguments: argparse.Namespace) -> int:
    """Publish each line of the input; returns once all are on disk.

    Raises:
        CommandError: The daemon refused some; the message has how many were stored before.
    """
    if arguments.body != "-":
        raise CommandError("--lines reads standard input: leave BODY out, or give -")
    stored = asyncio.run(_publish(arguments))
    if arguments.json:
        print_json(stored)
    elif stored.count:
        print(f"{plural(stored.count, 'message')}, offsets {stored.first} to {stored.last}")
    else:
        print("no line, no message")
    return exits.OK


async def _publish(arguments: argparse.Namespace) -> Stored:
    given = arguments.content_type

    def encode(line: bytes) -> tuple[bytes, str]:
        return line, given or content_type_of(line)

    async with connected(arguments, encode=encode) as node:
        lines = _Lines(node, arguments)
        try:
            check_input()
            await lines.all(Input(sys.stdin.fileno()))
            if arguments.wait and lines.total.count:
                behind = lines.total.last + 1 if lines.total.last else 0
                await node.wait_for(arguments.wait, arguments.channel, behind, arguments.timeout)
        except asyncio.CancelledError:
            # Handled here. Else a timeout can't cancel this task again before Python 3.11.4.
            if (task := asyncio.current_task()) is not None:
                task.uncancel()
            raise CommandError(await lines.stored("interrupted"), exits.INTERRUPTED) from None
        except (LinkdError, OSError, ValueError) as error:
            raise CommandError(await lines.stored(str(error)), _exit_code(error)) from None
        finally:
            lines.progress.end()
        return lines.total


def _exit_code(error: Exception) -> int:
    if isinstance(error, TimedOut):
        return exits.TIMED_OUT
    return exits.REFUSED if isinstance(error, LinkdError) else exits.USAGE


class _Lines:
    """The lines of one input that are being published."""

    def __init__(self, node: Node, arguments: argparse.Namespace) -> None:
        self.total = Stored(0, 0, 0)
        self.progress = Progress(_file_bytes(sys.stdin.fileno()))
        self._node = node
        self._arguments = arguments
        self._headers = headers_of(arguments)
        self._under_way: deque[tuple[int, Enqueued]] = deque()
        self._behind = 0  # lines since the first that is not known to be stored
        self._unknown = 0  # those of them up to the last that is or may be stored

    async def all(self, given: Input) -> None:
        """Publish to the end of the input, with several publishes in flight."""
        rest = b""
        while piece := await given.read():
            *lines, rest = (rest + piece).split(b"\n")
            await self._send(lines, rest)
            self.progress.show(self.total.count, len(piece))
        if rest:
            await self._send([rest])
        while self._under_way:
            await self._settle()

    async def stored(self, why: str) -> str:
        """Return what was stored before `why`, once all in flight is settled, or soon."""
        with suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_SECONDS):
                while self._under_way:
                    with suppress(LinkdError):
                        await self._settle()
        for count, under_way in self._under_way:
            self._add(under_way, count)
            self._unknown = self._behind
        more = f"of {self._unknown:,} more it is not known, " if self._unknown else ""
        return f"{plural(self.total.count, 'message')} stored, {more}then: {why}"

    async def _send(self, lines: list[bytes], rest: bytes = b"") -> None:
        """Publish lines up to the first that is too long, for which BodyTooLarge is raised."""
        most = self._node.max_body_bytes
        for place, line in enumerate((*lines, rest)):
            if len(line) > most:
                await self._send(lines[:place])
                raise BodyTooLarge(f"expected lines of at most {most} bytes, got {len(line)}")
        if not lines:
            return
        given = self._arguments
        options: PublishManyOptions = {"type": given.type, "headers": self._headers}
        if given.ttl is not None:
            options["ttl"] = given.ttl
        if given.wait:
            options["wait"] = given.wait
        under_way = await self._node.enqueue(given.channel, lines, **options)
        self._under_way.append((len(lines), under_way))
        while self._under_way and (
            self._under_way[0][1].done() or len(self._under_way) > MAX_AHEAD
        ):
            await self._settle()

    async def _settle(self) -> None:
        _, under_way = self._under_way[0]
        try:
            await under_way
        finally:
            if under_way.done():
                self._add(under_way, self._under_way.popleft()[0])

    def _add(self, under_way: Enqueued, count: int) -> None:
        """Count a publish of `count` lines.

        A log that was full may have room again for what comes next: lines behind a refused one do
        not count as stored before it.
        """
        stored, leading = under_way.stored, 0
        if not self._behind:
            leading = under_way.leading
            first, last = self.total.first or stored.first, stored.last or self.total.last
            self.total = Stored(first, last, self.total.count + leading)
        self._behind += count - leading
        if stored.count > leading:
            self._unknown = self._behind


class Input:
    """Bytes of a file, pipe or terminal as they arrive, read in a thread of its own.

    The thread is a daemon, so that an idle pipe does not delay ^C.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[bytes | OSError] = asyncio.Queue()
        self._room = threading.Semaphore(MAX_AHEAD)
        threading.Thread(target=self._run, name="input", daemon=True).start()

    async def read(self) -> bytes:
        """Return the next bytes; empty at the end; raise OSError if it can't be read."""
        piece = await self._pieces.get()
        self._room.release()
        if isinstance(piece, OSError):
            raise piece
        return piece

    def _run(self) -> None:
        piece = b"-"
        given: bytes | OSError
        while piece:
            self._room.acquire()
            try:
                piece = os.read(self._fd, READ_BYTES)
            except OSError as error:
                failed = OSError(error.errno, f"cannot read the input: {error.strerror}")
                piece, given = b"", failed
            else:
                given = piece
            try:
                self._loop.call_soon_threadsafe(self._pieces.put_nowait, given)
            except RuntimeError:  # The loop has ended.
                return


class Progress:
    """A progress line on a terminal's stderr; nothing elsewhere.

    Args:
        whole: Bytes of the whole input; 0 if unknown.
    """

    def __init__(self, whole: int) -> None:
        self._whole = whole
        self._done = 0
        self._began = time.monotonic()
        self._shown = self._began
        self._on = sys.stderr.isatty()
        self._drawn = False

    def show(self, messages: int, more: int) -> None:
        """Redraw, at most five times a second."""
        self._done += more
        now = time.monotonic()
        if not self._on or now - self._shown < PROGRESS_SECONDS:
            return
        self._shown, self._drawn = now, True
        rate = messages / (now - self._began)
        sys.stderr.write(f"\r\x1b[K{progress_text(self._done, self._whole, messages, rate)}")
        sys.stderr.flush()

    def end(self) -> None:
        """Remove the line."""
        if self._drawn:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def progress_text(done: int, whole: int, messages: int, rate: float) -> str:
    """Return the progress in one line, with a bar if the whole is known."""
    text = f"{messages:,} messages, {size(done)}, {rate:,.0f}/s"
    if not whole:
        return text
    share = min(1.0, done / whole)
    return f"[{'#' * round(share * 24):<24}] {share:4.0%} {text}"


def _file_bytes(fd: int) -> int:
    """Return how many bytes are left in a regular file; 0 for anything else."""
    about = os.fstat(fd)
    if not stat.S_ISREG(about.st_mode):
        return 0
    return max(0, about.st_size - os.lseek(fd, 0, os.SEEK_CUR))
