"""A lab of hosts that is built up when a context begins, and ended when it ends."""

from __future__ import annotations

import contextlib
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Self

from tests.support import leash
from tests.support.lab import Lab


class Stage(ABC):
    """What is built on hosts of its own; a context. `_stack` ends its pieces, the last first."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Build it; what was built is ended where that fails."""
        try:
            made = tempfile.TemporaryDirectory(prefix="linkd-lab-", ignore_cleanup_errors=True)
            folder = Path(self._stack.enter_context(made))
            folder.chmod(0o755)
            leash.hold(folder)
            self._build(folder, self._stack.enter_context(Lab(folder)))
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End everything."""
        self._stack.close()

    @abstractmethod
    def _build(self, folder: Path, lab: Lab) -> None:
        """Make hosts and daemons, and start them; `folder` lasts as long."""
