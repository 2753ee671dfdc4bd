"""What a process waits for a processor is seen, and what it sleeps is not."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from tests.support.queueing import WINDOW_SECONDS, OwnTime, Queueing

SPIN = "import os, sys\nos.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True: pass"


def test_two_who_want_one_processor_wait_for_it() -> None:
    """Each gets half of it at most; a process that has ended waits for nothing."""
    processor = str(min(os.sched_getaffinity(0)))
    command = [sys.executable, "-I", "-S", "-c", SPIN, processor]
    spinning = [subprocess.Popen(command) for _ in range(2)]
    try:
        queueing = [Queueing(process.pid) for process in spinning]
        time.sleep(WINDOW_SECONDS + 1.0)
        assert sum(each.recent() for each in queueing) > 0.8 * WINDOW_SECONDS
    finally:
        for process in spinning:
            process.kill()
            process.wait()
    assert [each.recent() for each in queueing] == [0.0, 0.0]


def test_who_sleeps_does_not_wait() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        queueing = Queueing(process.pid)
        time.sleep(0.6)
        slept = queueing.recent()
        process.kill()
    assert slept < 0.3


def test_own_time_stands_still_while_another_has_the_processor() -> None:
    allowed = os.sched_getaffinity(0)
    one = min(allowed)
    spinning = subprocess.Popen([sys.executable, "-I", "-S", "-c", SPIN, str(one)])
    try:
        os.sched_setaffinity(0, {one})
        own, began, used = OwnTime(), time.monotonic(), time.process_time()
        while time.monotonic() - began < 1.0:
            pass
        assert time.process_time() - used - 0.05 < own.seconds() < 0.9
    finally:
        os.sched_setaffinity(0, allowed)
        spinning.kill()
        spinning.wait()
