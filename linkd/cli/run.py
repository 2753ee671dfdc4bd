"""`linkd run`: the node, in the foreground; as the unit starts it. `linkd version`."""

from __future__ import annotations

import argparse

from linkd.cli.options import add_config, config_path
from linkd.version import VERSION


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's description, arguments and options."""
    if parser.prog == "linkd version":
        parser.description = "Print the version of this installation; the daemon is not asked."
        parser.add_argument("--json", action="store_true", help="print an object")
        return
    parser.description = (
        "Run the node in the foreground until a signal ends it: what the systemd unit"
        " starts. SIGHUP reads the configuration again, SIGUSR1 has every link try again at once."
    )
    add_config(parser)
    parser.add_argument(
        "--log-format",
        choices=("text", "json"),
        default="text",
        help="how the lines on stderr look (default: text)",
    )
    parser.add_argument(
        "--log-level",
        choices=("debug", "info", "warn", "error"),
        default="info",
        help="the least level that is written (default: info)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run until a signal ends it, and return the exit code; or print the version.

    Raises:
        ConfigError: The configuration, or a file or socket that it names, can't be used.
    """
    if arguments.command == "version":
        print(f'{{"version":"{VERSION}"}}' if arguments.json else f"linkd {VERSION}")
        return 0
    from linkd.daemon import run as run_daemon  # noqa: PLC0415  # it installs the reactor

    return run_daemon(config_path(arguments), arguments.log_format, arguments.log_level)
