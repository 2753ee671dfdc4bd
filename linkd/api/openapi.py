"""The description at /v1/openapi.json, made from the table of routes."""

from __future__ import annotations

import re
from typing import Any

import msgspec

import linkd
from linkd.api.refusals import WORDS
from linkd.api.routes import ROUTES, Param, Route
from linkd.status import Event, NodeStatus, Outage

_ANY_CALL = (400, 401, 403, 413, 421, 429, 500, 503)
"""Statuses that any call may be answered with."""


def describe() -> dict[str, Any]:
    """Return the OpenAPI 3.1 document."""
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    _, schemas = msgspec.json.schema_components(
        (NodeStatus, Event, Outage), ref_template="#/components/schemas/{name}"
    )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "linkd",
            "version": linkd.__version__,
            "description": "The local API of one linkd node.",
        },
        "paths": paths,
        "components": {
            "schemas": {
                **schemas,
                "Error": {
                    "type": "object",
                    "required": ["error", "message"],
                    "properties": {
                        "error": {"type": "string", "enum": list(WORDS)},
                        "message": {"type": "string"},
                    },
                },
            },
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer"},
                "session": {"type": "apiKey", "in": "cookie", "name": "linkd_session"},
            },
        },
    }


def _operation(route: Route) -> dict[str, Any]:
    names = re.findall(r"\{(\w+)\}", route.path)
    operation: dict[str, Any] = {
        "summary": route.about,
        "operationId": route.method.lower() + re.sub(r"\W+", "_", route.path).rstrip("_"),
        "parameters": [
            *(
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
                for name in names
            ),
            *(_parameter(param, "query") for param in route.query),
            *(_parameter(param, "header") for param in route.headers),
        ],
        "responses": _responses(route),
        "security": [{"key": []}, {"session": []}] if route.access in ("caller", "token") else [],
    }
    if route.body:
        operation["requestBody"] = {
            "required": False,
            "content": {kind: {"schema": _body(route)} for kind in route.body},
        }
    return operation


def _parameter(param: Param, place: str) -> dict[str, Any]:
    return {
        "name": param.name,
        "in": place,
        "description": param.about,
        "schema": {"type": param.type},
    }


def _body(route: Route) -> dict[str, Any]:
    if not route.fields:
        return {}
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            field.name: {"type": field.type, "description": field.about} for field in route.fields
        },
    }


def _responses(route: Route) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    responses: dict[str, Any] = {}
    for status, meaning in route.answers.items():
        said: dict[str, Any] = {"description": meaning}
        if status >= 400 and route.path != "/readyz":
            said["content"] = error
        elif status in (200, 201, 503) and route.gives:
            said["content"] = {kind: {} for kind in route.gives}
        responses[str(status)] = said
    for status in _ANY_CALL:
        meanings = [meaning for number, meaning in WORDS.values() if number == status]
        responses.setdefault(str(status), {"description": " ".join(meanings), "content": error})
    if route.path.count("{"):
        responses.setdefault("404", {"description": WORDS["not-found"][1], "content": error})
    if route.body:
        responses.setdefault("415", {"description": WORDS["unsupported-type"][1], "content": error})
    return dict(sorted(responses.items()))
