"""A daemon that knows only `/v1/stream`, for the client's tests; its log outlives `stop`."""

from __future__ import annotations

import time
from collections import Counter
from http import HTTPStatus
from pathlib import Path

from websockets.asyncio.server import Server, ServerConnection, unix_serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from linkd.protocol import client
from linkd.protocol.channels import Patterns
from linkd.protocol.records import decode_records, join_raw, split_raw
from linkd.status import LinkStatus

LINK = LinkStatus(
    peer="hub", role="dialer", state="up", since_seconds=1.0, generation=None, address=None,
    rtt_seconds=None, silence_seconds=None, backlog_records=0, backlog_bytes=0,
    backlog_age_seconds=None, sent_records=0, received_records=0, attempts=0,
    next_attempt_seconds=None, reason=None, detail=None, peer_version=None,
    certificate_expires_seconds=None,
)  # fmt: skip


class StreamDaemon:
    """The stream of a node named `edge-1`, on a unix socket.

    Attributes:
        batches: (offset, Publish) of all that was stored.
        consumers: Name: its cursor.
        deaf: Publishes are stored, but not answered.
        die_after: The connection is cut, unanswered, once so many more publishes are stored.
        refusals: So many further connections are refused with 403.
        subscribed: How many Subscribe frames came, by patterns.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.batches: list[tuple[int, client.Publish]] = []
        self.next = 1
        self.first = 1
        self.consumers: dict[str, int] = {}
        self.producers: dict[str, dict[int, int]] = {}
        self.deaf = False
        self.die_after: int | None = None
        self.subscribed: Counter[tuple[str, ...]] = Counter()
        self.opened = 0
        self.refusals = 0
        self._server: Server | None = None
        self._connections: dict[ServerConnection, dict[int, tuple[Patterns, int, str, int]]] = {}

    async def start(self) -> None:
        """Listen."""
        self._server = await unix_serve(
            self._serve, str(self.path), subprotocols=[client.SUBPROTOCOL],  # type: ignore[list-item]
            compression=None, max_size=client.MAX_MESSAGE_BYTES, process_request=self._refuse,
        )  # fmt: skip

    def _refuse(self, connection: ServerConnection, _: Request) -> Response | None:
        if not self.refusals:
            return None
        self.refusals -= 1
        return connection.respond(HTTPStatus.FORBIDDEN, "not you\n")

    async def stop(self) -> None:
        """End at once, as by kill -9: no goodbye."""
        for connection in list(self._connections):
            connection.transport.abort()
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
        self.path.unlink(missing_ok=True)

    def bodies(self, channel: str) -> list[bytes]:
        """Return the bodies stored on a channel, in order."""
        return [
            record.body
            for _, each in self.batches
            if each.channel == channel
            for record in decode_records(each.records, each.count)
        ]

    async def trim(self, before: int) -> None:
        """Forget what lies below an offset."""
        self.batches = [entry for entry in self.batches if entry[0] >= before]
        self.first = before

    async def _serve(self, connection: ServerConnection) -> None:
        self._connections[connection] = {}
        producer = ""
        try:
            async for message in connection:
                assert isinstance(message, bytes)
                for frame in client.decode_from_client(message):
                    if isinstance(frame, client.Open):
                        producer = f"{frame.producer}/{frame.run}"
                    await self._frame(connection, producer, frame)
        except ConnectionClosed:
            pass
        finally:
            del self._connections[connection]

    async def _send(self, connection: ServerConnection, *frames: client.FromDaemon) -> None:
        await connection.send(client.encode(frames))

    async def _frame(
        self, connection: ServerConnection, producer: str, frame: client.FromClient
    ) -> None:
        readers = self._connections[connection]
        if isinstance(frame, client.Open):
            self.opened += 1
            await self._send(
                connection,
                client.Opened(1, "edge-1", "fake", "log-1", self.next, 1_048_576, 4_194_304),
            )
        elif isinstance(frame, client.Publish):
            await self._publish(connection, producer, frame)
        elif isinstance(frame, client.WatchStatus):
            await self._send(connection, client.StatusChanged((LINK,)))
        elif isinstance(frame, client.WaitForPeer):
            error = "" if frame.peer == "hub" else "not-found"
            await self._send(connection, client.WaitResult(frame.id, error))
        elif isinstance(frame, client.Subscribe):
            self.subscribed[frame.patterns] += 1
            start = {"earliest": self.first, "latest": self.next}.get(str(frame.start), frame.start)
            if frame.consumer:
                start = self.consumers.setdefault(frame.consumer, int(start))
            await self._send(connection, client.Subscribed(frame.id, int(start)))
            if int(start) < self.first:
                await self._send(
                    connection, client.SubscriptionGap(frame.id, int(start), self.first)
                )
            entry = (
                Patterns(frame.patterns),
                max(int(start), self.first),
                frame.consumer,
                frame.credit,
            )
            readers[frame.id] = entry
            await self._deliver(connection)
        elif isinstance(frame, client.Credit):
            patterns, at, consumer, credit = readers[frame.id]
            readers[frame.id] = (patterns, at, consumer, credit + frame.bytes)
            await self._deliver(connection)
        elif isinstance(frame, client.ConsumerAck):
            name = readers[frame.id][2]
            self.consumers[name] = max(self.consumers[name], frame.next)
            await self._send(connection, client.ConsumerAcked(frame.id, frame.next))
        elif isinstance(frame, client.Unsubscribe):
            readers.pop(frame.id, None)
            await self._send(connection, client.Ended(frame.id, "unsubscribed"))

    async def _publish(
        self, connection: ServerConnection, producer: str, frame: client.Publish
    ) -> None:
        if frame.channel == "refused":
            failed = client.PublishFailed(frame.sequence, "log-full", "no room")
            await self._send(connection, failed)
            return
        if frame.wait not in ("", "hub"):
            failed = client.PublishFailed(frame.sequence, "not-found", "no such peer")
            await self._send(connection, failed)
            return
        known = self.producers.setdefault(producer, {})
        if frame.sequence in known:
            answer = client.Published(frame.sequence, known[frame.sequence], 0, duplicate=True)
            await self._send(connection, answer)
            return
        known[frame.sequence] = self.next
        self.batches.append((self.next, frame))
        answer = client.Published(frame.sequence, self.next, frame.count)
        self.next += frame.count
        if self.die_after is not None:
            self.die_after -= 1
            if self.die_after <= 0:
                self.die_after = None
                connection.transport.abort()
                return
        if not self.deaf:
            await self._send(connection, answer)
        for other in list(self._connections):
            await self._deliver(other)

    async def _deliver(self, connection: ServerConnection) -> None:
        """Send each reader what it has credit for."""
        readers = self._connections[connection]
        for id_, (patterns, start, consumer, allowed) in list(readers.items()):
            at, credit = start, allowed
            for offset, each in self.batches:
                if offset + each.count <= at or credit <= 0:
                    continue
                skip = max(0, at - offset)
                at = offset + each.count
                if patterns.match(each.channel):
                    rest = split_raw(each.records, each.count)[skip:]
                    records = join_raw(rest)
                    credit -= len(records)
                    first = offset + skip
                    frame = client.Deliver(
                        id_, first, each.channel, len(rest), records, time.time(), "edge-1", first
                    )
                    await self._send(connection, frame)
            readers[id_] = (patterns, at, consumer, credit)
