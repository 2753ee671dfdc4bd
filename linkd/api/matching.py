"""Which route of the table a request is for."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from linkd.api.call import unquoted
from linkd.api.refusals import Refusal
from linkd.api.route import Route
from linkd.api.routes import ROUTES


class Match(msgspec.Struct, frozen=True):
    """A route, and the values in its path."""

    route: Route
    path: dict[str, str]


def _pattern(path: str) -> re.Pattern[bytes]:
    parts = re.split(r"(\{\w+\})", path)
    regex = "".join(
        f"(?P<{part[1:-1]}>[^/]+)" if part.startswith("{") else re.escape(part) for part in parts
    )
    return re.compile(regex.encode())


_PATTERNS: tuple[tuple[re.Pattern[bytes], dict[str, Route]], ...] = tuple(
    (_pattern(path), {route.method: route for route in ROUTES if route.path == path})
    for path in dict.fromkeys(route.path for route in ROUTES)
)


def find(method: str, path: bytes) -> Match:
    """Return the route of a request.

    Raises:
        Refusal: There is no such path, or it knows other methods.
    """
    for pattern, routes in _PATTERNS:
        found = pattern.fullmatch(path)
        if found is None:
            continue
        wanted = "GET" if method == "HEAD" and "GET" in routes and _heads(routes["GET"]) else method
        route = routes.get(wanted)
        if route is None:
            raise Refusal(
                "method-not-allowed",
                f"{method[:20]} is not for this path",
                {"Allow": ", ".join(allowed(routes))},
            )
        values: dict[str, Any] = found.groupdict()
        return Match(route, {name: unquoted(value) for name, value in values.items()})
    raise Refusal("not-found", "there is no such path; see /v1/openapi.json")


def _heads(route: Route) -> bool:
    """Tell whether HEAD makes sense: what is open has an end and changes nothing."""
    return route.access in ("open", "optional")


def allowed(routes: dict[str, Route]) -> list[str]:
    """Return the methods of a path."""
    methods = list(routes)
    if "GET" in routes and _heads(routes["GET"]):
        methods.append("HEAD")
    return methods
