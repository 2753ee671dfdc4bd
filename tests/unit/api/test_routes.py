"""The table of routes, the OpenAPI document and docs/api.md say the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from linkd.api.errors import ERRORS, ApiError
from linkd.api.routes import ROUTES, describe, find
from linkd.protocol import client

DOCS = (Path(__file__).parents[3] / "docs" / "api.md").read_text()


def filled(path: str) -> bytes:
    return re.sub(r"\{\w+\}", "1", path).encode()


def test_openapi_has_every_route_and_no_other() -> None:
    described = {
        (method.upper(), path)
        for path, operations in describe()["paths"].items()
        for method in operations
    }
    assert described == {(route.method, route.path) for route in ROUTES}


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_every_route_is_dispatched_to_itself(route: object) -> None:
    assert find(route.method, filled(route.path)).route is route  # type: ignore[attr-defined]


def test_openapi_names_path_parameters_and_ids_once() -> None:
    ids = []
    for path, operations in describe()["paths"].items():
        for operation in operations.values():
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
