"""A reader that goes is noticed without a write; what has no reader is left alone."""

from __future__ import annotations

import os
import signal
import socket
import threading
from pathlib import Path

import pytest

from linkd.cli.exits import ReaderGone, end_when_gone, on_reader_closed


def watchers() -> int:
    return sum(thread.name == "audience" for thread in threading.enumerate())


def test_a_pipe_whose_reader_goes() -> None:
    reader, writer = os.pipe()
    told = threading.Event()
    with os.fdopen(writer, "w") as output:
        on_reader_closed(output, told.set)
        assert not told.wait(0.1)
        os.close(reader)
        assert told.wait(5.0)


def test_a_socket_whose_reader_goes() -> None:
    near, far = socket.socketpair()
    told = threading.Event()
    with near, near.makefile("w") as output:
        on_reader_closed(output, told.set)
        far.close()
        assert told.wait(5.0)


def test_files_and_what_has_no_descriptor_are_not_watched(tmp_path: Path) -> None:
    before = watchers()
    with (tmp_path / "file").open("w") as output:
        on_reader_closed(output, threading.Event().set)
    on_reader_closed(output, threading.Event().set)  # It is closed by now.
    assert watchers() == before


def test_the_main_thread_is_woken_out_of_any_wait() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    reader, writer = os.pipe()
    try:
        with os.fdopen(writer, "w") as output:
            end_when_gone(output)
            threading.Timer(0.05, os.close, [reader]).start()
            with pytest.raises(ReaderGone):
                threading.Event().wait(5.0)
    finally:
        signal.signal(signal.SIGUSR1, before)
