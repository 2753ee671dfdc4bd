"""`linkd report`: one file for a bug report, without secrets."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Final

from linkd.cli import exits, http
from linkd.cli.exits import CommandError
from linkd.cli.options import add_socket, configuration
from linkd.errors import ConfigError, LinkdError, Unavailable
from linkd.version import VERSION

PACKAGES: Final = ("Twisted", "autobahn", "msgspec", "cryptography", "pyOpenSSL", "zstandard")

CALLS: Final = {
    "status": "/v1/status",
    "instances": "/v1/instances",
    "outages": "/v1/outages",
    "events": "/v1/events",
    "consumers": "/v1/consumers",
    "metrics": "/metrics",
}
"""What the daemon is asked for."""

SHORTEST: Final = 4
"""Shorter passwords of proxies are not looked for: they are parts of many words."""

JOURNAL: Final = ("journalctl", "--unit=linkd", "--lines=1000", "--no-pager", "--output=short-iso")


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's description, arguments and options."""
    parser.description = (
        "Write versions, the configuration in force, status, instances, outages, events,"
        " consumers, metrics and the last 1,000 lines of the journal to one text file. It holds"
        " names and addresses of hosts, but no secrets and no messages: read it before you send it."
        " A part that is not available is named in the file; the daemon need not run."
    )
    add_socket(parser)
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="where to write it, `-` for standard output (default: linkd-report-TIME.txt here)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the report and print its name."""
    parts = {
        "versions": _versions,
        "configuration": lambda: _configuration(arguments),
        **{name: _call(arguments, target) for name, target in CALLS.items()},
        "journal": _journal,
    }
    text = "".join(f"== {name}\n{_content(part).rstrip()}\n\n" for name, part in parts.items())
    for secret in _secrets(arguments):
        text = text.replace(secret, "(secret)")
    if arguments.output == "-":
        print(text, end="")
        return exits.OK
    moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    path = arguments.output or f"linkd-report-{moment}.txt"
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror}") from None
    print(f"wrote {path}: read it before you send it")
    return exits.OK


def _content(part: Callable[[], str]) -> str:
    """Return a part of the report, or why it is not available."""
    try:
        return part()
    except (LinkdError, OSError, subprocess.SubprocessError) as error:
        return f"not available: {error}"


def _versions() -> str:
    lines = [f"linkd {VERSION}", f"Python {sys.version}", platform.platform()]
    for package in PACKAGES:
        try:
            lines.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            lines.append(f"{package} is not installed")
    return "\n".join(lines)


def _configuration(arguments: argparse.Namespace) -> str:
    from linkd.cli.check import in_toml  # noqa: PLC0415 - slow to load

    return "\n".join(in_toml(configuration(arguments)))


def _call(arguments: argparse.Namespace, target: str) -> Callable[[], str]:
    return lambda: http.get(arguments, target).body.decode(errors="replace")


def _journal() -> str:
    done = subprocess.run(JOURNAL, capture_output=True, text=True, errors="replace", timeout=30)
    return done.stdout or done.stderr


def _secrets(arguments: argparse.Namespace) -> Iterator[str]:
    """Yield every secret of the configuration that this user can read: none may be in the file."""
    from linkd.net.auth import load_secret  # noqa: PLC0415 - it loads cryptography
    from linkd.net.proxy import load_credentials  # noqa: PLC0415 - it loads Twisted

    try:
        config = configuration(arguments)
    except (ConfigError, OSError):
        return
    named = [one.secret_file for one in config.peers] + [one.secret_file for one in config.api.keys]
    for path in named:
        if path is not None:
            try:
                yield load_secret(path).decode(errors="replace")
            except (ConfigError, Unavailable):
                continue
    for path in {peer.proxy_secret_file for peer in config.peers}:
        if path is not None:
            try:
                credentials = load_credentials(path)
            except (ConfigError, Unavailable):
                continue
            yield credentials.basic()
            if len(credentials.password) >= SHORTEST:
                yield credentials.password
