"""A throw-away pair's directory: held by the living, removed after the dead."""

from __future__ import annotations

import os
import time
from pathlib import Path

from linkd.drill.testbed import hold, remove_leftovers


def test_what_dead_drills_have_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    living, dead, other = (tmp_path / name for name in ("linkd-drill-a", "linkd-drill-b", "c"))
    for directory in (living, dead, other):
        directory.mkdir()
        (directory / "log").write_text("x")
    (tmp_path / "linkd-drill-link").symlink_to(other)
    held = hold(living)
    remove_leftovers(tmp_path, time.time())
    assert dead.exists()
    remove_leftovers(tmp_path, time.time() + 61.0)
    assert not dead.exists()
    assert (living / "log").exists()
    assert (other / "log").exists()
    os.close(held)
    remove_leftovers(tmp_path, time.time() + 61.0)
    assert not living.exists()
