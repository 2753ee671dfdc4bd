"""Every example of docs/curl.md and docs/clients/other.md, run against real daemons."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import SECRET, Daemon
from tests.support.needs import need
from tests.support.pairs import Pair

ROOT = Path(__file__).resolve().parents[2]
KEY = (
    '[[api.key]]\nname = "shop"\nsecret_file = "{secret}"\npublish = ["orders"]\n'
    'subscribe = ["orders"]\n'
)


def blocks(page: str) -> list[tuple[str, str]]:
    """Return language and text of each example of a page."""
    text = (ROOT / "docs" / page).read_text()
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def pair() -> Iterator[Pair]:
    with Pair(KEY) as linked:
        yield linked


def start(command: list[str], pair: Pair) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=pair.edge.directory, env={
            **os.environ, "LINKD_URL": f"http://127.0.0.1:{pair.port}", "LINKD_KEY": SECRET,
        },
    )  # fmt: skip


def shell(example: str, pair: Pair) -> subprocess.Popen[str]:
    return start(["sh", "-euc", example], pair)


def commands() -> list[str]:
    """Return the lines of curl.md."""
    ((language, text),) = blocks("curl.md")
    assert language == "sh"
    return text.strip().splitlines()


def test_every_line_of_the_curl_page(pair: Pair) -> None:
    """Each says what its comment promises; `-f` makes a refusal a failure."""
    need("curl")
    head, *lines = commands()
    (pair.edge.directory / "shop.key").write_text(SECRET)
    said = []
    for line in lines:
        here = f"{head}\n{line}".replace("/run/linkd/linkd.sock", str(pair.edge.socket))
        here = here.replace("127.0.0.1:9480", f"127.0.0.1:{pair.port}")
        here = re.sub(r"\s{2,}# .*$", "", re.sub(r"\bcurl ", "curl -sSf ", here))
        if "-N" in here:
            here = here.replace("curl -sSf", "timeout 1 curl -sSf", 1) + " || test $? = 124"
        done = shell(here, pair)
        out, err = done.communicate(timeout=40)
        assert done.returncode == 0, (line, out, err)
        said.append(out)
    assert said[0] == '{"offset":1,"count":1}\n'
    assert "duplicate" not in said[1]
    assert '"count":2' in said[3]
    assert len(json.loads(said[4])["records"]) == 5
    assert said[6].startswith("retry: ")
    assert json.loads(said[8]) == {"owner": "socket", "name": "billing", "next": 6}
    assert said[9] == '{"total":12}'
    assert json.loads(said[-1])["node"] == "edge"


def test_each_example_for_another_language(pair: Pair) -> None:
    """The reader and the WebSocket go on over a kill of the daemon; the publish is stored once."""
    need("curl")
    (_, reader), (_, publish), (language, socket) = blocks("clients/other.md")
    assert language == "js"
    reading = shell(reader, pair)
    has = subprocess.run(
        ["node", "-p", "typeof WebSocket"], capture_output=True, text=True, timeout=10, check=True
    ).stdout.strip()
    flags = [] if has == "function" else ["--experimental-websocket"]
    listening = start(["node", *flags, "--no-warnings", "--input-type=module", "-e", socket], pair)
    try:
        first = shell(publish, pair).communicate(timeout=20)[0]
        again = shell(publish, pair).communicate(timeout=20)[0]
        assert json.loads(first)["count"] == 1
        assert json.loads(again)["duplicate"] is True
        assert listening.stdout is not None
        assert listening.stdout.readline() == '1 {"total":12}\n'
        pair.edge.kill()
        restarting = threading.Thread(target=pair.edge.start)
        restarting.start()
        repeated = shell(publish, pair).communicate(timeout=40)[0]
        restarting.join(20)
        assert json.loads(repeated)["duplicate"] is True
        for body in (b"2", b"3"):
            pair.edge.call("POST", "/v1/channels/orders", body)
        out, wrong = listening.communicate(timeout=40)
        heard = out.splitlines()
        pages = reading.communicate(timeout=40)[0]
    finally:
        for one in (reading, listening):
            one.kill()
            one.wait(5)
    assert not wrong
    assert heard == ["2 2", "3 3"]
    offsets = [int(one) for one in re.findall(r'"offset":(\d+)', pages)]
    assert sorted(set(offsets)) == [1, 2, 3]
    assert _consumer(pair.edge) == 4


def _consumer(daemon: Daemon) -> int:
    """Return where the one named consumer stands."""
    (only,) = daemon.call("GET", "/v1/consumers")["consumers"]
    return int(only["next"])
