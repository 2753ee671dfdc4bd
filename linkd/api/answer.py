"""What a call of the HTTP API is answered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from linkd.api.bodies import to_json


class Answer(msgspec.Struct, frozen=True):
    """What a call is answered.

    Args:
        status: HTTP status.
        body: Its bytes.
        type: Its content type.
        headers: Further headers.
    """

    status: int = 200
    body: bytes = b""
    type: str = "application/json"
    headers: Mapping[str, str] = {}


def answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """Return an answer in JSON."""
    return Answer(status, to_json(value), headers=headers or {})
