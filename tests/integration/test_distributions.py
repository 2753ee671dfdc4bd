"""The published distributions: built here, installed into empty environments."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from linkd.version import VERSION
from tests.support import figures
from tests.support.daemon import Daemon

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import asyncio, sys
import linkd.client


async def main():
    async with linkd.client.connect(sys.argv[1]) as node:
        await node.publish("orders", {"total": 12})
        async for record in node.subscribe("orders", start="earliest"):
            print(record.data)
            break


asyncio.run(main())
"""
EVERY_MODULE = """
import importlib, pkgutil, linkd
for module in pkgutil.walk_packages(linkd.__path__, "linkd."):
    if module.name != "linkd.client.twisted":
        importlib.import_module(module.name)
        print(module.name)
"""
IMPORTS = """
import time
begun = time.process_time()
import linkd.client.aio
print(1000 * (time.process_time() - begun))
"""
DISTRIBUTIONS = """
import importlib.metadata
for found in importlib.metadata.distributions():
    print(found.name)
"""


def run(*command: str | Path) -> str:
    done = subprocess.run(
        list(map(str, command)), cwd="/", capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with both wheels and those of all that they need."""
    built = tmp_path_factory.mktemp("wheels")
    run(ROOT / "packaging" / "build", "--to", built, "wheels")
    run(
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
        "--dest", built, "--find-links", built, "linkd-daemon[cluster]",
    )  # fmt: skip
    return built


class Environment:
    """An empty environment, without pip."""

    def __init__(self, directory: Path, wheels: Path) -> None:
        self.python = directory / "bin" / "python"
        self._wheels = wheels
        run(sys.executable, "-m", "venv", "--without-pip", directory)

    def pip(self, command: str, *arguments: str | Path) -> None:
        quiet = ("--quiet", "--disable-pip-version-check")
        run(sys.executable, "-m", "pip", "--python", self.python, command, *quiet, *arguments)

    def install(self, name: str) -> None:
        self.pip("install", "--no-index", "--find-links", self._wheels, name)

    def does(self, program: str, *arguments: str | Path) -> list[str]:
        return run(self.python, "-c", program, *arguments).splitlines()


@pytest.fixture
def empty(tmp_path: Path, wheels: Path) -> Environment:
    return Environment(tmp_path / "environment", wheels)


def test_no_file_is_in_both_wheels(wheels: Path) -> None:
    (client,) = wheels.glob("linkd_client-*.whl")
    (daemon,) = wheels.glob("linkd_daemon-*.whl")
    both = set(zipfile.ZipFile(client).namelist()) & set(zipfile.ZipFile(daemon).namelist())
    assert both == set()


def test_the_client_alone_brings_three_distributions_and_talks_to_a_daemon(
    empty: Environment,
) -> None:
    empty.install("linkd-client")
    assert {*empty.does(DISTRIBUTIONS)} == {"linkd-client", "msgspec", "websockets"}
    assert "linkd.protocol.records" in empty.does(EVERY_MODULE)
    with Daemon("edge", "") as daemon:
        assert empty.does(PROGRAM, daemon.socket) == ["{'total': 12}"]
    times = sorted(float(empty.does(IMPORTS)[0]) for _ in range(5))
    figures.tell(f"linkd-client alone: import takes {times[2]:.0f} ms of CPU, median of 5")


def test_the_daemon_brings_what_several_hubs_need_where_asked(empty: Environment) -> None:
    empty.install("linkd-daemon")
    assert not {"psycopg", "redis"} & {*empty.does(DISTRIBUTIONS)}
    empty.install("linkd-daemon[cluster]")
    assert {"psycopg", "psycopg-binary", "redis"} <= {*empty.does(DISTRIBUTIONS)}
    assert "linkd.log.postgresql.database" in empty.does(EVERY_MODULE)


def test_a_type_checker_reads_the_annotations_of_the_client(
    empty: Environment, tmp_path: Path
) -> None:
    empty.install("linkd-client")
    program = tmp_path / "program.py"
    program.write_text("import linkd.client\nreveal_type(linkd.client.connect)\n")
    shown = run(
        sys.executable, "-m", "mypy", "--strict", "--python-executable", empty.python,
        "--cache-dir", tmp_path / "cache", "--config-file", "/dev/null", program,
    )  # fmt: skip
    assert "linkd.client.aio.Node" in shown


@pytest.mark.parametrize(
    "names", [("linkd-client", "linkd-daemon"), ("linkd-daemon", "linkd-client")]
)
def test_both_go_into_one_environment_and_the_client_outlives_the_daemon(
    empty: Environment, names: tuple[str, str]
) -> None:
    for name in names:
        empty.install(name)
    command = empty.python.with_name("linkd")
    assert run(command, "version") == f"linkd {VERSION}\n"
    empty.does("import linkd.app, linkd.client.twisted")

    empty.pip("uninstall", "--yes", "linkd-daemon")
    assert not command.exists()
    with Daemon("edge", "") as daemon:
        assert empty.does(PROGRAM, daemon.socket) == ["{'total': 12}"]
    left = {module for module in empty.does(EVERY_MODULE) if module.count(".") == 1}
    assert left == {
        f"linkd.{name}" for name in ("client", "errors", "protocol", "status", "version")
    }
