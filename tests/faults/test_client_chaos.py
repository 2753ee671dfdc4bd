"""The Python clients and the command line under everything that happens to a daemon.

LINKD_CAMPAIGN=1: for 75 s and 100,000 publishes each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

IS_LONG = os.environ.get("LINKD_CAMPAIGN") == "1"
SECONDS, PUBLISHES = (75, 100_000) if IS_LONG else (8, 0)


@pytest.mark.parametrize("loop", ["asyncio", "twisted", "cli"])
def test_every_call_settles_once_with_the_truth(loop: str) -> None:
    words = ["-m", "tests.support.client_chaos", loop, "--seconds", str(SECONDS)]
    words += ["--publishes", str(PUBLISHES)]
    done = subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        timeout=SECONDS * 12 + 60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    calls = json.loads(done.stdout)["done"]
    assert calls["call: stored" if loop == "cli" else "call: offset"] > 100
