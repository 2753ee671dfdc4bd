"""Messages of `/ws`, and bodies over HTTP: parsed, or a Refusal."""

from __future__ import annotations

from linkd.api.errors import ApiError
from linkd.api.http import check_body
from linkd.api.text_frames import parse
from linkd.protocol.json import render_body
from tests.fuzz.reading import Input
from tests.fuzz.templates import TEXTS

_TYPES = ("application/json", "text/plain", "text/plain; charset=utf-8", "image/png", "")


def one(content: bytes) -> None:
    """Parse a message; half of the inputs say how a proper one is spoilt."""
    lead = content[0] if content else 0
    message = content[1:] if lead < 0x80 else Input(content[1:]).near(TEXTS)
    type_ = _TYPES[lead % len(_TYPES)]
    try:
        frame = parse(message, lead & 0x70 == 0x70)
        assert frame.kind != "publish" or isinstance(frame.body, bytes)
        check_body(message, type_)
    except ApiError:
        pass
    name, value = render_body(message, type_)
    assert name != "base64" or isinstance(value, str)
