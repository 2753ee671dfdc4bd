"""The description at /v1/openapi.json, made from the table of routes."""

from __future__ import annotations

import re
from typing import Any

import msgspec

import linkd
from linkd.api.refusals import WORDS
from linkd.api.route import Param, Route
from linkd.api.routes import ROUTES
from linkd.core.channels import CHANNELS_PATTERN
from linkd.status import Availability, Event, LinkHistory, NodeStatus, Outage

_ANY_CALL = (400, 401, 403, 413, 421, 429, 500, 503)
"""Statuses that any call may be answered with."""


def describe() -> dict[str, Any]:
    """Return the OpenAPI 3.1 document."""
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    _, schemas = msgspec.json.schema_components(
        (NodeStatus, Event, Outage, Availability, LinkHistory),
        ref_template="#/components/schemas/{name}",
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
    operation: dict[str, Any] = {
        "summary": route.about,
        "operationId": route.method.lower() + re.sub(r"\W+", "_", route.path).rstrip("_"),
        "parameters": [
            *(_parameter(param, "path") for param in route.places),
            *(_parameter(param, "query") for param in route.query),
            *(_parameter(param, "header") for param in route.headers),
        ],
        "responses": _responses(route),
        "security": [{"key": []}, {"session": []}] if route.access in ("caller", "token") else [],
    }
    if route.body:
        operation["requestBody"] = {
            "required": any(field.required for field in route.fields),
            "content": {kind: {"schema": _body(route, kind)} for kind in route.body},
        }
    return operation


def _parameter(param: Param, place: str) -> dict[str, Any]:
    return {
        "name": param.name,
        "in": place,
        "description": param.about,
        "required": place == "path" or param.required,
        "schema": {"type": "array", "items": _schema(param)} if param.several else _schema(param),
    }


def _schema(param: Param) -> dict[str, Any]:
    """Return what a value must look like."""
    schema: dict[str, Any] = {"type": [param.type, "null"] if param.null else param.type}
    if param.type == "array":
        schema["items"] = {"type": "string", "pattern": CHANNELS_PATTERN}
    bounds = {
        "pattern": param.pattern,
        "minimum": param.least,
        "maximum": param.most,
        "enum": list(param.choice) or None,
    }
    return schema | {key: bound for key, bound in bounds.items() if bound is not None}


def _body(route: Route, kind: str) -> dict[str, Any]:
    """Return what a body must look like."""
    if not route.fields:
        return {} if kind == "application/json" else {"type": "string"}
    return {
        "type": "object",
        "additionalProperties": False,
        "required": [field.name for field in route.fields if field.required],
        "properties": {
            field.name: {**_schema(field), "description": field.about} for field in route.fields
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
            said["content"] = {kind: _content(route.path, kind) for kind in route.gives}
        responses[str(status)] = said
    for status in _ANY_CALL:
        meanings = [meaning for number, meaning in WORDS.values() if number == status]
        responses.setdefault(str(status), {"description": " ".join(meanings), "content": error})
    if route.path.count("{") or route.access == "socket":
        responses.setdefault("404", {"description": WORDS["not-found"][1], "content": error})
    if route.body:
        responses.setdefault("415", {"description": WORDS["unsupported-type"][1], "content": error})
    return dict(sorted(responses.items()))


_LISTS = {
    "/v1/events": {"events": "Event"},
    "/v1/outages": {"outages": "Outage", "availability": "Availability"},
}
"""Answers that are lists of structs: path, key, the struct's name."""


def _content(path: str, kind: str) -> dict[str, Any]:
    """Return what an answer in JSON looks like, where a struct says so."""
    schema: dict[str, Any] | None = None
    if kind == "application/json" and path == "/v1/status":
        schema = {"$ref": "#/components/schemas/NodeStatus"}
    elif kind == "application/json" and path == "/v1/peers/{name}/history":
        schema = {"$ref": "#/components/schemas/LinkHistory"}
    elif kind == "application/json" and path in _LISTS:
        of = {
            key: {"type": "array", "items": {"$ref": f"#/components/schemas/{name}"}}
            for key, name in _LISTS[path].items()
        }
        schema = {"type": "object", "required": [*of], "properties": of}
    return {} if schema is None else {"schema": schema}
