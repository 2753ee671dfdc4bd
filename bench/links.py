"""Idle links: what one costs in memory and processor time, and how they return.

python -m bench.links [--quick]

One process holds the listening ends, another the dialing ends. linkd's listener is a whole daemon,
with a peer and a session for each link; the others are bare servers of Autobahn and of the
`websockets` library with the same auto-ping. All are dialed by the same light dialers, which retry
within 0 to 1 s; linkd's hub is dialed by real nodes, too.
Writes docs/measurements/links.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from bench.figures import FOLDER, Figure, figure, machine, spread, table
from bench.swarm import Bare
from bench.systems import SECRET, Process, listens, wait
from linkd.drill.testbed import free_port
from linkd.host import raise_open_file_limit
from tests.support.lab import python
from tests.support.swarm import Swarm

PING_INTERVAL, PING_TIMEOUT = 5, 2
NODES, FLOODED = "linkd, nodes", "linkd, strangers"
SERVERS = ("linkd", NODES, FLOODED, "autobahn", "websockets")
MOST_LINKS = {NODES: 2000, FLOODED: 5000, "websockets": 5000}
"""With more links real nodes in one process, and all of them together, take too long."""

BARE = ("autobahn", "websockets")
STRANGERS, STRANGERS_A_SECOND = 1000, 500


# The listening ends: each runs until it is ended


def serve_linkd(port: int, count: int) -> None:
    """Run a node with so many peers that dial it."""
    from linkd.cli import main as linkd  # noqa: PLC0415 - as below

    folder = Path(os.environ["LINKD_BENCH_FOLDER"])
    secret = folder / "secret"
    secret.touch(0o600)
    secret.write_text(SECRET)
    peers = "".join(
        f'[[peer]]\nname = "edge-{n + 1}"\nsecret_file = "{secret}"\nsend = ["to.{n}"]\n'
        for n in range(count)
    )
    config = folder / "linkd.toml"
    config.write_text(
        f'[node]\nname = "hub"\nstate_dir = "{folder / "state"}"\n'
        f'[api]\nsocket = "{folder / "sock"}"\n'
        f'[listen]\naddress = "127.0.0.1:{port}"\n'
        "[limits]\npending_per_address = 1024\nhandshakes_per_second_per_address = 200.0\n" + peers
    )
    sys.argv = ["linkd", "run", "-c", str(config)]
    raise SystemExit(linkd())


def serve_autobahn(port: int, _: int) -> None:
    """Run a bare server of Autobahn."""
    # Only what the server itself needs may count as its memory.
    from autobahn.twisted import websocket  # noqa: PLC0415
    from twisted.internet import reactor  # noqa: PLC0415

    factory: Any = websocket.WebSocketServerFactory()
    factory.protocol = websocket.WebSocketServerProtocol
    factory.setProtocolOptions(autoPingInterval=PING_INTERVAL, autoPingTimeout=PING_TIMEOUT)
    tcp: Any = reactor
    tcp.listenTCP(port, factory, backlog=5000, interface="127.0.0.1")
    tcp.run()


def serve_websockets(port: int, _: int) -> None:
    """Run a bare server of the `websockets` library."""
    import asyncio  # noqa: PLC0415 - as above

    from websockets.asyncio.server import ServerConnection, serve  # noqa: PLC0415

    async def hold(connection: ServerConnection) -> None:
        await connection.wait_closed()

    async def run() -> None:
        settings: dict[str, Any] = {
            "ping_interval": PING_INTERVAL,
            "ping_timeout": PING_TIMEOUT,
            "compression": None,
            "backlog": 5000,
        }
        async with serve(hold, "127.0.0.1", port, **settings):
            await asyncio.get_running_loop().create_future()

    asyncio.run(run())


def start_server(kind: str, port: int, count: int, folder: Path) -> Process:
    """Start a server, and wait until it listens."""
    os.environ["LINKD_BENCH_FOLDER"] = str(folder)
    command = [sys.executable, "-m", "bench.links", "--serve", kind.partition(",")[0]]
    command += ["--port", str(port), "--count", str(count)]
    server = Process(command, folder, f"server-{time.monotonic_ns()}")
    wait("the server", lambda: listens(port), 60.0)
    return server


@contextmanager
def strangers(port: int) -> Iterator[None]:
    """Flood a hub meanwhile from 1,000 addresses: tokens, and upgrades with wrong proofs."""
    order = {
        "kind": "wrong-proof",
        "host": "127.0.0.1",
        "port": port,
        "seconds": 600,
        "rate": STRANGERS_A_SECOND,
        "sources": [f"127.1.{n // 250}.{n % 250 + 1}" for n in range(STRANGERS)],
        "secret": SECRET,
    }
    flood = subprocess.Popen(
        python("-m", "tests.support.strangers", json.dumps(order)), stdout=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        flood.kill()
        flood.wait()


def one(kind: str, count: int, seconds: float) -> dict[str, float]:
    """Measure one server with so many idle links; end it, start it again, and time the return."""
    with tempfile.TemporaryDirectory(prefix="linkd-bench-") as name:
        folder, port = Path(name), free_port()
        server = start_server(kind, port, count, folder)
        swarm: Swarm | None = None
        try:
            empty, began = server.resident_bytes(), time.monotonic()
            if kind == NODES:
                url = f"ws://127.0.0.1:{port}/link"
                swarm = Swarm(url, count, str(folder / "secret"), None)
            else:
                secret = [str(folder / "secret")] if kind in ("linkd", FLOODED) else []
                swarm = Bare(port, count, *secret)
            within = 60.0 + count / 20
            up = swarm.wait_up(count, within) - began
            time.sleep(PING_INTERVAL + 1)
            cpu, began = server.cpu_seconds(), time.monotonic()
            time.sleep(seconds)
            used = (server.cpu_seconds() - cpu) / (time.monotonic() - began)
            full = server.resident_bytes()
            server.stop()
            with strangers(port) if kind == FLOODED else nullcontext():
                server = start_server(kind, port, count, folder)
                listening = time.monotonic()
                if kind not in BARE:
                    wait("the links", lambda: "node.ready" in server.output.read_text(), within)
                cpu = server.cpu_seconds()
                back = swarm.wait_up(count, within) - listening
                used_back = server.cpu_seconds() - cpu
            return {
                "bytes": (full - empty) / count,
                "empty": empty / 2**20,
                "percent": used * 100,
                "dialed_in": up,
                "back_in": max(0.0, back),
                "cpu_back": used_back * 1000 / count,
            }
        finally:
            server.stop()
            if swarm is not None:
                swarm.close()


def main() -> int:
    """Measure all servers, interleaved."""
    parser = argparse.ArgumentParser(prog="bench.links", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="100 links, one round")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--counts", default="2000,5000,10000")
    parser.add_argument("--servers", default=";".join(SERVERS), help="which, with `;` between")
    parser.add_argument("--seconds", type=float, default=20.0, help="of idling")
    parser.add_argument("--serve", choices=SERVERS, help="(for its own use)")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--count", type=int, default=0)
    asked = parser.parse_args()
    raise_open_file_limit()
    if asked.serve:
        gc.collect()
        globals()[f"serve_{asked.serve}"](asked.port, asked.count)
        return 0
    servers = asked.servers.split(";")
    counts = [100] if asked.quick else [int(count) for count in asked.counts.split(",")]
    rounds = asked.rounds or (1 if asked.quick else 3)
    where, rows = machine(), []
    for count in counts:
        kinds = [kind for kind in servers if count <= MOST_LINKS.get(kind, count)]
        found: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
        for _ in range(rounds):
            for kind in kinds:
                found[kind].append(one(kind, count, 5.0 if asked.quick else asked.seconds))
                print(f"{count} links, {kind}: {found[kind][-1]}", flush=True)
        rows += _rows(count, found)
    head = ["links", "server", "KiB a link", "of Autobahn", "% of a core", "of Autobahn"]
    head += ["all up, s", "all back, s", "CPU ms a link of the return", "of Autobahn"]
    text = (
        "# Idle links\n\n"
        f"Measured {where}. {rounds} rounds, interleaved; median (least to most). Command:"
        " `python -m bench.links`. Auto-ping every 5 s; nothing else passes. `all back` counts from"
        " the moment at which the restarted server listens again, the server's processor time from"
        " the end of its start, before which no link is up. The same light dialers dial all servers"
        f" and retry within 0 to 1 s, at random; where real nodes dial (`{NODES}`) their own"
        f" processor time counts in the seconds here; in the rows `{FLOODED}`"
        f" {STRANGERS_A_SECOND} strangers a second from {STRANGERS:,} addresses ask for a token and"
        " send a wrong proof while the links return."
        " All have one address here, so its limits are raised for the first time that they come; a"
        " return needs no tuning.\n\n" + table(head, rows) + "\n"
    )
    print(text)
    if not asked.quick:
        FOLDER.mkdir(parents=True, exist_ok=True)
        (FOLDER / "links.md").write_text(text)
    return 0


def _rows(count: int, found: dict[str, list[dict[str, float]]]) -> list[list[str]]:
    """Return a table's rows for one number of links."""
    rows = []

    def of(kind: str, what: str) -> Any:
        return figure([each[what] for each in found.get(kind) or found[next(iter(found))]])

    for kind in found:
        row = [f"{count:,}", kind]
        for what, scale in (("bytes", 1024), ("percent", 1), ("cpu_back", 1)):
            if what == "cpu_back":
                row += [spread(of(kind, each)) for each in ("dialed_in", "back_in")]
            mine, bare = of(kind, what), of("autobahn", what)
            row.append(spread(Figure(*(value / scale for value in mine))))
            row.append(f"{mine.median / bare.median:.2f} ×" if bare.median else "–")
        rows.append(row)
    return rows


if __name__ == "__main__":
    sys.exit(main())
