"""The OpenAPI document against a real daemon: schemathesis finds nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from linkd.drill.testbed import free_port
from tests.conftest import CAMPAIGN
from tests.support import figures
from tests.support.daemon import SECRET, Daemon, listen, peer
from tests.support.needs import lacking

EXAMPLES = "200" if CAMPAIGN else "5"
SETTINGS = """
[generation]
# Names of headers that nobody knows are ignored, as HTTP wants it.
allow-extra-parameters = false
"""
EXCLUDED = ("/ws", "/v1/stream", "/readyz")
"""A WebSocket is no call: its upgrade is tested in test_api_sockets.py. And /readyz answers 503 as
soon as the tool has called POST /v1/drain: see test_drain.py."""


def without_waiting(document: dict[str, Any]) -> dict[str, Any]:
    """Return the document without long polls: half of all examples would wait for minutes."""
    for path in document["paths"].values():
        for operation in path.values():
            operation["parameters"] = [
                one for one in operation["parameters"] if one["name"] != "wait"
            ]
    return document


def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("schemathesis")
    if not command.exists():
        lacking("schemathesis")
    port = free_port()
    config = (
        f'http = "127.0.0.1:{port}"\n[[api.key]]\nname = "operator"\nsecret_file = "{{secret}}"\n'
        'publish = [">"]\nsubscribe = [">"]\n' + listen(free_port(), "127.0.0.1") + peer("hub")
    )
    excluded = [word for path in EXCLUDED for word in ("--exclude-path", path)]
    with Daemon("edge-1", config) as daemon:
        document = tmp_path / "openapi.json"
        document.write_text(json.dumps(without_waiting(daemon.call("GET", "/v1/openapi.json"))))
        (tmp_path / "schemathesis.toml").write_text(SETTINGS)
        done = subprocess.run(
            [
                str(command), "run", str(document), "--url", f"http://127.0.0.1:{port}",
                "--header", f"Authorization: Bearer {SECRET}", "--max-examples", EXAMPLES,
                "--phases", "examples,coverage,fuzzing,stateful", "--request-timeout", "5",
                "--generation-deterministic", "--no-color", *excluded,
            ],
            capture_output=True, text=True, timeout=1800 if CAMPAIGN else 90, check=False,
            cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]
        bugs = [
            line.fields
            for line in daemon.lines
            if line.fields.get("event") == "node.internal-error"
        ]
        assert bugs == []
        assert daemon.call("POST", "/v1/channels/orders", b"1")["count"] == 1
    last = [line for line in done.stdout.splitlines() if "generated" in line]
    figures.tell(f"schemathesis: {' '.join(last).strip()}")
