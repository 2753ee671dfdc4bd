"""The table of routes, the OpenAPI document and docs/api.md say the same."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from linkd.api import operations, read
from linkd.api.errors import ERRORS, ApiError
from linkd.api.routes import ROUTES, describe, find
from linkd.pairing.server import Invite
from linkd.protocol import client

DOCS = (Path(__file__).parents[3] / "docs" / "api.md").read_text()


def filled(path: str) -> bytes:
    return re.sub(r"\{\w+\}", "1", path).encode()


def test_openapi_has_every_route_and_no_other() -> None:
    described = {
        (method.upper(), path)
        for path, methods in describe()["paths"].items()
        for method in methods
    }
    assert described == {(route.method, route.path) for route in ROUTES}


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_every_route_is_dispatched_to_itself(route: object) -> None:
    assert find(route.method, filled(route.path)).route is route  # type: ignore[attr-defined]


BODIES: dict[str, type[msgspec.Struct]] = {
    "POST /v1/consumers/{name}/ack": read.AckBody,
    "POST /v1/consumers/{name}/move": operations.Moved,
    "POST /v1/peers/{name}/resync": operations.Confirmed,
    "POST /v1/peers/{name}/forget": operations.Confirmed,
    "POST /v1/peers/{name}/drill": operations.DrillBody,
    "POST /v1/drain": operations.DrainWanted,
    "POST /v1/log/trim": operations.Trim,
    "POST /v1/pairing/invite": Invite,
    "POST /v1/token": operations.TokenWanted,
}
"""The calls whose body is a JSON object, and what the body is decoded to."""


def test_openapi_has_every_field_of_a_body_and_no_other() -> None:
    assert {
        route.call: (
            [one.name for one in route.fields],
            [one.name for one in route.fields if one.required],
        )
        for route in ROUTES
        if route.fields
    } == {
        call: (
            [one.name for one in msgspec.structs.fields(struct)],
            [one.name for one in msgspec.structs.fields(struct) if one.required],
        )
        for call, struct in BODIES.items()
    }


def test_openapi_names_path_parameters_and_ids_once() -> None:
    ids = []
    for path, methods in describe()["paths"].items():
        for operation in methods.values():
            ids.append(operation["operationId"])
            named = {p["name"] for p in operation["parameters"] if p["in"] == "path"}
            assert named == set(re.findall(r"\{(\w+)\}", path))
            assert "200" in operation["responses"] or len(operation["responses"]) > 1
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("method", ["PUT", "PATCH", "get", "X" * 100])
def test_an_unknown_method_gets_the_allowed_ones(method: str) -> None:
    with pytest.raises(ApiError) as caught:
        find(method, b"/v1/channels/orders")
    assert caught.value.status == 405
    assert caught.value.headers["Allow"] == "POST, GET"


def test_docs_list_every_error() -> None:
    for word, (status, meaning) in ERRORS.items():
        assert f"| {status} | `{word}` | {meaning} |" in DOCS


def test_docs_list_every_call() -> None:
    for route in ROUTES:
        if route.path.startswith("/v1/") and route.path != "/v1/openapi.json":
            assert route.path in DOCS, route.path


def test_docs_list_every_frame() -> None:
    for union in (client.FromClient, client.FromDaemon):
        for frame in union.__args__:
            number = frame.__struct_config__.tag
            fields = ", ".join(frame.__struct_fields__)
            assert f"| {number} | `{frame.__name__}({fields})` |" in DOCS
