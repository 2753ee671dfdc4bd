"""The text of a configuration file: a Config or ConfigError."""

from __future__ import annotations

import io
from pathlib import PurePosixPath
from typing import Any

from linkd.config import load
from linkd.errors import ConfigError


class Text(PurePosixPath):
    """A file that was never written."""

    content = b""

    def open(self, mode: str) -> io.BytesIO:
        """Open it."""
        return io.BytesIO(self.content)

    def absolute(self) -> PurePosixPath:
        """Return the path."""
        return self


def one(content: bytes) -> None:
    """Load it as the only file."""
    path: Any = Text("/fuzz/linkd.toml")
    path.content = content
    try:
        load([path])
    except ConfigError:
        return
