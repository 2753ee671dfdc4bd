"""The links between a campaign's daemons: taken out of the configurations, and put back."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Collection, Mapping

from tests.support.daemon import Daemon

IN_FORCE_SECONDS = 60.0
"""A daemon may be away or frozen meanwhile, by another fault of the same act."""

AGAIN_SECONDS = 0.5


class Links:
    """Writes the daemons' configurations.

    Args:
        daemons: By name.
        heads: What a daemon's configuration has beside its peers.
    """

    def __init__(self, daemons: Mapping[str, Daemon], heads: dict[str, str]) -> None:
        self.heads = heads
        self._daemons = daemons
        self._peers: dict[str, dict[str, str]] = {name: {} for name in daemons}
        self._away: set[tuple[str, str]] = set()

    def add(self, listener: str, dialer: str, at_listener: str, at_dialer: str) -> None:
        """Add a link by its two `[[peer]]` tables."""
        self._peers[listener][dialer] = at_listener
        self._peers[dialer][listener] = at_dialer

    def write(self) -> None:
        """Write all configurations."""
        for name in self._daemons:
            self._configure(name)

    def _configure(self, name: str) -> set[str]:
        """Write one configuration; return the peers in it."""
        peers = {p: text for p, text in self._peers[name].items() if (name, p) not in self._away}
        self._daemons[name].configure(self.heads[name] + "".join(peers.values()))
        return set(peers)

    def take(self, one: str, two: str, ends: Collection[str]) -> None:
        """Remove a link's `[[peer]]` at these of its ends, and wait until that is in force."""
        for name in ends:
            self._away.add((name, two if name == one else one))
            self._apply(name)

    def put(self, listener: str, dialer: str) -> None:
        """Put a link back at both ends, and let the dialer try at once."""
        for name, other in ((listener, dialer), (dialer, listener)):
            if (name, other) in self._away:
                self._away.remove((name, other))
                self._apply(name)
        # Where it was rejected meanwhile, it would try again only after a minute.
        with contextlib.suppress(OSError, RuntimeError):
            self._daemons[dialer].call("POST", f"/v1/peers/{listener}/kick")

    def narrow(self, name: str, peer: str) -> str:
        """Let a daemon send a peer nothing; return the table that was."""
        lines = self._peers[name][peer].splitlines(keepends=True)
        return self.replace(
            name,
            peer,
            "".join("send = []\n" if line.startswith("send") else line for line in lines),
        )

    def replace(self, name: str, peer: str, text: str) -> str:
        """Replace one `[[peer]]` table, and wait until that is in force; return the old one."""
        old, self._peers[name][peer] = self._peers[name][peer], text
        self._configure(name)
        daemon = self._daemons[name]
        until = time.monotonic() + IN_FORCE_SECONDS
        while time.monotonic() < until:
            asked = time.monotonic()
            with contextlib.suppress(OSError, RuntimeError):
                daemon.status()  # it runs, so that it obeys the signal
                daemon.signal(signal.SIGHUP)
                daemon.wait_line(IN_FORCE_SECONDS / 10, asked, event="node.reloaded")
                return old
            time.sleep(AGAIN_SECONDS)
        raise RuntimeError(f"{name}: no reload in time\n{daemon.tail()}")

    def _apply(self, name: str) -> None:
        """Reload a daemon until its peers are those of its configuration.

        Raises:
            RuntimeError: They are not in time.
        """
        wanted, daemon = self._configure(name), self._daemons[name]
        until = time.monotonic() + IN_FORCE_SECONDS
        while time.monotonic() < until:
            with contextlib.suppress(OSError, ValueError, TypeError):
                if {link["peer"] for link in daemon.status()["links"]} == wanted:
                    return
                daemon.signal(signal.SIGHUP)
            time.sleep(AGAIN_SECONDS)
        raise RuntimeError(f"{name}: its peers are not {sorted(wanted)} in time\n{daemon.tail()}")

    def forget(self, name: str, peer: str) -> None:
        """Let a daemon forget a peer that was taken away: its cursor goes.

        Raises:
            RuntimeError: It does not in time.
        """
        until = time.monotonic() + IN_FORCE_SECONDS
        while True:
            try:
                self._daemons[name].call(
                    "POST", f"/v1/peers/{peer}/forget", b'{"confirmed":true}', timeout=10.0
                )
            except RuntimeError as error:
                if " 404 " in str(error):  # the call before had no answer, and was obeyed
                    return
                if time.monotonic() > until:
                    raise
            except OSError:
                if time.monotonic() > until:
                    raise RuntimeError(f"{name} does not forget {peer} in time") from None
            time.sleep(AGAIN_SECONDS)
