"""The programs of examples/, on one linked pair, over kills of them and of a daemon."""

from __future__ import annotations

import contextlib
import http.cookiejar
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

from linkd.drill.testbed import free_port
from tests.support.daemon import SECRET, Daemon, peer
from tests.support.duo import ALL, until
from tests.support.needs import lacking, need
from tests.support.pairs import Pair
from tests.web.driver import HERE as WEB
from tests.web.driver import Driver, Pages

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
KEY = (
    '[[api.key]]\nname = "page"\nsecret_file = "{secret}"\n'
    'publish = ["notices", "notices.failed"]\nsubscribe = ["notices"]\n'
)
PAGE_PORT = free_port()


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """Return a linked pair with the sensor's channels; its edge serves pages of `PAGE_PORT`."""
    channels = (EXAMPLES / "sensor" / "channels.toml").read_text()
    origins = f'origins = ["http://127.0.0.1:{PAGE_PORT}"]\n'
    with Pair(f"{origins}{KEY}", channels) as linked:
        yield linked


class Program:
    """A program of an example under way; a context that ends it.

    Attributes:
        lines: What it has written so far.
    """

    def __init__(self, *command: str | Path, daemon: Daemon | None = None, **more: str) -> None:
        socket = {"LINKD_SOCKET": str(daemon.socket)} if daemon else {}
        self.lines: list[str] = []
        self._process = subprocess.Popen(
            list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **socket, **more},
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line.rstrip("\n"))

    def wait_line(self, start: str, within: float = 15.0) -> str:
        """Return the first line that begins like that, once it is there."""

        def found() -> str | None:
            return next((line for line in self.lines if line.startswith(start)), None)

        end = time.monotonic() + within
        while (line := found()) is None:
            assert time.monotonic() < end, f"no {start!r} in {within} s: {self.lines[-20:]}"
            assert self._process.poll() is None or self._reader.is_alive() or found(), self.lines
            time.sleep(0.02)
        return line

    def end(self, how: signal.Signals = signal.SIGKILL) -> int:
        """End it by a signal; return its exit status."""
        self._process.send_signal(how)
        status = self._process.wait(10)
        self._reader.join(5)
        return status

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self.end()


def example(folder: str, name: str, *arguments: str | Path, **rest: Any) -> Program:
    """Start a Python program of an example."""
    return Program(sys.executable, EXAMPLES / folder / name, *arguments, **rest)


def records(daemon: Daemon, channel: str) -> list[dict[str, Any]]:
    page = daemon.call("GET", f"/v1/channels/{channel}?from=earliest&limit=1000")
    return list(page["records"])


def kept(read: Callable[[], Any], wanted: Any, within: float = 15.0) -> None:
    """Wait until `read` returns what is wanted."""
    end = time.monotonic() + within
    while (found := read()) != wanted:
        assert time.monotonic() < end, found
        time.sleep(0.02)


def order(shop: Path, *numbers: int) -> None:
    with sqlite3.connect(shop) as db:
        rows = [
            (number, json.dumps({"number": number, "total": 10 * number})) for number in numbers
        ]
        db.executemany("INSERT INTO orders (number, content) VALUES (?, ?)", rows)


def bills(db: Path) -> list[tuple[int, int]]:
    return list(sqlite3.connect(db).execute("SELECT number, total FROM bills ORDER BY rowid"))


@pytest.mark.parametrize("biller", ["orders", "orders-twisted"])
def test_orders_are_billed_once_over_kills(pair: Pair, tmp_path: Path, biller: str) -> None:
    """Kills of both programs and, once, of the edge's daemon; a wrong order is put aside."""
    shop, billing = tmp_path / "shop.db", tmp_path / "billing.db"
    first = 4000 if biller == "orders" else 5000
    failed = len(records(pair.hub, "orders.failed"))
    with (
        example("orders", "forward.py", shop, daemon=pair.edge) as forward,
        example(biller, "bill.py", billing, daemon=pair.hub) as bill,
    ):
        until(lambda: shop.exists() and _has_table(shop))
        order(shop, first, first + 1)
        with sqlite3.connect(shop) as db:
            db.execute("INSERT INTO orders (number, content) VALUES (?, '[1]')", [first + 2])
        bill.wait_line("put aside")
        forward.end()
        bill.end()
    if biller == "orders":
        pair.edge.kill()
    with sqlite3.connect(shop) as db:  # as after a crash before the UPDATE
        db.execute("UPDATE orders SET forwarded = 0")
    order(shop, first + 3)
    with (
        example("orders", "forward.py", shop, daemon=pair.edge) as forward,
        example(biller, "bill.py", billing, daemon=pair.hub) as bill,
    ):
        if biller == "orders":
            pair.edge.start()
        bill.wait_line(f"billed {first + 3}")
        forward.wait_line(f"forwarded {first} {first + 1} {first + 2} {first + 3}")
    numbers = [first, first + 1, first + 3]
    assert bills(billing) == [(number, 10 * number) for number in numbers]
    aside = records(pair.hub, "orders.failed")[failed:]
    assert [one["data"] for one in aside] == [[1]]
    assert aside[0]["headers"]["reason"].startswith("expected a number and a total")
    mine = [
        one for one in records(pair.hub, "orders") if one["id"].startswith(f"order-{first}"[:7])
    ]
    assert len(mine) == 4


def _has_table(db: Path) -> bool:
    return bool(sqlite3.connect(db).execute("SELECT 1 FROM sqlite_master").fetchall())


def test_a_biller_waits_for_its_database(pair: Pair, tmp_path: Path) -> None:
    """A locked database delays the order, and puts nothing aside."""
    billing = tmp_path / "billing.db"
    with example("orders", "bill.py", billing, daemon=pair.hub) as bill:
        until(lambda: billing.exists() and _has_table(billing))
        lock = sqlite3.connect(billing, isolation_level=None)
        lock.execute("BEGIN EXCLUSIVE")
        pair.edge.call("POST", "/v1/channels/orders", b'{"number": 6000, "total": 1}')
        bill.wait_line("database: database is locked")
        lock.execute("COMMIT")
        lock.close()
        bill.wait_line("billed 6000")
        assert not [line for line in bill.lines if "put aside" in line and "locked" in line]


def test_orders_wait_while_the_log_is_full(tmp_path: Path) -> None:
    """After an outage that was longer than the log: refused, kept in the shop, forwarded later."""
    shop = tmp_path / "shop.db"
    away = peer("hub", f"ws://127.0.0.1:{free_port()}/link", extra=ALL)
    with Daemon("edge", f"[log]\nmax_bytes = 16_777_216\n{away}") as edge:
        end = 0
        for size in (1_000_000, 100_000, 10_000, 1000, 100, 0):
            with contextlib.suppress(RuntimeError):
                while True:
                    end = edge.call("POST", "/v1/channels/filling", bytes(size), "")["offset"]
        with example("orders", "forward.py", shop, daemon=edge) as forward:
            until(lambda: shop.exists() and _has_table(shop))
            order(shop, 1)
            forward.wait_line("waiting: ")
            words = ("--socket", str(edge.socket), "--before", str(end), "--yes")
            command = [sys.executable, "-m", "linkd", "log", "trim", *words]
            subprocess.run(command, cwd=ROOT, check=True, timeout=20, stdout=subprocess.DEVNULL)
            forward.wait_line("forwarded 1")
        assert [one["id"] for one in records(edge, "orders")] == ["order-1"]


def test_a_sensor_drops_what_is_late(pair: Pair, tmp_path: Path) -> None:
    """Live readings are on no disk; recent ones are, and outlive a kill of the daemon."""
    with (
        example("sensor", "watch.py", tmp_path / "rows.csv", daemon=pair.hub) as watch,
        example("sensor", "sensor.py", "--every", "0.05", daemon=pair.edge) as sensor,
    ):
        watch.wait_line("live telemetry.live.oven 1")
        watch.wait_line("stored")
        pair.edge.kill()
        sensor.wait_line("dropped")
        pair.edge.start()
        seen = len(watch.lines)
        until(lambda: any(line.startswith("live") for line in watch.lines[seen:]))
    assert records(pair.edge, "telemetry.live.oven") == []
    stored = records(pair.hub, "telemetry.recent.oven")
    assert stored
    assert all(one["data"]["count"] % 5 == 0 for one in stored)
    rows = (tmp_path / "rows.csv").read_text().splitlines()
    assert rows[0].split(",")[0] == f"edge-{stored[0]['origin_offset']}"


def test_files_arrive_whole_over_kills(pair: Pair, tmp_path: Path) -> None:
    outgoing, incoming = tmp_path / "outgoing", tmp_path / "incoming"
    outgoing.mkdir()
    incoming.mkdir()
    contents = {"a b.bin": os.urandom(700_000), "büro.txt": b"", "c": b"one\n"}
    (outgoing / ".part").write_bytes(b"not yet")
    (outgoing / "large").write_bytes(bytes(2_000_000))
    with (
        example("file-drop", "drop.py", outgoing, daemon=pair.edge) as drop,
        example("file-drop", "pick_up.py", incoming, daemon=pair.hub) as pick_up,
    ):
        drop.wait_line("too large large")
        pair.edge.kill()
        for name, content in contents.items():
            (outgoing / f".{name}").write_bytes(content)
            (outgoing / f".{name}").rename(outgoing / name)
        pair.edge.start()
        for name, content in contents.items():
            pick_up.wait_line(f"received {name} {len(content)}")
            drop.wait_line(f"sent {name}")
        drop.end()
        # Not moved before a crash: it is published again, and stored once.
        (outgoing / ".sent" / "c").rename(outgoing / "c")
        for name in ("../up", ".hidden", ""):
            headers = {"name": name} if name else {}
            _post(pair.edge, "files", b"x", headers)
        pick_up.wait_line("unusable")
        with example("file-drop", "drop.py", outgoing, daemon=pair.edge) as again:
            again.wait_line("sent c")
        until(lambda: sum(line.startswith("unusable") for line in pick_up.lines) == 3)
    assert {file.name: file.read_bytes() for file in incoming.iterdir()} == contents
    assert sorted(file.name for file in tmp_path.iterdir()) == ["incoming", "outgoing"]
    assert len(records(pair.hub, "files")) == len(contents) + 3
    assert (outgoing / ".refused" / "large").exists()


def _post(daemon: Daemon, channel: str, body: bytes, headers: dict[str, str]) -> None:
    words = [word for name, value in headers.items() for word in ("--header", f"{name}={value}")]
    command = [sys.executable, "-m", "linkd", "publish", "--socket", str(daemon.socket)]
    subprocess.run(
        [*command, channel, body.decode(), *words], cwd=ROOT, check=True, timeout=20,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip


def test_a_report_is_published_once_a_day(pair: Pair, tmp_path: Path) -> None:
    command = tmp_path / "linkd"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m linkd "$@"\n')
    command.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    for _ in range(2):
        with Program(
            EXAMPLES / "systemd-timer" / "disk-report", daemon=pair.edge, PATH=path
        ) as report:
            report.wait_line("offset")
    kept(lambda: len(records(pair.hub, "reports.disk")), 1)
    (found,) = records(pair.hub, "reports.disk")
    assert found["type"] == "disk"
    assert "/" in [one["mount"] for one in found["data"]]
    assert all(0 <= one["used"] <= one["bytes"] for one in found["data"])


def test_the_units_of_the_timer_are_right(tmp_path: Path) -> None:
    need("systemd-analyze")
    for name in ("disk-report.service", "disk-report.timer"):
        text = (EXAMPLES / "systemd-timer" / name).read_text()
        (tmp_path / name).write_text(text.replace("/usr/local/bin/disk-report", "/bin/true"))
    units = [str(tmp_path / name) for name in ("disk-report.service", "disk-report.timer")]
    done = subprocess.run(
        ["systemd-analyze", "verify", *units], capture_output=True, text=True, timeout=20
    )
    assert (done.returncode, re.findall(r".*disk-report.*", done.stderr)) == (0, [])


def node_folder(folder: str, tmp_path: Path) -> Path:
    """Return a copy of an example with the packages that `npm install` would bring."""
    if not (WEB / "node_modules" / "ws").is_dir():
        lacking("the packages of tests/web (npm ci)")
    copy = tmp_path / folder
    shutil.copytree(EXAMPLES / folder, copy)
    (copy / "node_modules").symlink_to(WEB / "node_modules")
    return copy


def test_a_worker_in_node_sends_each_notice_once(pair: Pair, tmp_path: Path) -> None:
    """Published at the hub, sent at the edge; over kills of the worker and of the daemon."""
    need("node")
    folder, out = node_folder("node-worker", tmp_path), tmp_path / "out"
    out.mkdir()
    (folder / "linkd.mjs").write_bytes(pair.fetch("GET", "/linkd.mjs")[1])
    before = len(records(pair.hub, "notices"))

    def work() -> Program:
        return Program(
            "node", folder / "worker.mjs", out,
            LINKD_URL=f"http://127.0.0.1:{pair.port}",
            LINKD_KEY_FILE=str(pair.edge.directory / "secret"),
        )  # fmt: skip

    def publish(*bodies: Any) -> None:
        for body in bodies:
            pair.hub.call("POST", "/v1/channels/notices", json.dumps(body).encode())

    publish({"text": "one"}, {"wrong": 1}, {"text": "two"})
    with work() as worker:
        worker.wait_line("put aside")
        kept(lambda: len(list(out.glob("*.json"))), before + 2)
        worker.end()
    publish({"text": "three"})
    with work() as worker:
        kept(lambda: len(list(out.glob("*.json"))), before + 3)
        pair.edge.kill()
        publish({"text": "four"})
        pair.edge.start()
        kept(lambda: len(list(out.glob("*.json"))), before + 4)
        assert worker.end(signal.SIGTERM) == 0
    texts = {json.loads(file.read_text())["text"] for file in out.glob("hub-*.json")}
    assert {"one", "two", "three", "four"} <= texts
    assert [one["data"] for one in records(pair.hub, "notices.failed")] == [{"wrong": 1}]


def site(pair: Pair, pages: Path | None = None) -> Program:
    """Start the server of the page."""
    more: list[str | Path] = ["--pages", pages] if pages else []
    return example(
        "web-page", "server.py", "--port", str(PAGE_PORT),
        "--node", f"http://127.0.0.1:{pair.port}", *more,
        PASSWORD="wonderland", LINKD_KEY_FILE=str(pair.edge.directory / "secret"),
    )  # fmt: skip


class Browser:
    """What a browser does, without one: cookies, and the page's own origin."""

    def __init__(self, port: int) -> None:
        self.origin = f"http://127.0.0.1:{port}"
        self.jar = http.cookiejar.CookieJar()
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(self.jar))

    def ask(self, path: str, body: bytes | None = None, **headers: str) -> tuple[int, str]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        asked = urllib.request.Request(self.origin + path, body, named)
        try:
            with self._opener.open(asked, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def cookie(self, name: str) -> str:
        return next(str(one.value) for one in self.jar if one.name == name)


def use(pair: Pair, token: str) -> None:
    """Use a token as a page does: it is good for one connection, and for `notices` only."""
    for channel, good in (("orders", False), ("notices", True), ("notices", False)):
        url = f"ws://127.0.0.1:{pair.port}/ws?channel={channel}&ws_token={token}"
        try:
            with connect(url) as wire:
                wire.send(json.dumps({"text": "by token"}))
                assert json.loads(wire.recv(5)) == {"text": "by token"}
        except Exception:
            assert not good
            continue
        assert good


def test_a_server_gives_tokens_to_who_signed_in(pair: Pair) -> None:
    with site(pair) as server:
        server.wait_line("http")
        browser = Browser(PAGE_PORT)
        here = browser.origin
        assert browser.ask("/token", b"", Origin=here)[0] == 401
        assert browser.ask("/sign-in", b"wrong", Origin=here)[0] == 401
        assert browser.ask("/sign-in", b"wonderland", Origin="http://evil.example")[0] == 403
        assert browser.ask("/sign-in", b"wonderland", Origin=here)[0] == 200
        assert browser.ask("/token", b"", Origin="http://evil.example")[0] == 403
        status, body = browser.ask("/token", b"", Origin=here)
        assert status == 200
        use(pair, json.loads(body)["token"])
        assert SECRET not in body


def test_a_django_view_gives_tokens_to_who_signed_in(pair: Pair, tmp_path: Path) -> None:
    need("Django")
    port = free_port()
    environment = {
        "LINKD_KEY_FILE": str(pair.edge.directory / "secret"),
        "LINKD_URL": f"http://127.0.0.1:{pair.port}",
        "DATABASE": str(tmp_path / "page.db"),
        "DJANGO_SECRET_KEY": "x" * 50,
        "DJANGO_SUPERUSER_PASSWORD": "wonderland",
    }
    app = [sys.executable, str(EXAMPLES / "web-page-django" / "manage.py")]
    for command in (
        ["migrate", "-v", "0"],
        ["createsuperuser", "--noinput", "--username", "ann", "--email", "ann@example.net"],
    ):
        subprocess.run(
            [*app, *command], check=True, timeout=30, stdout=subprocess.DEVNULL,
            env={**os.environ, **environment},
        )  # fmt: skip
    command = [*app, "runserver", "--noreload", str(port)]
    with Program(*command, daemon=None, **environment) as server:
        server.wait_line("Starting ")
        browser = Browser(port)
        until(lambda: _answers(browser))
        status, body = browser.ask("/sign-in")
        assert status == 200
        csrf = browser.cookie("csrftoken")
        assert browser.ask("/token", b"", X_CSRFToken=csrf)[0] == 401
        form = f"username=ann&password=wonderland&csrfmiddlewaretoken={csrf}".encode()
        status, body = browser.ask("/sign-in", form)
        assert status == 200
        assert "linkd.js" in body
        assert browser.ask("/token", b"")[0] == 403
        status, body = browser.ask("/token", b"", X_CSRFToken=browser.cookie("csrftoken"))
        assert status == 200
        use(pair, json.loads(body)["token"])


def _answers(browser: Browser) -> bool:
    try:
        return browser.ask("/sign-in")[0] == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def pages() -> Iterator[Pages]:
    with Driver("programs.mjs") as driver:
        driver.wait(lambda said: "ready" in said, 20)
        yield Pages(driver)


NOTICES = "[...document.querySelectorAll('#notices li')].map((each) => each.textContent)"
SIGN_IN = (
    "document.querySelector('[name=password]').value = 'wonderland';"
    "document.querySelector('#sign-in').requestSubmit()"
)


@pytest.mark.web
def test_a_page_shows_and_sends_notices_over_a_kill(pair: Pair, pages: Pages) -> None:
    with site(pair) as server:
        server.wait_line("http")
        pages.open("notices", f"http://127.0.0.1:{PAGE_PORT}/")
        pages.until("notices", "!document.querySelector('#sign-in').hidden")
        pages.run("notices", SIGN_IN)
        pages.until("notices", "!document.querySelector('#send button').disabled")
        send = "document.querySelector('#send').requestSubmit()"
        pages.run("notices", f"document.querySelector('[name=text]').value = 'mine'; {send}")
        pages.until("notices", f"{NOTICES}.includes('mine')")
        pair.edge.kill()
        pages.until("notices", "document.querySelector('#send button').disabled")
        pair.hub.call("POST", "/v1/channels/notices", b'{"text": "meanwhile"}')
        pair.edge.start()
        pages.until("notices", f"{NOTICES}.filter((text) => text === 'meanwhile').length === 1")
        assert pages.run("notices", NOTICES).count("mine") == 1
        pages.close("notices")


LIGHT = "document.querySelector('#light').textContent"


@pytest.mark.web
def test_a_light_is_red_without_the_link_and_gray_without_the_node(
    pair: Pair, pages: Pages, tmp_path: Path
) -> None:
    with site(pair, node_folder("rxjs-light", tmp_path)) as server:
        server.wait_line("http")
        pages.open("light", f"http://127.0.0.1:{PAGE_PORT}/?peer=hub")
        pages.until("light", "!document.querySelector('#sign-in').hidden")
        assert pages.run("light", LIGHT) == "unknown"
        pages.run("light", SIGN_IN)
        pages.until("light", f"{LIGHT} === 'up'")
        pair.hub.kill()
        pages.until("light", f"{LIGHT} === 'down'")
        pair.hub.start()
        pages.until("light", f"{LIGHT} === 'up'", 15)
        pair.edge.kill()
        pages.until("light", f"{LIGHT} === 'unknown'")
        pair.edge.start()
        pages.until("light", f"{LIGHT} === 'up'", 15)
        pages.close("light")


def test_each_folder_has_a_readme_of_ten_lines_in_the_index() -> None:
    index = (EXAMPLES / "README.md").read_text()
    folders = [one.name for one in EXAMPLES.iterdir() if one.is_dir() and one.name[0] not in "._"]
    assert sorted(
        re.findall(r"^\| \[([\w-]+)\]\(\1/README\.md\) \|", index, re.MULTILINE)
    ) == sorted(folders)
    for name in set(folders) - {"plain-clients"}:
        assert 8 <= len((EXAMPLES / name / "README.md").read_text().splitlines()) <= 14, name
