"""The targets: each takes any bytes, and raises where linkd does what it has not documented."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path

import linkd.protocol

CORPUS = Path(__file__).parents[1] / "corpus"

NAMES: Mapping[str, tuple[str, ...]] = {
    "wire": ("linkd.core",),
    "session": ("linkd.core",),
    "stream": ("linkd.protocol.client",),
    "stream_session": ("linkd.api.stream", "linkd.api.stream_publisher", "linkd.api.auth"),
    "config": ("linkd.config",),
    "identity": (
        "linkd.net.http_head",
        "linkd.net.auth",
        "linkd.pairing.messages",
        "linkd.api.auth",
    ),
    "frames": ("linkd.net.websocket",),
    "http": ("linkd.api",),
    "text": ("linkd.api.text_frames", "linkd.api.http"),
    "text_session": ("linkd.api.text", "linkd.api.text_frames", "linkd.api.auth"),
    "log": ("linkd.log.frame", "linkd.log.segment", "linkd.log.segment"),
    "recovery": ("linkd.log.recovery", "linkd.log.repair", "linkd.log.segment"),
}
"""Each target's name, and the modules in which it looks for new ways to go."""

Target = Callable[[bytes], None]


def load(name: str) -> Target:
    """Return a target: `name`'s module has one function `one`."""
    found: Target = import_module(f"tests.fuzz.targets.{name}").one
    return found


def beside(name: str) -> list[str]:
    """Return the modules of linkd in which a target looks for nothing."""
    root = Path(linkd.protocol.__file__).parents[1]
    found = []
    for path in root.rglob("*.py"):
        parts = path.relative_to(root.parent).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if not any(module == one or module.startswith(one + ".") for one in NAMES[name]):
            found.append(module)
    return found
