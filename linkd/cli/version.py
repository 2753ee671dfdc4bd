"""`linkd version`."""

from __future__ import annotations

import argparse

from linkd.version import VERSION


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's description, arguments and options."""
    parser.description = "Print the version of this installation; the daemon is not asked."
    parser.add_argument("--json", action="store_true", help="print an object")


def run(arguments: argparse.Namespace) -> int:
    """Print the version of this installation; needs no daemon."""
    print(f'{{"version":"{VERSION}"}}' if arguments.json else f"linkd {VERSION}")
    return 0
