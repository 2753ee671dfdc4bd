"""Handlers of status, events, outages, operator actions and the dashboard's files."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from importlib.resources import files
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from linkd.api.auth import ANYONE, COOKIE, SESSION_SECONDS, SOCKET, TOKEN_SECONDS
from linkd.api.call import Call, last_event, lasting_consumer, seconds, wants_stream, whole
from linkd.api.errors import ApiError, known_peer
from linkd.api.http import Response, answer, to_json
from linkd.api.metrics import consumer_lags
from linkd.api.sinks import stream_events
from linkd.errors import PublishError
from linkd.protocol.channels import Patterns, is_pattern

if TYPE_CHECKING:
    from linkd.api.auth import Caller
    from linkd.api.server import ApiServer
    from linkd.log.base import Log
    from linkd.log.interface import Consumer

TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "ts": "text/plain; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
    "LICENSE": "text/plain; charset=utf-8",
    "ORIGIN": "text/plain; charset=utf-8",
}
ALIASES = {"linkd.mjs": "linkd.js", "linkd.d.mts": "linkd.d.ts"}
"""Names under which Node.js and TypeScript take a file without settings of their own."""

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class StaticFile(msgspec.Struct, frozen=True):
    """A file as it is served."""

    body: bytes
    type: str
    etag: str


class StaticFiles:
    """All files of the dashboard, read once."""

    def __init__(self) -> None:
        self._files: dict[str, StaticFile] = {}
        for entry in files("linkd.api").joinpath("dashboard").iterdir():
            kind = TYPES.get(entry.name.rpartition(".")[2])
            if kind is not None and entry.is_file():
                body = entry.read_bytes()
                etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
                self._files[entry.name] = StaticFile(body, kind, etag)

    def answer(self, path: str, known: str | None) -> Response:
        """Return the file of a path; 304 where the caller has it (`known`: its If-None-Match).

        Raises:
            ApiError: There is none.
        """
        name = "index.html" if path == "/" else path.removeprefix("/dashboard/").lstrip("/")
        found = self._files.get(ALIASES.get(name, name))
        if found is None:
            raise ApiError("not-found", f"there is no file {name[:80]}")
        headers = {"ETag": found.etag, "Cache-Control": "no-cache"}
        if name == "index.html":
            headers["Content-Security-Policy"] = PAGE_POLICY
        if known is not None and found.etag in [one.strip() for one in known.split(",")]:
            return Response(304, headers=headers)
        return Response(200, found.body, found.type, headers)


DRILL_PATTERN = r"^[a-z][a-z0-9-]{0,31}$"
"""Valid names of drills."""

MAX_DRAIN_SECONDS = 3600.0

PENDING_SECONDS = 1.0
"""Seconds a call may count what consumers have yet to read, in slices of its caller's turns.

Some ms for each GiB, and about 10 s for a million channels.
"""

PENDING_STEP = 64
"""Channels between two looks at the clock: up to half a millisecond."""

_CLEARED = f"{COOKIE}=; HttpOnly; SameSite=Strict; Path=/; Max-Age=0"


async def status(api: ApiServer, call: Call) -> Response:
    """Answer the status, as far as the caller may see it."""
    links = await api.link_statuses(call.caller.name)
    return answer(api.node.status(links, call.caller.visible_owner))


async def instances(api: ApiServer, _: Call) -> Response:
    """Answer the instances that serve this node; none where it is one without a name."""
    found = api.node.instances
    return answer({"instances": [] if found is None else found.statuses()})


async def events(api: ApiServer, call: Call) -> Response | None:
    """Answer the remembered changes, or follow them."""
    after, last = call.number("after", 0), last_event(call)
    after = after if last is None else last
    if wants_stream(call):
        stream_events(api, call, after)
        return None
    found = [one for one in api.node.events.after(after) if call.caller.may_see_event(one)]
    next_ = found[-1].number + 1 if found else after + 1
    return answer({"events": await _encoded(api, call, found), "next": next_})


async def outages(api: ApiServer, call: Call) -> Response:
    """Answer the recorded outages, oldest first, and each link's availability."""
    peer, since = call.text("peer"), call.text("since")
    span = None if since is None else seconds(since, "since")
    node, wanted = api.node, call.number("drills", 1, most=1) == 1
    with known_peer(peer or ""):
        recorded, measured = node.outages(peer, span, wanted), node.availability(peer, wanted)
    return answer(
        {
            "outages": await _encoded(api, call, recorded),
            "availability": await _encoded(api, call, measured),
        }
    )


async def _encoded(api: ApiServer, call: Call, items: Iterable[object]) -> list[msgspec.Raw]:
    """Return items as JSON, made and encoded in slices of the caller's turns."""
    return await api.gather(call.caller.name, (msgspec.Raw(to_json(item)) for item in items))


async def history(api: ApiServer, call: Call) -> Response:
    """Answer the last hour of one link."""
    peer = call.path["name"]
    with known_peer(peer):
        return answer(api.node.history(peer))


async def consumers(api: ApiServer, call: Call) -> Response:
    """Answer the named consumers that the caller may see."""
    found = await api.gather(call.caller.name, _listed(api, call.caller))
    return answer({"consumers": [one for one in found if one is not None]})


def _listed(api: ApiServer, caller: Caller) -> Iterator[msgspec.Raw | None]:
    """Yield the consumers that a caller may see as JSON; None while one's records are counted."""
    end, last = api.node.log.next, api.reactor.seconds() + PENDING_SECONDS
    for one in api.node.subscriptions.consumers():
        pending: int | None = 0
        if caller.sees(one):
            for counted in _pending(api.node.log, one):
                pending = counted if api.reactor.seconds() < last else None
                if pending is None:
                    break
                yield None
            listed = {
                "owner": one.owner,
                "name": one.name,
                "next": one.next,
                "lag_records": max(0, end - one.next),
                "pending_records": pending,
                "patterns": one.patterns,
            }
            yield msgspec.Raw(to_json(listed))


def _pending(log: Log, consumer: Consumer) -> Iterator[int]:
    """Yield how many records a consumer has yet to read, as far as counted, of its patterns."""
    position, match = max(consumer.next, log.first), Patterns(consumer.patterns).match
    totals, pending = log.totals(position) if position < log.next else iter(()), 0
    while step := tuple(islice(totals, PENDING_STEP)):
        pending += sum(records for channel, records, _ in step if match(channel))
        yield pending


async def forget(api: ApiServer, call: Call) -> Response:
    """Remove a named consumer."""
    await api.node.refreshed()
    await api.node.forget(api.find_consumer(call).key)
    return Response(204)


class Moved(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a move: whose the consumer is from now on, and its new name."""

    owner: str
    name: str


async def move(api: ApiServer, call: Call) -> Response:
    """Give a consumer another owner and name."""
    call.caller.check_operator()
    await api.node.refreshed()
    consumer, wanted = api.find_consumer(call), call.json(Moved)
    owners = {key.name for key in api.config.api.keys} | {SOCKET.name, ANYONE.name}
    if wanted.owner not in owners:
        raise ApiError("not-found", f"there is no key {wanted.owner[:63]}")
    try:
        await api.node.move(consumer.key, (wanted.owner, lasting_consumer(wanted.name)))
    except PublishError as error:
        raise ApiError("in-use", str(error)) from None
    return answer({"owner": wanted.owner, "name": wanted.name, "next": consumer.next})


async def kick(api: ApiServer, call: Call) -> Response:
    """Have a link try again at once."""
    call.caller.check_operator()
    peer = call.path["name"]
    with known_peer(peer):
        api.node.kick(peer)
    link = api.node.link_status(peer)
    return answer({"peer": peer, "state": None if link is None else link.state})


class Confirmed(msgspec.Struct, forbid_unknown_fields=True):
    """The body of what destroys or repeats messages: nothing happens unless confirmed."""

    confirmed: bool = False


class DrainWanted(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a drain: how long to wait for acknowledgements, when peers should come back."""

    timeout: Annotated[float, msgspec.Meta(ge=0, le=MAX_DRAIN_SECONDS)] = 10.0
    retry_after: Annotated[float, msgspec.Meta(ge=0, le=MAX_DRAIN_SECONDS)] = 1.0


class Trim(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a trim: records below `before`."""

    before: int | float
    confirmed: bool = False


class DrillBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a drill's report: it starts, and for how long, or it has ended."""

    drill: Annotated[str, msgspec.Meta(pattern=DRILL_PATTERN)]
    state: Literal["started", "ended"]
    seconds: float = 0.0
    verdict: Literal["pass", "fail"] | None = None


class TokenWanted(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a call for a token: a pattern that narrows it."""

    channel: str | None = None


async def resync(api: ApiServer, call: Call) -> Response:
    """Return what a resync would send again or lose; do it if confirmed."""
    call.caller.check_operator()
    peer, wanted = call.path["name"], call.json(Confirmed)
    with known_peer(peer):
        effect = await api.node.resync(peer, wanted.confirmed)
    return answer({"peer": peer, "message": effect, "done": wanted.confirmed})


async def begin_drain(api: ApiServer, call: Call) -> Response:
    """Take no new links, and end those that are up."""
    call.caller.check_operator()
    wanted = call.json(DrainWanted)
    api.node.drain.begin(wanted.timeout, wanted.retry_after)
    return answer(api.node.drain.status())


async def drain_status(api: ApiServer, _: Call) -> Response:
    """Answer how far the drain is."""
    return answer(api.node.drain.status())


async def undo_drain(api: ApiServer, call: Call) -> Response:
    """Take links again."""
    call.caller.check_operator()
    api.node.drain.undo()
    return answer(api.node.drain.status())


async def forget_peer(api: ApiServer, call: Call) -> Response:
    """Answer what a peer without an entry is owed; forget it where confirmed."""
    call.caller.check_operator()
    peer, wanted = call.path["name"], call.json(Confirmed)
    with known_peer(peer):
        await api.gather(call.caller.name, api.node.count_absent(peer))
        records, size = api.node.forget_peer(peer, wanted.confirmed)
    return answer({"peer": peer, "records": records, "bytes": size, "done": wanted.confirmed})


async def drill(api: ApiServer, call: Call) -> Response:
    """Record in log and events that a deliberate fault starts or has ended."""
    peer, report = call.path["name"], call.json(DrillBody)
    with known_peer(peer):
        if report.state == "started":
            api.node.drill_began(peer, report.drill, report.seconds)
        else:
            api.node.drill_ended(peer, report.drill, report.verdict)
    return Response(204)


async def pair(api: ApiServer, call: Call) -> Response:
    """Invite, list or revoke: what pairing answers, as it is."""
    if api.pairing is None:
        raise ApiError("not-found", "there is no pairing here")
    request = call.request
    target = request.path.decode("ascii", "replace")
    status, body = await api.pairing(request.method.decode("latin-1"), target, call.request.body())
    return Response(status, body + b"\n")


async def trim(api: ApiServer, call: Call) -> Response:
    """Return the number of records below an offset; delete them if confirmed."""
    call.caller.check_operator()
    wanted = call.json(Trim)
    records, owed = api.node.trim(whole(wanted.before, "before"), wanted.confirmed)
    return answer({"records": records, "owed": owed, "done": wanted.confirmed})


async def token(api: ApiServer, call: Call) -> Response:
    """Answer a fresh token: 30 s, once, never wider than the key."""
    if call.request.admitted.by == "cookie":
        raise ApiError("forbidden", "a cookie session gets no token; use a key or the socket")
    wanted = call.json(TokenWanted).channel
    if wanted is not None and not is_pattern(wanted):
        raise ApiError("malformed", f"channel: {wanted[:80]!r} is no channel or pattern")
    fresh = await api.keyring.issue_shared(call.caller, () if wanted is None else (wanted,))
    return answer({"token": fresh, "expires_seconds": TOKEN_SECONDS}, 201)


async def open_session(api: ApiServer, call: Call) -> Response:
    """Open a cookie session for a token or a key."""
    admitted = call.request.admitted
    value = api.keyring.open_session(call.caller, admitted.patterns)
    request = call.request
    # Behind a proxy that ends TLS: admission took this origin because api.origins lists it.
    of_tls_page = (request.header("Origin") or "").lower().startswith("https://")
    secure = "; Secure" if request.isSecure() or of_tls_page else ""
    cookie = (
        f"{COOKIE}={value}; HttpOnly; SameSite=Strict; Path=/;"
        f" Max-Age={math.floor(SESSION_SECONDS)}{secure}"
    )
    return Response(204, headers={"Set-Cookie": cookie})


async def close_session(api: ApiServer, call: Call) -> Response:
    """Take the cookie away, and let it be good for nothing from now on."""
    cookie = call.request.received_cookies.get(COOKIE.encode())
    if cookie is not None:
        api.keyring.end_session(cookie.decode("ascii", "replace"))
    return Response(204, headers={"Set-Cookie": _CLEARED})


async def healthz(api: ApiServer, _: Call) -> Response:
    """Answer that the process makes progress, and how late its event loop was."""
    return answer({"ok": True, "late_seconds": round(api.late_seconds, 3)})


async def readyz(api: ApiServer, call: Call) -> Response:
    """Answer whether all required links are up and the node takes links."""
    node = api.node
    if node.starting or node.stopping:
        return answer({"ready": False, "waiting_for": []}, 503)
    if node.drain.active:
        return answer({"ready": False, "waiting_for": [], "draining": True}, 503)
    links = await api.link_statuses(call.caller.name)
    down = [link.peer for link in links if link.required and link.state != "up"]
    if node.log.unavailable is not None:
        return answer({"ready": False, "waiting_for": [], "log": "unavailable"}, 503)
    names = [] if call.request.admitted.is_foreign_host else down
    return answer({"ready": not down, "waiting_for": names}, 503 if down else 200)


async def metrics(api: ApiServer, call: Call) -> Response:
    """Answer the metrics in Prometheus' text format; consumers only to whom may see them."""
    consumers = api.node.status([], call.caller.visible_owner).consumers
    text = await api.metrics.page(api.link_statuses, api.share) + consumer_lags(consumers)
    return Response(200, text, "text/plain; version=0.0.4; charset=utf-8")


async def openapi(api: ApiServer, _: Call) -> Response:
    """Answer the description of all this."""
    return answer(api.description)
