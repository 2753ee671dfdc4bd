"""Lay out the source of each distribution: `python packaging/distributions.py DIR`.

A checkout is one project, and two distributions are published: `linkd-client` has what an
application needs, `linkd-daemon` has the rest and depends on it. No file is in both: either may be
installed first, and the client outlives the daemon.
"""

from __future__ import annotations

import argparse
import configparser
import runpy
import shutil
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSION: str = runpy.run_path(str(ROOT / "linkd" / "version.py"))["VERSION"]
CLIENT = ("client", "errors.py", "protocol", "py.typed", "status.py", "version.py")
CLIENT_NEEDS = ("msgspec", "websockets")
DAEMON_EXTRAS = ("postgresql", "cluster")


def checkout() -> configparser.RawConfigParser:
    """Return setup.cfg."""
    parser = configparser.RawConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def settings() -> configparser.RawConfigParser:
    """Return the settings of both: setup.cfg without the extras and tools of a checkout."""
    parser = checkout()
    for section in parser.sections():
        if section != "metadata" and not section.startswith("options"):
            parser.remove_section(section)
    parser.remove_section("options.extras_require")
    parser["metadata"]["version"] = VERSION
    return parser


def daemon() -> configparser.RawConfigParser:
    """Return the settings of linkd-daemon."""
    parser = settings()
    parser["options"]["install_requires"] += f"\nlinkd-client=={VERSION}"
    extras = checkout()["options.extras_require"]
    parser["options.extras_require"] = {name: extras[name] for name in DAEMON_EXTRAS}
    parser.remove_option("options.package_data", "linkd")
    return parser


def client() -> configparser.RawConfigParser:
    """Return the settings of linkd-client."""
    parser = settings()
    needs = parser["options"]["install_requires"].splitlines()
    parser["metadata"]["name"] = "linkd-client"
    parser["metadata"]["description"] = "The client of linkd, a resilient link between servers"
    parser["options"]["install_requires"] = "\n".join(
        need for need in needs if need.startswith(CLIENT_NEEDS)
    )
    parser["options.extras_require"] = {
        "twisted": "\n" + "\n".join(need for need in needs if need.startswith("twisted"))
    }
    parser.remove_section("options.entry_points")
    parser.remove_option("options.package_data", "linkd.api")
    return parser


def lay_out(
    directory: Path, parser: configparser.RawConfigParser, parts: Iterable[str], readme: Path
) -> None:
    """Write the source of one distribution into a new directory; `parts` are in linkd/."""
    package = directory / "linkd"
    package.mkdir(parents=True)
    for name in parts:
        part = ROOT / "linkd" / name
        if part.is_dir():
            shutil.copytree(part, package / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(part, package)
    for name in ("LICENSE", "pyproject.toml"):
        shutil.copy(ROOT / name, directory)
    shutil.copy(readme, directory / "README.md")
    with (directory / "setup.cfg").open("w") as file:
        parser.write(file)


def main() -> int:
    """Write DIR/linkd-client and DIR/linkd-daemon."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("directory", type=Path, metavar="DIR", help="must not exist")
    directory: Path = arguments.parse_args().directory
    everything = {path.name for path in (ROOT / "linkd").iterdir()} - {"__pycache__"}
    guide = ROOT / "docs" / "clients" / "python.md"
    lay_out(directory / "linkd-client", client(), CLIENT, guide)
    lay_out(directory / "linkd-daemon", daemon(), everything - {*CLIENT}, ROOT / "README.md")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
