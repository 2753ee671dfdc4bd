"""Write each file that arrives into a directory; runs at the other end.

python pick_up.py INCOMING
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import sys
from pathlib import Path
from urllib.parse import unquote

from linkd.client import connect
from linkd.client.record import Record


class Unusable(Exception):
    """The message is no file that may be written here."""


def file_name(record: Record) -> str:
    """Return the name under which to write; never one that leads out of the directory."""
    name = unquote(record.headers.get("name", ""))
    if not name or len(os.fsencode(name)) > 200 or name.startswith(".") or "/" in name:
        raise Unusable(f"expected a file's name, got {name[:80]!r}")
    if "\0" in name or hashlib.sha256(record.body).hexdigest() != record.headers.get("sha256"):
        raise Unusable("the content is not the one that was sent")
    return name


def store(directory: Path, name: str, content: bytes) -> None:
    """Write a file so that it is there whole, on disk, or not at all."""
    part = directory / f".{name}.part"
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(directory / name)
    folder = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name too
    finally:
        os.close(folder)


async def main(incoming: Path) -> None:
    """Write files until the process is stopped, at any point."""
    async with connect() as node:
        async for record in node.subscribe("files", consumer="pick-up", start="earliest"):
            try:
                name = file_name(record)
            except Unusable as error:
                print("unusable", record.offset, error, flush=True)
            else:
                # In a thread: the disk may be slow. A full disk ends the program before the ack;
                # the service manager starts it again, and it gets the same file.
                await asyncio.to_thread(store, incoming, name, record.body)
                print("received", name, len(record.body), flush=True)
            record.ack()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: pick_up.py DIRECTORY")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(Path(sys.argv[1])))
