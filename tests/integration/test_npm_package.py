"""The npm package of linkd.js: packed, installed into an empty folder, used against a daemon."""

from __future__ import annotations

import json
import subprocess
import tarfile
from pathlib import Path

import pytest

from linkd.drill.testbed import free_port
from linkd.version import VERSION
from tests.support.daemon import Daemon
from tests.support.needs import lacking, need

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "packaging" / "npm"
DASHBOARD = ROOT / "linkd" / "api" / "dashboard"
QUIET = ("--offline", "--no-audit", "--no-fund", "--loglevel=error")

PROGRAM = """
import { connect, LinkdError } from "linkd-client";
const node = connect({ url: process.argv[1] });
const { offset } = await node.publish("orders", { total: 12 }, { type: "created" });
const from = { consumer: "a", from: "earliest" };
const got = await new Promise((resolve) => node.subscribe("orders", resolve, from));
node.close();
console.log(JSON.stringify([offset, got.data, typeof LinkdError]));
"""

TYPED = """
import { connect, type Message } from "linkd-client";
const node = connect({ url: "http://127.0.0.1:9480", key: "x" });
node.subscribe("orders", (message: Message) => console.log(message.offset + 1), { consumer: "a" });
const stored: Promise<{ offset: number }> = node.publish("orders", 1);
// @ts-expect-error: no such option
connect({ ur: "x" });
export { stored };
"""


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def tarball(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("node", "npm")
    folder = tmp_path_factory.mktemp("packed")
    run("npm", "pack", *QUIET, "--pack-destination", folder, cwd=PACKAGE)
    (packed,) = folder.iterdir()
    return packed


@pytest.fixture(scope="module")
def installed(tarball: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("empty")
    run("npm", "install", *QUIET, tarball, cwd=folder)
    return folder


def test_the_version_is_the_one_of_linkd() -> None:
    assert json.loads((PACKAGE / "package.json").read_text())["version"] == VERSION


def test_the_tarball_has_what_a_node_serves_and_nothing_else(tarball: Path) -> None:
    assert tarball.name == f"linkd-client-{VERSION}.tgz"
    with tarfile.open(tarball) as packed:
        content = {
            name.removeprefix("package/"): file.read()
            for name in packed.getnames()
            if (file := packed.extractfile(name)) is not None
        }
    assert set(content) == {"package.json", "README.md", "LICENSE", "linkd.js", "linkd.d.ts"}
    for name in ("linkd.js", "linkd.d.ts"):
        assert content[name] == (DASHBOARD / name).read_bytes()


def test_a_program_publishes_and_consumes(installed: Path) -> None:
    port = free_port()
    has = run("node", "-p", "typeof WebSocket", cwd=installed).strip()
    flags = [] if has == "function" else ["--experimental-websocket"]
    with Daemon("edge", f'http = "127.0.0.1:{port}"\nrequire_key = false\n'):
        url = f"http://127.0.0.1:{port}"
        said = run(
            "node", *flags, "--no-warnings", "--input-type=module", "-e", PROGRAM, url,
            cwd=installed,
        )  # fmt: skip
    assert json.loads(said) == [1, {"total": 12}, "function"]


def test_its_types_are_found(installed: Path) -> None:
    compiler = ROOT / "tests" / "web" / "node_modules" / "typescript" / "bin" / "tsc"
    if not compiler.exists():
        lacking("the packages of tests/web (npm ci)")
    (installed / "program.ts").write_text(TYPED)
    options = "--noEmit --strict --skipLibCheck --module nodenext --target es2023 --types"
    run("node", compiler, *options.split(), "", "program.ts", cwd=installed)
