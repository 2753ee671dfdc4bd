"""Options that many commands share, and how a client command finds its daemon."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

DEFAULT_SOCKET = "/run/linkd/linkd.sock"


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add `-c FILE`: it may stand before or behind the command's name."""
    parser.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="configuration file (default: LINKD_CONFIG, else /etc/linkd/linkd.toml)",
    )


def add_socket(parser: argparse.ArgumentParser) -> None:
    """Add `-c FILE` and `--socket PATH`."""
    add_config(parser)
    parser.add_argument(
        "--socket",
        metavar="PATH",
        default=argparse.SUPPRESS,
        help="the daemon's socket (default: LINKD_SOCKET, else what the configuration says)",
    )


def socket_path(arguments: argparse.Namespace) -> str:
    """Return the daemon's socket: `--socket`, `LINKD_SOCKET`, the configuration, the default path.

    A configuration that was named must be readable and right; an unnamed one that isn't there, or that
    this user may not read, is passed over.

    Raises:
        ConfigError: The configuration can't be used.
    """
    named = getattr(arguments, "socket", None) or os.environ.get("LINKD_SOCKET")
    if named:
        return str(named)
    config = getattr(arguments, "config", None) or os.environ.get("LINKD_CONFIG")
    if config:
        return _configured(Path(config))
    try:
        return _configured(None)
    except OSError:
        return DEFAULT_SOCKET


def _configured(path: Path | None) -> str:
    """Read the socket's path from the configuration."""
    from linkd.config import files, load

    return str(load(files(path)).api.socket)
