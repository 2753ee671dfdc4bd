"""linkd.js while its node's log is full or replaced, and while its key changes."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest

from linkd.drill.testbed import free_port
from tests.support import figures
from tests.support.daemon import Daemon
from tests.web.driver import Driver

pytestmark = [pytest.mark.web, pytest.mark.timing]

FULL = "[log]\nmin_free_bytes = 1_000_000_000_000_000\n"
FAULTS = ("full", "kill", "stop", "freeze", "reload", "key")
"""Each round has all of them, the first round in this order."""
PHASE_SECONDS = 5.0


class Node:
    """A daemon with a key, and what happens to it."""

    def __init__(self, daemon: Daemon, port: int) -> None:
        self.daemon = daemon
        self.key_file = daemon.directory / "key"
        self._port = port
        self._keys = 0
        self.configure()

    def configure(self, more: str = "") -> None:
        """Write the configuration, with the present key."""
        self.key_file.touch(0o600)
        self.key_file.write_text(f"{self._keys:040}\n")
        self.daemon.configure(
            f'http = "127.0.0.1:{self._port}"\n[[api.key]]\nname = "shop"\n'
            f'secret_file = "{self.key_file}"\npublish = [">"]\nsubscribe = [">"]\n{more}'
        )

    def happen(self, fault: str) -> None:
        """Do one thing to the daemon."""
        daemon = self.daemon
        if fault == "freeze":
            daemon.freeze()
            time.sleep(0.5)
            daemon.thaw()
        elif fault in ("reload", "key"):
            self._keys += fault == "key"
            self.configure()
            daemon.signal(signal.SIGHUP)
        else:
            daemon.kill() if fault == "kill" else daemon.stop()
            if fault == "full":
                self.configure(FULL)
                daemon.start()
                time.sleep(0.5)
                daemon.stop()
                self.configure()
            daemon.start()

    def replace_log(self) -> None:
        """Give it a log in which nothing is that was published."""
        self.daemon.stop()
        shutil.rmtree(Path(self.daemon.directory) / "state")
        self.daemon.start()


def test_every_call_settles_once_with_the_truth() -> None:
    """`LINKD_CHAOS_SECONDS` and `LINKD_CHAOS_PUBLISHES` make it longer than CI has time for."""
    seconds = float(os.environ.get("LINKD_CHAOS_SECONDS", "9"))
    publishes = int(os.environ.get("LINKD_CHAOS_PUBLISHES", "0"))
    faults = list(FAULTS)
    port, random = free_port(), Random(3)
    done: Counter[str] = Counter()
    with Daemon("edge-1", "") as daemon:
        node = Node(daemon, port)
        daemon.stop()
        daemon.start()
        with Driver("logs.mjs", f"http://127.0.0.1:{port}", str(node.key_file)) as seen:
            seen.wait(lambda said: "under_way" in said, 20)
            end = time.monotonic() + seconds
            while time.monotonic() < end or done["published"] < publishes:
                phase = time.monotonic() + PHASE_SECONDS
                while time.monotonic() < phase:
                    time.sleep(0.5 + random.random())
                    fault = faults.pop(0)
                    done[fault] += 1
                    node.happen(fault)
                    if not faults:
                        faults = random.sample(FAULTS, len(FAULTS))
                _check(seen, done)
                done["log replaced"] += 1
                node.replace_log()
                seen.tell(go=True)
            seen.tell(end=True)
    figures.tell(f"linkd.js, logs and keys, {seconds:g} s: {dict(done)}")
    assert done["published"] > 50 * seconds


def _check(seen: Driver, done: Counter[str]) -> None:
    """Have every call settle and be compared with the log."""
    seen.tell(check=True)
    seen.wait(lambda said: "published" in said, 70)
    found: dict[str, Any] = seen.seen[-1][1]
    done["published"] += found["published"]
    done["stored"] += found["stored"]
    done["refused"] += found["refused"].get("log-full", 0)
    wrong = {what: count for what, count in found["wrong"].items() if count}
    assert (wrong, found["gaps"]) == ({}, 0), found
