"""Publish each file that appears in a directory, then move it to `.sent`.

python drop.py OUTGOING

Write a file under a name that begins with a dot, then rename it: names with a dot are left alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import sys
from pathlib import Path
from urllib.parse import quote

from linkd.client import connect
from linkd.client.aio import Node
from linkd.errors import BodyTooLarge, LogFull

POLL_SECONDS = 0.5
RETRY_SECONDS = 2.0


def waiting(outgoing: Path) -> list[tuple[int, Path]]:
    """Return the files that are to be sent, each behind its time, oldest first."""
    files = [file for file in outgoing.glob("[!.]*") if file.is_file()]
    return sorted((file.stat().st_mtime_ns, file) for file in files)


async def send(node: Node, written: int, file: Path) -> bool:
    """Publish one file; return False if it is too large for a message."""
    content = await asyncio.to_thread(file.read_bytes)
    digest = hashlib.sha256(content).hexdigest()
    try:
        await node.publish(
            "files",
            content,
            # The same file again, after a crash before it is moved, is stored once. A file that is
            # dropped again on purpose has another time.
            id=f"{digest}-{written}",
            headers={"name": quote(file.name), "sha256": digest},
        )
    except BodyTooLarge as error:
        print("too large", file.name, error, flush=True)
        return False
    return True


async def main(outgoing: Path) -> None:
    """Send files until the process is stopped, at any point; oldest first."""
    sent, refused = outgoing / ".sent", outgoing / ".refused"
    sent.mkdir(exist_ok=True)
    refused.mkdir(exist_ok=True)
    async with connect() as node:
        while True:
            files = await asyncio.to_thread(waiting, outgoing)
            for written, file in files:
                try:
                    is_sent = await send(node, written, file)  # on the daemon's disk by now
                except LogFull as error:  # after a long outage: wait for room, and look again
                    print("waiting:", error, flush=True)
                    await asyncio.sleep(RETRY_SECONDS)
                    break
                file.replace((sent if is_sent else refused) / file.name)
                if is_sent:
                    print("sent", file.name, flush=True)
            if not files:
                await asyncio.sleep(POLL_SECONDS)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: drop.py DIRECTORY")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(Path(sys.argv[1])))
