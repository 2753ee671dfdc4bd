"""The daemon: signals, service manager, memory; the one module that installs the reactor."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from twisted.internet import tcp
from twisted.internet.defer import maybeDeferred
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure

from linkd import events
from linkd.clock import wall
from linkd.config import Change, Config, apply_live, changes, files, load
from linkd.errors import ConfigError, LinkdError, StateTooNew, Unavailable
from linkd.events.catalog import Level
from linkd.events.observers import Format, Installed
from linkd.host import lock_state_dir, raise_open_file_limit, remove_stale_socket
from linkd.pairing.ca import prepare
from linkd.preflight import check_files
from linkd.reactor import install as install_reactor
from linkd.systemd import LoopWatch, ServiceManager
from linkd.version import VERSION

if TYPE_CHECKING:
    from linkd.app import Application

YOUNG = 20_000
"""GC threshold of the youngest generation: about twice the containers of 1,000 open publishes.

Python's default of 700 made the collector scan all of them every few publishes without finding
garbage, since reference counting frees them (measured: 5 to 8 % of a busy hub's processor time).
"""

OLDER = 1
"""GC threshold of the older generations; a full collection frees what ended links leave behind."""


LARGE_BYTES = 4 << 20
"""glibc maps each block of this size or more separately and unmaps it as soon as it is free.

By default glibc raises this bound to 32 MiB as such blocks come and go, and keeps their memory:
240 callers that read pages of 16 MiB took 534 MB. Messages of 1 MiB must stay below it: mapping and
faulting in each copy doubled the processor time of such a message (6.5 to 16 ms).
"""

KEPT_BYTES = 16 << 20
"""Free memory that the heap keeps at its end, in bytes.

Setting one bound makes glibc stop adapting the other one, and its default of 128 KiB is returned
to the kernel and asked for again with each turn of the event loop.
"""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of <malloc.h>


def tune_gc() -> None:
    """Bound the heap's free memory; collect once, then exempt all current objects from GC."""
    with suppress(OSError, AttributeError):  # another library than glibc may have no such call
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)
        library.mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, OLDER, OLDER)


HANG_SECONDS: Final = 4.7
"""Seconds after its signal at which a stop counts as hung; DESIGN.md promises 5 s."""

_ENDING: Final = frozenset({signal.SIGTERM, signal.SIGINT})
_LAST_LINES_SECONDS: Final = 0.2
_MOST_DETAIL: Final = 2000


class SignalThread:
    """Waits for signals and calls their handlers; ends the process where a stop hangs.

    SIGABRT, which the service manager's watchdog sends, is logged with the place where the main
    thread was, and then ends the process. `os._exit` ends it where a stop hangs: everything
    acknowledged is on disk at any time.

    Args:
        calls: For each signal what is called, in this thread.
        installed: Where lines go: what waits there is written before the process ends.
    """

    def __init__(
        self, calls: Mapping[signal.Signals, Callable[[], None]], installed: Installed
    ) -> None:
        self._calls = calls
        self._installed = installed
        self._signals = {*calls, signal.SIGABRT}
        self._main = threading.main_thread().ident
        self._deadline: float | None = None
        self._ending_by = ""

    def start(self) -> None:
        """Receive the signals from now on; threads that start later have them blocked."""
        signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)
        threading.Thread(target=self._run, name="linkd-signals", daemon=True).start()

    def _run(self) -> None:
        while True:
            number = self._wait()
            if number is None:
                self._end_hung()
            elif number == signal.SIGABRT:
                self._abort()
            else:
                if number in _ENDING and self._deadline is None:
                    self._deadline = time.monotonic() + HANG_SECONDS
                    self._ending_by = number.name
                self._calls[number]()

    def _wait(self) -> signal.Signals | None:
        """Return the next signal, or None once a stop has taken too long."""
        if self._deadline is None:
            return signal.Signals(signal.sigwait(self._signals))
        left = max(0.0, self._deadline - time.monotonic())
        found = signal.sigtimedwait(self._signals, left)
        return None if found is None else signal.Signals(found.si_signo)

    def _end_hung(self) -> None:
        events.emit(
            "node.stop-hung",
            signal=self._ending_by,
            stop_seconds=HANG_SECONDS,
            detail=self._where(),
        )
        self._installed.finish(_LAST_LINES_SECONDS)
        os._exit(1)

    def _abort(self) -> None:
        events.emit("node.aborted", signal="SIGABRT", detail=self._where())
        self._installed.finish()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGABRT})
        signal.raise_signal(signal.SIGABRT)

    def _where(self) -> str:
        """Return the source line that the main thread executes."""
        frame = sys._current_frames().get(self._main or 0)
        if frame is None:
            return "the main thread has ended"
        return "".join(traceback.format_stack(frame))[-_MOST_DETAIL:]


STOP_SECONDS = 3.5
"""Seconds that a clean stop waits for goodbyes; the last log lines get one second more."""

LATE_SECONDS = 0.5
"""The event loop is reported as late where it wakes this many seconds late."""

_TICK = 1.0
_FEED = 2.5
"""Maximum seconds between two watchdog notifications."""
_FLUSH = 10.0


class Daemon:
    """One run of the daemon, from start to stop.

    Args:
        config: What is in force.
        paths: Finds the configuration's files again at a reload.
        reactor: Twisted's.
        manager: The service manager.
        watch: Ends the process when the loop hangs, where the service manager has a watchdog.

    Attributes:
        code: The exit code.
    """

    def __init__(
        self,
        config: Config,
        paths: Callable[[], Sequence[Path]],
        reactor: Any,
        manager: ServiceManager,
        watch: LoopWatch | None = None,
    ) -> None:
        self.config = config
        self.code = 0
        self._paths = paths
        self._reactor = reactor
        self._manager = manager
        self._watch = watch or LoopWatch()
        self._parts: Application | None = None
        self._began = reactor.seconds()
        self._expected = 0.0
        self._stopping = False
        self._loops: list[LoopingCall] = []

    def start(self, parts: Application) -> None:
        """Listen on all sockets, start all links, and report READY; exit where listening fails."""
        self._parts = parts
        try:
            parts.listen()
        except LinkdError as error:
            sys.stderr.write(f"linkd: {error}\n")
            self.code = 1
            self._reactor.stop()
            return
        parts.start()
        self._expected = self._reactor.seconds() + _TICK
        self._loop(_TICK, lambda: self._tick(parts))
        if self._manager.watchdog_interval is not None:
            self._loop(min(self._manager.watchdog_interval, _FEED), lambda: self._feed(parts))
            self._feed(parts)
            self._watch.start()
        self._manager.ready()
        self._report_status(parts)
        events.emit(
            "node.ready",
            node=self.config.node.name,
            peers=len(self.config.peers),
            start_seconds=self._reactor.seconds() - self._began,
        )
        tune_gc()

    def _loop(self, interval: float, call: Callable[[], None]) -> None:
        """Call a function repeatedly, on the reactor's clock."""
        loop = LoopingCall(call)
        loop.clock = self._reactor
        self._loops.append(loop)
        loop.start(interval, now=False).addErrback(self._bug)

    def _bug(self, failure: Failure) -> None:
        """Log that a loop has failed, and go on without it; the watchdog restarts the daemon."""
        events.emit("node.internal-error", where="daemon", detail=failure.getErrorMessage())

    def _tick(self, parts: Application) -> None:
        """Check whether the loop woke late; report the links to the service manager."""
        now = self._reactor.seconds()
        late = now - self._expected
        self._expected = now + _TICK
        if late > LATE_SECONDS:
            events.emit("node.loop-lag", late_seconds=late)
        self._report_status(parts)

    def _report_status(self, parts: Application) -> None:
        """Report the state of the links to the service manager, in one line."""
        up, down = parts.node.links.summary()
        line = f"{up} up, {len(down)} down"
        if down:
            line += f" ({', '.join(down[:5])}{', …' if len(down) > 5 else ''})"
        word = "draining, " if parts.node.drain.active else ""
        self._manager.status(f"{word}links: {line}")

    def _feed(self, parts: Application) -> None:
        """Notify the watchdog while every dialer makes progress."""
        stuck = parts.node.links.progress(self._reactor.seconds())
        if stuck is None:
            self._manager.alive()
            self._watch.turned()
        else:
            events.emit("node.stuck", detail=stuck)

    def kick(self) -> None:
        """Make every dialer try again immediately."""
        if self._parts is not None and not self._stopping:
            events.emit("node.kicked", reason="SIGUSR1")
            self._parts.node.links.kick()

    def reload(self) -> None:
        """Apply the changed configuration, or refuse it and log the reason."""
        parts = self._parts
        if parts is None or self._stopping:
            return
        self._manager.reloading()
        try:
            # Pairing's files belong to its thread by now, which repairs them every hour.
            new = checked(load(self._paths()))
            differences = changes(self.config, new)
            config = apply_live(self.config, new)
            parts.reload(config)
            self.config = config
        except LinkdError as error:
            events.emit("node.reload-refused", detail=str(error))
        except Exception:  # noqa: BLE001 - a bug must not leave the unit `reloading`
            self._bug(Failure())
            events.emit("node.reload-refused", detail="a mistake in linkd: see node.internal-error")
        else:
            _log_changes(differences)
        self._manager.ready()
        self._report_status(parts)

    def stop(self, why: str) -> None:
        """Stop cleanly: send goodbyes to peers, commit pending writes, then stop the reactor."""
        if self._stopping:
            return
        self._stopping = True
        self._manager.stopping()
        self._watch.stop()
        events.emit("node.stopping", signal=why)
        for loop in self._loops:
            if loop.running:
                loop.stop()
        began = self._reactor.seconds()
        limit = self._reactor.callLater(STOP_SECONDS, self._end, began)
        if self._parts is None:
            self._drain(began, limit)
            return
        detail = "stopped after a mistake" if self.code else "stopped by its operator"
        stopped = maybeDeferred(self._parts.stop, detail)
        stopped.addErrback(self._bug)
        stopped.addCallback(lambda _: self._drain(began, limit))

    def thread_died(self, thread: str, detail: str) -> None:
        """Exit with code 1, so that a restart replaces the thread that died."""
        events.emit("node.thread-died", thread=thread, detail=detail)
        self.code = 1
        self.stop(f"the thread {thread} has died")

    def _drain(self, began: float, limit: Any) -> None:
        """Stop once the last connection is closed; `limit` stops the reactor in any case."""
        if not limit.active():
            return
        if open_connections(self._reactor):
            self._reactor.callLater(0.02, self._drain, began, limit)
            return
        limit.cancel()
        self._end(began)

    def _end(self, began: float) -> None:
        """Stop the reactor."""
        events.emit("node.stopped", stop_seconds=self._reactor.seconds() - began)
        self._reactor.stop()


def _log_changes(differences: Sequence[Change]) -> None:
    """Log what a reload has changed, and which settings need a restart."""
    for change in differences:
        if not change.live:
            events.emit("node.restart-needed", setting=change.key, detail=change.detail)
    live = [str(change) for change in differences if change.live]
    detail = "; ".join(live)[:1000] or "nothing has changed that a reload applies"
    events.emit("node.reloaded", changes=len(live), detail=detail)


def open_connections(reactor: Any) -> int:
    """Return the number of open connections, accepted or dialed."""
    seen = {*reactor.getReaders(), *reactor.getWriters()}
    return sum(isinstance(each, tcp.Connection) for each in seen)


def with_files(config: Config) -> Config:
    """Return a configuration whose files are checked, after creating those of pairing.

    Raises:
        ConfigError: One line for each error.
        Unavailable: The same, where all of them may pass by themselves.
    """
    try:
        prepare(config, wall)
    except StateTooNew as error:
        raise ConfigError(str(error)) from None
    return checked(config)


def checked(config: Config) -> Config:
    """Return a configuration whose files are checked.

    Raises:
        ConfigError: One line for each error.
        Unavailable: The same, where all of them may pass by themselves.
    """
    troubles = check_files(config)
    if troubles:
        standing = any(isinstance(trouble, ConfigError) for trouble in troubles)
        raise (ConfigError if standing else Unavailable)("\n".join(map(str, troubles)))
    return config


def run(path: Path | None, log_format: Format = "text", least: Level = "info") -> int:
    """Run the node until a signal ends it, and return the exit code.

    Args:
        path: The configuration's main file; None: the usual one.
        log_format: Of the lines on standard error.
        least: The least level that is written.

    Raises:
        ConfigError: The configuration or a file that it names can't be used (exit code 2).
    """

    def paths() -> list[Path]:
        return files(path)

    try:
        config = load(paths())  # the command reports errors in it: the log is not set up yet
        instance = None if config.cluster is None else config.cluster.instance
        installed = events.install(sys.stderr, log_format, least, instance)
        with_files(config)
        lock = lock_state_dir(config.node.state_dir)
        remove_stale_socket(config.api.socket)
        try:
            return _run(config, paths, installed)
        finally:
            os.close(lock)
    except ConfigError:
        raise
    except StateTooNew as error:
        raise ConfigError(str(error)) from None
    except (LinkdError, OSError) as error:
        # An OSError here is a failing disk; the command would report it as one of its output.
        for line in str(error).splitlines():
            sys.stderr.write(f"linkd: {line}\n")
        return 1


def _run(config: Config, paths: Callable[[], Sequence[Path]], installed: Installed) -> int:
    """Build the application on the reactor and run it."""
    reactor: Any = install_reactor()
    reactor.seconds = time.monotonic
    from linkd.app import Application  # noqa: PLC0415  # it imports all of linkd

    raise_open_file_limit()
    daemon = Daemon(config, paths, reactor, ServiceManager(os.environ))
    post = reactor.callFromThread
    SignalThread(
        {
            signal.SIGTERM: partial(_end, reactor, daemon, installed, "SIGTERM"),
            signal.SIGINT: partial(_end, reactor, daemon, installed, "SIGINT"),
            signal.SIGHUP: partial(post, daemon.reload),
            signal.SIGUSR1: partial(post, daemon.kick),
        },
        installed,
    ).start()
    threading.excepthook = partial(_thread_died, reactor, daemon)
    name, state = config.node.name, config.node.state_dir
    events.emit("node.starting", node=name, version=VERSION, state_dir=state)
    assembly = Application(config, paths()[0].parent / "linkd.d", reactor, daemon.reload)
    flushing = LoopingCall(installed.observer.flush)
    flushing.clock = reactor
    flushing.start(_FLUSH, now=False)
    reactor.callWhenRunning(daemon.start, assembly)
    reactor.run(installSignalHandlers=False)
    installed.finish()
    return daemon.code


def _end(reactor: Any, daemon: Daemon, installed: Installed, why: str) -> None:
    """Stop cleanly, or exit as in a crash while the log still opens: no peer awaits a goodbye.

    In the thread that takes the signals.
    """
    if reactor.running:
        reactor.callFromThread(daemon.stop, why)
        return
    events.emit("node.stopping", signal=why)
    installed.finish()
    os._exit(daemon.code)


def _thread_died(reactor: Any, daemon: Daemon, what: threading.ExceptHookArgs) -> None:
    """Report a thread that ended by an exception to the daemon, in the reactor's thread."""
    name = what.thread.name if what.thread is not None else "?"
    lines = traceback.format_exception(what.exc_type, what.exc_value, what.exc_traceback)
    reactor.callFromThread(daemon.thread_died, name, "".join(lines)[-2000:])
