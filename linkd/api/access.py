"""Authorize API calls and WebSockets by host, origin, key, token or cookie."""

from __future__ import annotations

import base64
import ipaddress
from typing import Final, Literal
from urllib.parse import urlsplit

import msgspec

from linkd.api.auth import ANYONE, COOKIE, SOCKET, STRANGER, Caller, FailedKeyLimiter, Keyring
from linkd.api.call import query_of
from linkd.api.errors import ApiError
from linkd.api.http import ApiRequest
from linkd.api.routes import Match, find
from linkd.config import Config
from linkd.config.addresses import parse_address

TEXT_PATH: Final = "/ws"
STREAM_PATH: Final = "/v1/stream"

TEXT_SUBPROTOCOL: Final = "linkd.text.1"
"""Offered with the next one by a page: a browser wants one of what it offers answered."""

BEARER_SUBPROTOCOL: Final = "linkd.bearer."
"""A page offers this and its key or token in base64url, where it would set `Authorization`."""

_PROBES: Final = (b"/healthz", b"/readyz")
"""Balancers ask these by address, under any name, or in HTTP/1.0 without a Host."""

TRY_AGAIN: Final = 1013
REFUSED: Final = 4000
"""Added to the HTTP status of a refusal, it is the code of a close: 4401, 4403."""


def wants_websocket(request: ApiRequest) -> bool:
    """Return whether a request asks for an upgrade to a WebSocket, well formed or not."""
    return "websocket" in _words(request, b"Upgrade") and "upgrade" in _words(
        request, b"Connection"
    )


def check_upgrade(request: ApiRequest, subprotocol: str | None) -> None:
    """Raise ApiError unless a request asks for a WebSocket, with that subprotocol if given."""
    if not wants_websocket(request):
        raise ApiError("malformed", "expected a WebSocket upgrade", {"Upgrade": "websocket"})
    version = {"Sec-WebSocket-Version": "13"}
    if request.header("Sec-WebSocket-Version") != "13" or not request.header("Sec-WebSocket-Key"):
        raise ApiError("malformed", "expected WebSocket version 13", version)
    if subprotocol is not None and subprotocol not in offered(request):
        raise ApiError("malformed", f"expected the WebSocket subprotocol {subprotocol}")


def offered(request: ApiRequest) -> list[str]:
    """Return the subprotocols that an upgrade offers."""
    return _words(request, b"Sec-WebSocket-Protocol", lower=False)


def _words(request: ApiRequest, name: bytes, lower: bool = True) -> list[str]:
    """Return the items of a list in a header, which may occur several times."""
    values = request.requestHeaders.getRawHeaders(name) or []
    text = b",".join(values).decode("latin-1")
    return [one.strip() for one in (text.lower() if lower else text).split(",")]


def is_from_browser(request: ApiRequest) -> bool:
    """Return whether a browser asks for a WebSocket: its page sees no HTTP answer to that.

    Each browser sends `Origin`; programs that behave like one (`WebSocket` of Node.js) send
    `Sec-Fetch-Mode: websocket`. Other programs send neither, and read status and body.
    """
    return request.header("Origin") is not None or (request.header("Sec-Fetch-Mode") == "websocket")


def answers_by_close(request: ApiRequest) -> bool:
    """Return whether a refusal is answered by a WebSocket that closes at once.

    Never on the path of linkd's own stream, nor where something is wrong with the upgrade itself.
    """
    try:
        check_upgrade(request, None)
        return (
            request.method == b"GET"
            and request.path != STREAM_PATH.encode()
            and request.header("Content-Length") in (None, "0")
            and request.header("Transfer-Encoding") is None
            and is_from_browser(request)
        )
    except ApiError:
        return False


def close_of(refusal: ApiError) -> tuple[int, str]:
    """Return the close code and reason for a refusal."""
    if refusal.status == 503:
        return TRY_AGAIN, refusal.message
    return REFUSED + min(refusal.status, 499), refusal.message


By = Literal["socket", "key", "cookie", "token", "anyone"]


class AuthorizedRequest(msgspec.Struct, frozen=True):
    """A request that may go on.

    Args:
        match: The route, and the values in its path.
        caller: The caller.
        by: How it was authenticated.
        patterns: How narrow its token was.
        token: The token that an upgrade uses up once it succeeds.
        redeems: A token of any instance that is used up before the request goes on.
        refusal: Why the WebSocket that is opened closes at once.
        is_foreign_host: Its Host is none of this node's: the answer names no peers.
    """

    match: Match
    caller: Caller
    by: By
    patterns: tuple[str, ...] = ()
    token: str | None = None
    redeems: str | None = None
    refusal: ApiError | None = None
    is_foreign_host: bool = False


class AccessControl:
    """Judges requests.

    Args:
        config: Names, origins and whether a key is needed.
        keyring: The keys.
        wrong: Counts wrong ones.
    """

    def __init__(self, config: Config, keyring: Keyring, wrong: FailedKeyLimiter) -> None:
        self._keyring = keyring
        self._wrong = wrong
        self.reload(config)

    def reload(self, config: Config) -> None:
        """Take names and origins from another configuration."""
        api = config.api
        host = parse_address(api.http)[0] if api.http else ""
        self._hosts = {"localhost", host, *(name.lower().rstrip(".") for name in api.hosts)} - {""}
        self._origins = {origin.lower().rstrip("/") for origin in api.origins}

    def admit(self, request: ApiRequest) -> AuthorizedRequest:
        """Return who calls what; raise ApiError."""
        if request.local:
            return AuthorizedRequest(_match(request), SOCKET, "socket")
        is_foreign = False
        try:
            host = self._check_host(request)
        except ApiError:
            if request.path not in _PROBES:
                raise
            host, is_foreign = "", True
        origin = self._check_origin(request, host)
        if origin:  # its page may read why the call is refused, too
            request.setHeader(b"Access-Control-Allow-Origin", origin.encode())
            request.setHeader(b"Vary", b"Origin")
        admitted = self._admit(request, _match(request))
        return msgspec.structs.replace(admitted, is_foreign_host=True) if is_foreign else admitted

    async def redeem(self, request: ApiRequest, admitted: AuthorizedRequest) -> AuthorizedRequest:
        """Return who calls, by a token that is used up now; raise ApiError where it is not good."""
        assert admitted.redeems is not None
        found = await self._keyring.redeem(admitted.redeems)
        if found is None:
            self._wrong.wrong(request.address)
            raise unauthorized("the key or token is not known, used, or expired")
        return msgspec.structs.replace(admitted, caller=found[0], patterns=found[1], redeems=None)

    def preflight(self, request: ApiRequest) -> str:
        """Return the origin whose browser asks whether it may call; raise ApiError."""
        host = (request.header("Host") or "") if request.local else self._check_host(request)
        return self._check_origin(request, host) or (request.header("Origin") or "")

    # Host and Origin

    def _check_host(self, request: ApiRequest) -> str:
        """Return the Host: an address, or a name of this node's (no DNS rebinding)."""
        given = (request.header("Host") or "").lower()
        try:
            parts = urlsplit(f"//{given}")
            name, _ = (parts.hostname or "").rstrip("."), parts.port
        except ValueError:
            name = ""
        if not given or not name or parts.netloc != given or "@" in given:
            raise ApiError("malformed", "expected a Host")
        if name not in self._hosts and not _is_address(name):
            raise ApiError("misdirected", "this Host is not one of this node's; see api.hosts")
        return given

    def _check_origin(self, request: ApiRequest, host: str) -> str:
        """Return the foreign origin that may call, or empty; raise ApiError for any other."""
        origin = request.header("Origin")
        if origin is None:
            self._check_site(request)
            return ""
        lowered = origin.lower()
        scheme = "https" if request.isSecure() else "http"
        if lowered == f"{scheme}://{host}":
            return ""
        if lowered in self._origins:
            return origin
        raise ApiError("origin-refused", f"the origin {lowered[:60]} is not in api.origins")

    def _check_site(self, request: ApiRequest) -> None:
        """Raise ApiError if the browser reports a request from another site's page."""
        site = request.header("Sec-Fetch-Site")
        if site not in ("cross-site", "same-site"):
            return
        is_visit = request.header("Sec-Fetch-Mode") == "navigate" and request.path == b"/"
        # linkd.js asks /healthz whether the node is there, without CORS, as any page may.
        is_harmless = is_visit or (request.method == b"GET" and request.path == b"/healthz")
        if is_harmless and not wants_websocket(request):
            return
        raise ApiError("origin-refused", "a page of another site may not call")

    # who

    def _admit(self, request: ApiRequest, match: Match) -> AuthorizedRequest:
        access = match.route.access
        if access == "socket":
            raise ApiError("not-found", "this is asked on the unix socket only")
        if access == "open":
            return AuthorizedRequest(match, ANYONE, "anyone")
        if access == "optional" and self._shows_nothing(request):
            return AuthorizedRequest(
                match, STRANGER if self._keyring.require_key else ANYONE, "anyone"
            )
        bearer = self._bearer(request, match)
        if bearer is not None:
            known = self._keyring.by_key(bearer)
            if known is not None:
                return AuthorizedRequest(match, known, "key")
        token = bearer or _query_token(request, match)
        if token is not None and access == "token" and self._keyring.is_shared(token):
            return AuthorizedRequest(match, STRANGER, "token", redeems=token)
        if token is not None and access == "token":
            is_for_later = match.route.socket
            found = self._keyring.peek(token) if is_for_later else self._keyring.spend(token)
            if found is not None:
                return AuthorizedRequest(
                    match, found[0], "token", found[1], token if is_for_later else None
                )
        if token is not None:
            self._wrong.wrong(request.address)
            raise unauthorized("the key or token is not known, used, or expired")
        caller, by = self._without(request)
        return AuthorizedRequest(match, caller, by)

    def _without(self, request: ApiRequest) -> tuple[Caller, By]:
        """Return who calls with neither key nor token."""
        cookie = request.received_cookies.get(COOKIE.encode())
        if cookie is not None:
            known = self._keyring.by_cookie(cookie.decode("ascii", "replace"))
            if known is not None:
                return known, "cookie"
        if not self._keyring.require_key:
            return ANYONE, "anyone"
        if cookie is not None:
            raise unauthorized("the session has expired; sign in with a new token")
        raise unauthorized("a key, a cookie session or a token is needed")

    def _shows_nothing(self, request: ApiRequest) -> bool:
        """Return whether a request has neither a key nor a cookie."""
        cookie = request.received_cookies.get(COOKIE.encode())
        return request.header("Authorization") is None and cookie is None

    def _bearer(self, request: ApiRequest, match: Match) -> str | None:
        given = request.header("Authorization")
        if given is None:
            return self._offered_bearer(request) if match.route.socket else None
        scheme, _, key = given.partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            self._wrong.wrong(request.address)
            raise unauthorized("expected Authorization: Bearer KEY")
        return key.strip()

    def _offered_bearer(self, request: ApiRequest) -> str | None:
        """Return the key or token among the subprotocols: a page can set no other header."""
        for one in offered(request):
            if one.startswith(BEARER_SUBPROTOCOL):
                text = one.removeprefix(BEARER_SUBPROTOCOL)
                try:
                    padded = text + "=" * (-len(text) % 4)
                    return base64.b64decode(padded, altchars=b"-_", validate=True).decode()
                except ValueError:
                    self._wrong.wrong(request.address)
                    raise unauthorized(f"expected base64url after {BEARER_SUBPROTOCOL}") from None
        return None


def _match(request: ApiRequest) -> Match:
    path = request.path
    if path == b"/" and wants_websocket(request):
        path = TEXT_PATH.encode()
    return find(request.method.decode("latin-1"), path)


def _query_token(request: ApiRequest, match: Match) -> str | None:
    query = query_of(request.uri, match.route.query_names if match.route.socket else None)
    return next(
        (query[name][0] for name in ("ws_token", "token") if any(query.get(name, ()))), None
    )


def unauthorized(message: str) -> ApiError:
    """Return that nothing shown lets the caller in."""
    return ApiError("unauthorized", message, {"WWW-Authenticate": "Bearer"})


def _is_address(name: str) -> bool:
    """Return whether a host is an address, so that no name server was involved."""
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
