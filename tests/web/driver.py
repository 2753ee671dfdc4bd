"""A Node.js program of tests/web/support as a process that talks in lines of JSON."""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlencode

from linkd.drill.testbed import Namespace
from tests.support.needs import lacking, need

HERE = Path(__file__).resolve().parent


class Driver:
    """A program under way; a context that ends it.

    Attributes:
        seen: Every line that it said, with when it came (monotonic seconds).
    """

    def __init__(
        self, script: str, *arguments: str, host: Namespace | None = None, **environment: str
    ) -> None:
        """Start it, on a host of the lab or here; skip the test where the machine lacks a part."""
        need("node")
        if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
            lacking("chromium")
        if not (HERE / "node_modules" / "ws").is_dir():
            lacking("the packages of tests/web (npm ci)")
        command = ["node", str(HERE / "support" / script), *arguments]
        if host is not None:
            command = [*host.prefix, *command]
        self.seen: list[tuple[float, dict[str, Any]]] = []
        self._lines: queue.Queue[tuple[float, dict[str, Any]] | None] = queue.Queue()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **environment},
            start_new_session=True,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put((time.monotonic(), json.loads(line)))
        self._lines.put(None)

    def tell(self, **what: Any) -> None:
        """Tell it something."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what).encode() + b"\n")
        self._process.stdin.flush()

    def wait(self, test: Callable[[dict[str, Any]], bool], within: float) -> float:
        """Wait for a line that `test` takes; return when it came (monotonic).

        Raises:
            AssertionError: It did not come in time; the message has the last lines.
        """
        end = time.monotonic() + within
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                line = None
            assert line is not None, f"not within {within} s; last: {self.seen[-3:]}"
            self.seen.append(line)
            if test(line[1]):
                return line[0]

    def read(self, seconds: float) -> None:
        """Take all lines that come within so many seconds."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            try:
                line = self._lines.get(timeout=left)
            except queue.Empty:
                return
            assert line is not None, f"it ended; last: {self.seen[-3:]}"
            self.seen.append(line)

    def last(self, name: str) -> Any:
        """Return the newest value that it said under a name."""
        return next(said[name] for _, said in reversed(self.seen) if name in said)

    def __enter__(self) -> Driver:
        """It has been started already."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it, by force where it does not end by itself."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, 9)
            self._process.wait(5)


class Pages:
    """Pages in Chromium by name, under the driver `programs.mjs`."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._ids = count(1)

    def _ask(self, name: str, within: float, **what: Any) -> tuple[float, Any]:
        number = next(self._ids)
        self._driver.tell(id=number, page=name, **what)
        at = self._driver.wait(lambda said: said.get("id") == number, within)
        said = self._driver.seen[-1][1]
        assert "error" not in said, (name, what, said)
        return at, said["value"]

    def open(self, name: str, url: str, **query: str) -> None:
        self._ask(name, 20, open=f"{url}?{urlencode(query)}" if query else url)

    def run(self, name: str, code: str) -> Any:
        return self._ask(name, 10, run=code)[1]

    def until(self, name: str, code: str, within: float = 10.0) -> float:
        """Return when (monotonic) something became true in a page."""
        return self._ask(name, within, until=code)[0]

    def shoot(self, name: str, file: Path, scheme: str, width: int, height: int) -> None:
        """Write a page's upper part as a PNG; `scheme` is `light` or `dark`."""
        self._ask(name, 20, shoot=str(file), scheme=scheme, size=[width, height])

    def close(self, name: str) -> None:
        self._ask(name, 10, close=True)
