"""Hosts that are to be paired: a hub and nodes that know nobody yet, and a man in the middle."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import trustme

from linkd.drill.testbed import Namespace
from tests.support.daemon import COMMAND, Daemon
from tests.support.lab import LabHost, python

HUB: Final = """
[listen]
address = "0.0.0.0:9443"
"""
"""A hub that has nothing yet but this line: its own authority is the default."""

_BETWEEN: Final = """
import socket, ssl, sys, threading
to, port, certificate, key = sys.argv[1], int(sys.argv[2]), *sys.argv[3:]
wrap = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
wrap.load_cert_chain(certificate, key)
listener = socket.create_server(("0.0.0.0", port))
print("ready", flush=True)

def copy(source, target):
    try:
        while piece := source.recv(65536):
            target.sendall(piece)
    except OSError:
        pass
    finally:
        for each in (source, target):
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

def serve(raw):
    try:
        with wrap.wrap_socket(raw, server_side=True) as near:
            blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            blind.check_hostname, blind.verify_mode = False, ssl.CERT_NONE
            with socket.create_connection((to, port)) as far_raw, blind.wrap_socket(far_raw) as far:
                threading.Thread(target=copy, args=(far, near), daemon=True).start()
                copy(near, far)
    except OSError:
        pass

while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""


def command(
    daemon: Daemon, *words: str, stdin: str = "", timeout: float = 60.0
) -> subprocess.CompletedProcess[str]:
    """Run `linkd …` as a person at the daemon's host would."""
    line = [*python(*COMMAND), *words, "-c", str(daemon.config_file)]
    if daemon.host is not None:
        return daemon.host.run(*line, check=False, timeout=timeout, stdin=stdin)
    return subprocess.run(line, capture_output=True, text=True, timeout=timeout, input=stdin)


def invite(hub: Daemon, name: str, *options: str) -> str:
    """Return the code that `linkd invite` prints.

    Raises:
        AssertionError: It printed none; the message has what it said.
    """
    done = command(hub, "invite", name, *options)
    assert done.returncode == 0, done.stderr
    first, second, code = done.stdout.split()
    assert (first, second) == ("linkd", "join"), done.stdout
    return code


def newcomer(start: Callable[..., Daemon], name: str, host: Namespace | None) -> Daemon:
    """Start a node that knows nobody."""
    return start(name, "", host)


@contextmanager
def man_in_the_middle(host: LabHost, to: str, name: str, directory: Path) -> Iterator[None]:
    """Take what comes to a host's port 9443, with its own certificate for `name`, on to `to`."""
    leaf = trustme.CA().issue_cert(name, host.address)
    certificate, key = directory / "between.crt", directory / "between.key"
    certificate.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    key.write_bytes(leaf.private_key_pem.bytes())
    with host.serving(_BETWEEN, to, "9443", str(certificate), str(key)):
        yield
