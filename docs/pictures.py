"""Make the pictures of the README out of the real program, as root: `python docs/pictures.py`.

Two nodes in network namespaces are paired; orders are published at one and read at the other. After
three minutes iptables drops every packet between them for half a minute. docs/terminal.svg has what
the commands print meanwhile, docs/dashboard-light.png and docs/dashboard-dark.png the dashboard.
Needs iproute2, iptables, chromium, node and the packages of tests/web (`npm ci`).
"""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from html import escape
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from linkd.drill.testbed import FilteredPath, Host, Namespaces
from tests.web.driver import Driver, Pages

DOCS = Path(__file__).resolve().parent
HUB = "hub.example.net"
BEFORE_SECONDS, CUT_SECONDS, PACE = 170.0, 30.0, 20
COLUMNS = 108

CONFIG = """
[node]
name = "{name}"
state_dir = "{directory}/state"

[api]
socket = "{directory}/linkd.sock"
http = "127.0.0.1:9480"
"""
LISTEN = """
[listen]
address = "{address}:9443"
"""


PAINT = re.compile(r"\x1b\[\d*m")


class Machine:
    """A node on a host of its own, and what is typed there."""

    def __init__(self, name: str, host: Host, directory: Path, more: str = "") -> None:
        self.name, self.host = name, host
        directory /= name
        directory.mkdir()
        self.log, self._config = directory / "log", directory / "linkd.toml"
        self._config.write_text(CONFIG.format(name=name, directory=directory) + more)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the daemon."""
        with self.log.open("w") as log:
            command = [sys.executable, "-m", "linkd", "run", "-c", str(self._config)]
            daemon = self.host.popen(
                command, {"PYTHONPATH": str(DOCS.parent)}, stdout=log, stderr=log
            )
            try:
                yield
            finally:
                daemon.terminate()
                daemon.wait(10)

    def start(self, *words: str, **streams: int) -> subprocess.Popen[bytes]:
        """Start a `linkd` command."""
        command = [sys.executable, "-m", "linkd", *words, "-c", str(self._config)]
        environment = {
            "PYTHONPATH": str(DOCS.parent),
            "PYTHONUNBUFFERED": "1",
            "COLUMNS": str(COLUMNS),
        }
        return self.host.popen(command, environment, **streams)

    def typed(self, *words: str) -> list[str]:
        """Return the lines that a `linkd` command prints on a terminal, with its colours."""
        ours, its = pty.openpty()
        command = self.start(*words, stdout=its, stderr=its)
        os.close(its)
        output = b""
        try:
            while part := os.read(ours, 65_536):
                output += part
        except OSError:  # the terminal's other end is closed
            pass
        os.close(ours)
        command.wait(10)
        return output.decode().replace("\r", "").splitlines()

    def await_status(self, test: Callable[[str], object], within: float) -> None:
        """Wait until what `linkd status` prints passes."""
        end = time.monotonic() + within
        while not test(text := PAINT.sub("", "\n".join(self.typed("status")))):
            if time.monotonic() > end:
                raise SystemExit(f"pictures: {self.name}: not within {within} s: {text}")
            time.sleep(0.2)


class Orders:
    """Publish orders at one machine, read them at the other."""

    def __init__(self, edge: Machine, hub: Machine) -> None:
        self.published, self.got = 0, list[int]()
        self._ending = threading.Event()
        pipe = subprocess.PIPE
        self._reading = hub.start(
            "subscribe",
            "orders",
            "--consumer",
            "billing",
            "--from",
            "earliest",
            "--json",
            stdout=pipe,
        )
        self._publishing = edge.start(
            "publish", "orders", "--lines", stdin=pipe, stdout=subprocess.DEVNULL
        )
        self._threads = [
            threading.Thread(target=one, daemon=True) for one in (self._read, self._publish)
        ]

    def _publish(self) -> None:
        assert self._publishing.stdin is not None
        while not self._ending.wait(1 / PACE):
            self.published += 1
            self._publishing.stdin.write(json.dumps({"id": self.published}).encode() + b"\n")
            self._publishing.stdin.flush()
        self._publishing.stdin.close()

    def _read(self) -> None:
        assert self._reading.stdout is not None
        for line in self._reading.stdout:
            self.got.append(json.loads(line)["data"]["id"])

    def __enter__(self) -> Orders:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._publishing.wait(10)
        self._reading.terminate()
        self._reading.wait(10)

    def finish(self) -> str:
        """Publish no more, wait for the last one to be read; return what came of it."""
        self._ending.set()
        self._publishing.wait(10)
        end = time.monotonic() + 10
        while len(self.got) < self.published and time.monotonic() < end:
            time.sleep(0.1)
        if self.got != [*range(1, self.published + 1)]:
            raise SystemExit(
                f"pictures: published {self.published}, got {len(self.got)}, or not in order"
            )
        return (
            f"{self.published:,} orders published at edge-1, {len(self.got):,} read at the hub:"
            " each once, in order"
        )


COLOURS = {"31": "#f2777a", "32": "#8fcf8f", "33": "#e7c25f", "1": "#ffffff", "2": "#8f959e"}
COMMENT, PROMPT, INK, PAPER = "#8f959e", "#7fb4e0", "#d7dae0", "#1b1e23"
FONTS = "ui-monospace, 'SF Mono', Menlo, Consolas, 'DejaVu Sans Mono', monospace"
SIZE, ADVANCE, HEIGHT, MARGIN = 13, 7.83, 19, 20


def spans(line: str) -> str:
    """Return a terminal's line as SVG."""
    made, colour = [], ""
    for part in re.split(r"(\x1b\[\d*m)", line):
        if part.startswith("\x1b"):
            colour = COLOURS.get(part[2:-1], "")
        elif part:
            text = escape(part).replace(" ", "\u00a0")  # others are collapsed
            made.append(f'<tspan fill="{colour}">{text}</tspan>' if colour else text)
    return "".join(made)


def picture(lines: list[str]) -> str:
    """Return a terminal's window with these lines as an SVG."""
    wide, high = COLUMNS * ADVANCE + 2 * MARGIN, len(lines) * HEIGHT + 2 * MARGIN + 18
    rows = [
        f'<text x="{MARGIN}" y="{MARGIN + 26 + number * HEIGHT}">{spans(line)}</text>'
        for number, line in enumerate(lines)
        if line
    ]
    dots = "".join(
        f'<circle cx="{MARGIN + 6 + 18 * number}" cy="18" r="5.5" fill="{colour}"/>'
        for number, colour in enumerate(("#e0645c", "#dcae3f", "#63b35f"))
    )
    return "\n".join(
        [
            "<!-- Made by docs/pictures.py out of the real program; don't edit it here. -->",
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide:.0f} {high}" fill="{INK}"'
            f' font-family="{FONTS}" font-size="{SIZE}">',
            "<title>linkd status before, during and after a cut, the outage, the log lines</title>",
            f'<rect width="{wide:.0f}" height="{high}" rx="9" fill="{PAPER}"/>{dots}',
            *rows,
            "</svg>",
            "",
        ]
    )


def coloured(text: str, colour: str) -> str:
    return f"\x1b[{colour}m{text}\x1b[0m"


def wrapped(line: str) -> Iterator[str]:
    """Yield a long line in pieces, as wide as the picture; only a plain one has several."""
    while len(PAINT.sub("", line)) > COLUMNS:
        at = line.rfind(" ", 0, COLUMNS)
        yield line[:at]
        line = "    " + line[at + 1 :]
    yield line


def film(edge: Machine, hub: Machine, path: FilteredPath, pages: Pages) -> list[str]:
    """Cut the link, write the dashboard's pictures, heal it; return the terminal's lines."""
    lines: list[str] = []

    def scene(remark: str) -> None:
        lines.extend(
            ["", coloured(f"# {remark}", "2")] if lines else [coloured(f"# {remark}", "2")]
        )

    def typed(*words: str) -> None:
        lines.append(coloured("edge-1$ ", "1") + "linkd " + " ".join(words))
        for line in filter(None, edge.typed(*words)):
            lines.extend(wrapped(line))

    hub.await_status(lambda text: re.search(r"\bup\b", text), 30)
    address = next(line for line in edge.typed("token", "--dashboard") if line.startswith("http"))
    pages.open("edge", PAINT.sub("", address))
    with Orders(edge, hub) as orders:
        time.sleep(BEFORE_SECONDS)
        scene("the link is up")
        typed("status")
        logged = len(edge.log.read_text())
        path.block("both")
        cut = time.monotonic()
        time.sleep(15)
        scene("15 s into a cut: every packet between the hosts is dropped, no connection is closed")
        typed("status")
        time.sleep(max(0.0, cut + CUT_SECONDS - 4 - time.monotonic()))
        for scheme in ("light", "dark"):
            pages.shoot("edge", DOCS / f"dashboard-{scheme}.png", scheme, 1180, 690)
        time.sleep(max(0.0, cut + CUT_SECONDS - time.monotonic()))
        path.heal()
        edge.await_status(lambda text: re.search(r"hub +up", text), 10)
        time.sleep(1.5)
        scene("the network is back")
        typed("status")
        typed("outages")
        lines.append(coloured("edge-1$ ", "1") + "journalctl -u linkd --since -1min | grep link")
        for line in edge.log.read_text()[logged:].splitlines():
            if " link." in line:
                lines.extend(wrapped(re.sub(r"^<\d>", "", line)))
        scene(orders.finish())
    return lines


def main() -> None:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="linkd-pictures-")))
        directory.chmod(0o755)
        network = Namespaces(directory)
        stack.callback(network.close)
        (directory / "hosts").write_text(f"127.0.0.1 localhost\n{network.hub.address} {HUB}\n")
        hub = Machine("hub", network.hub, directory, LISTEN.format(address=network.hub.address))
        edge = Machine("edge-1", network.edge, directory)
        for machine in (hub, edge):
            stack.enter_context(machine.running())
            machine.await_status(lambda text: "running" in text, 30)
        invitation = hub.typed(
            "invite", "edge-1", "--address", f"{HUB}:9443", "--receive", "orders"
        )
        code = re.search(r"linkd join (\S+)", PAINT.sub("", "\n".join(invitation)))
        assert code is not None, invitation
        edge.typed("join", code[1])
        driver = stack.enter_context(Driver("programs.mjs", host=network.edge))
        lines = film(edge, hub, FilteredPath(network), Pages(driver))
    print("\n".join(lines))
    (DOCS / "terminal.svg").write_text(picture(lines))


if __name__ == "__main__":
    main()
