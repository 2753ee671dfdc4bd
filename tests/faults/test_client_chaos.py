"""The Python clients under everything that happens to a daemon, short; LINKD_CAMPAIGN=1: long."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

SECONDS = 75 if os.environ.get("LINKD_CAMPAIGN") == "1" else 8


@pytest.mark.parametrize("loop", ["asyncio", "twisted"])
def test_every_call_settles_once_with_the_truth(loop: str) -> None:
    words = ["-m", "tests.support.client_chaos", loop, "--seconds", str(SECONDS)]
    done = subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        timeout=SECONDS * 3 + 60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert json.loads(done.stdout)["done"]["call: offset"] > 100
