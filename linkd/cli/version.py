"""`linkd version`."""

from __future__ import annotations

import argparse
from typing import Any

from linkd.version import VERSION


def add(subparsers: Any) -> None:
    """Add the command's parser."""
    parser = subparsers.add_parser(
        "version",
        help="print the version",
        description="Print the version of this installation; the daemon is not asked.",
    )
    parser.add_argument("--json", action="store_true", help="print an object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the version of this installation; needs no daemon."""
    print(f'{{"version":"{VERSION}"}}' if arguments.json else f"linkd {VERSION}")
    return 0
