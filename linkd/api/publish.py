"""`POST /v1/channels/{channel}`: one message, or one a line."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as TimedOut

from linkd.api.call import Call, seconds
from linkd.api.errors import ApiError, refusal_of
from linkd.api.http import NDJSON, Response, answer, check_body, check_json
from linkd.api.stream_publisher import MAX_RECORDS, check_wait
from linkd.clock import wall
from linkd.errors import BadRecord, BodyTooLarge, LinkdError
from linkd.log.interface import Appended
from linkd.node.node import Node
from linkd.protocol.json import JSON, media_type
from linkd.protocol.records import (
    MAX_TTL_SECONDS,
    MAX_WORD_LENGTH,
    EncodedRecord,
    NewRecords,
    check_headers,
    encode_records,
)

if TYPE_CHECKING:
    from linkd.api.server import ApiServer

MAX_WAIT_SECONDS = 3600.0
DEFAULT_WAIT_SECONDS = 30.0
_LINES_A_LOOK = 64

_CONTENT_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+*-]+(\s*;[\x20-\x7e]*)?")
_FORM = "application/x-www-form-urlencoded"


async def publish(api: ApiServer, call: Call) -> Response:
    """Publish; answered once it is on disk, with `wait` once it is on that peer's disk."""
    channel = call.caller.check_publish(call.path["channel"])
    peer = call.text("wait")
    timeout = call.seconds("timeout", DEFAULT_WAIT_SECONDS, MAX_WAIT_SECONDS)
    if peer is not None:
        check_wait(api.node, peer, channel)
    draft = await _draft(api, call, channel)
    began = api.reactor.seconds()
    stored = await append(api.node, draft)
    api.metrics.publish.observe(api.reactor.seconds() - began)
    result: dict[str, object] = {"offset": stored.offset, "count": stored.count}
    if stored.duplicate:
        result["duplicate"] = True
    if peer is not None:
        next_ = stored.offset + (stored.count or 1)
        try:
            if not await wait_until_acked(api, peer, next_, timeout):
                late = f"{peer} did not have it within {timeout:g} s; it stays owed"
                raise ApiError("timeout", late)
        except ApiError as refusal:
            raise ApiError(refusal.error, refusal.message, None, result) from None
    return answer(result, 200 if stored.duplicate else 201)


async def _draft(api: ApiServer, call: Call, channel: str) -> NewRecords:
    """Return what is to be published; raise ApiError where it is malformed."""
    most = api.node.config.log.max_body_bytes
    content_type = _content_type(call)
    type_ = _word(call, "Linkd-Type")
    id_ = _word(call, "Linkd-Id")
    ttl_given = call.request.header("Linkd-Ttl")
    ttl = None if ttl_given is None else seconds(ttl_given, "Linkd-Ttl")
    if ttl is not None and not 0.0 < ttl <= MAX_TTL_SECONDS:
        raise ApiError("malformed", f"Linkd-Ttl: expected seconds above 0, got {ttl:g}")
    try:
        headers = check_headers(call.request.headers_after("Linkd-Header-"))
    except BadRecord as error:
        raise refusal_of(error) from None
    body = call.request.body()
    if media_type(content_type) == NDJSON:
        if id_:
            raise ApiError("malformed", "Linkd-Id names one message, and this may be many")
        records = await _lines(
            api, call.caller.name, body, EncodedRecord(b"", type_, "", JSON, headers)
        )
    else:
        if len(body) > most:
            raise refusal_of(too_large(len(body), most))
        check_body(body, content_type)
        records = [EncodedRecord(body, type_, id_, content_type, headers)]
    ids = (id_,) if id_ else ()
    return NewRecords(
        channel, len(records), encode_records(records), wall(), ttl, ids, owner=call.caller.name
    )


async def _lines(
    api: ApiServer, caller: str, body: bytes, like: EncodedRecord
) -> list[EncodedRecord]:
    """Return one record for each line that is not blank, in all but its body like `like`.

    Looks at them in slices.
    """
    records: list[EncodedRecord] = []
    most, until = api.node.config.log.max_body_bytes, api.share.end()
    if body.count(b"\n") > MAX_RECORDS:
        raise ApiError("body-too-large", f"expected at most {MAX_RECORDS} lines")
    for place, line in enumerate(body.split(b"\n"), 1):
        if place % _LINES_A_LOOK == 0 and api.reactor.seconds() >= until:
            await api.share.turn(caller)
            until = api.share.end()
        value = line.strip()
        if not value:
            continue
        if len(value) > most:
            raise refusal_of(too_large(len(value), most))
        check_json(value, f"line {place}")
        records.append(EncodedRecord(value, like.type, "", JSON, like.headers))
    if not records:
        raise ApiError("malformed", "expected one JSON value a line, got none")
    return records


def _content_type(call: Call) -> str:
    """Return the content type to be stored: curl's default counts as none."""
    if call.request.header("Content-Encoding") not in (None, "identity"):
        raise ApiError("unsupported-type", "expected a body without Content-Encoding")
    given = (call.request.header("Content-Type") or "").strip()
    if given and (len(given) > MAX_WORD_LENGTH or not _CONTENT_TYPE.fullmatch(given)):
        raise ApiError("unsupported-type", f"{given[:80]!r} is no content type")
    return "" if media_type(given) == _FORM else given


def _word(call: Call, name: str) -> str:
    """Return a header's word, or an empty one."""
    text = call.request.header(name) or ""
    if len(text) > MAX_WORD_LENGTH:
        raise ApiError("malformed", f"{name}: expected at most {MAX_WORD_LENGTH} characters")
    return text


def too_large(size: int, most: int) -> BodyTooLarge:
    """Return the error of a body above `log.max_body_bytes`."""
    return BodyTooLarge(f"expected a body of at most {most} bytes (log.max_body_bytes), got {size}")


def append(node: Node, draft: NewRecords) -> Deferred[Appended]:
    """Publish; fires once it is on disk, fails with a ApiError."""
    done: Deferred[Appended] = Deferred()

    def settled(outcome: Appended | LinkdError) -> None:
        if done.called:
            return
        if isinstance(outcome, LinkdError):
            done.errback(refusal_of(outcome))
        else:
            done.callback(outcome)

    try:
        node.publish(draft, settled)
    except LinkdError as error:
        settled(error)
    return done


async def wait_until_acked(api: ApiServer, peer: str, next_: int, within: float) -> bool:
    """Wait until `peer` has all below `next_` on disk; return whether it has in time.

    Raises:
        ApiError: The peer was removed from the configuration meanwhile.
    """
    waiting = api.node.links.wait_for(peer, next_)
    waiting.addTimeout(within, api.reactor)
    try:
        await waiting
    except (TimedOut, CancelledError):
        if api.node.link_status(peer) is None:
            message = f"{peer} was removed from the configuration meanwhile"
            raise ApiError("not-found", message) from None
        return False
    return True
