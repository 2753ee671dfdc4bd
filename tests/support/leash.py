"""Whatever this process starts in the lab ends with it, even if it is killed by kill -9.

The dead man's switch of the drills kills what carries its mark, whoever started it in between, and
removes folders. Network namespaces end with the last process in them.

The signal that Linux sends to a child at its parent's death (`prctl`, PR_SET_PDEATHSIG) would come
too soon: it is bound to the thread that started the child, and faults are made in threads that end.
"""

from __future__ import annotations

import atexit
import os
import threading
from pathlib import Path

from linkd.drill.deadman import MARK, Switch

_lock = threading.Lock()
_switches: dict[int, Switch] = {}
"""This process's switch, by its process id: a fork inherits one that is not its own."""


def hold(*folders: Path) -> None:
    """End what is started from now on with this process, and remove folders whose names are ours.

    Idempotent. What is started with an environment of its own choice keeps the mark of
    `os.environ`, or is not ended.
    """
    with _lock:
        switch = _switches.get(os.getpid())
        if switch is None:
            switch = _switches[os.getpid()] = Switch()
            os.environ[MARK] = switch.mark
            atexit.register(_let_go)
        for folder in folders:
            switch.remove(str(folder.absolute()))


def _let_go() -> None:
    """End the switch at the end of this process, and with it all that is left."""
    switch = _switches.pop(os.getpid(), None)
    if switch is not None:
        switch.close()
