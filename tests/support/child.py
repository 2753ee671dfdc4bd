"""A process of ours beside the tests, which obeys orders: JSON lines in, JSON lines out."""

from __future__ import annotations

import json
import select
import subprocess
from collections.abc import Sequence
from typing import Any, Self

from tests.support.lab import ROOT, Namespace, python


class Child:
    """A Python module run as a process, on this machine or inside a host; a context that ends it.

    Args:
        module: What is run, with its arguments.
        host: Where; None: on this machine.
    """

    _name = "child"
    """What it is called in messages."""

    _patience = 10.0
    """Seconds that an answer may take."""

    _stderr: int | None = None
    """Where its errors go; None: to ours."""

    def __init__(self, module: Sequence[str], host: Namespace | None) -> None:
        """Start it."""
        command = python("-m", *module)
        self._process = subprocess.Popen(
            command if host is None else host.enter(command),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            start_new_session=True,
        )

    def ask(self, **order: Any) -> dict[str, Any]:
        """Give an order and return the answer.

        Raises:
            RuntimeError: It has gone, or did not answer in time.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._gone() from None
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """Return what it says next.

        Raises:
            RuntimeError: It has gone, or says nothing in time.
        """
        stream = self._process.stdout
        assert stream is not None
        if not select.select([stream], [], [], self._patience)[0]:
            raise RuntimeError(f"the {self._name} does not answer")
        line = stream.readline()
        if not line:
            raise self._gone()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _gone(self) -> RuntimeError:
        return RuntimeError(f"the {self._name} has gone, exit {self._process.wait(5)}")

    def close(self) -> None:
        """End it."""
        end(self._process)

    def __enter__(self) -> Self:
        """Return self."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self.close()


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process, wait for it, and close its pipes."""
    process.kill()
    process.wait(5)
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
