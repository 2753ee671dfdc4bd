"""Serve the example pages, and give them tokens: what a page's own server does.

    python serve.py [--port 8000] [--node http://127.0.0.1:9480] [--key FILE] [--also DIR]

`POST /token` fetches a token of the node with the key: the key stays on the server, a page has only
what is good once, for 30 s.
"""

from __future__ import annotations

import argparse
import http.server
import json
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves one request."""

    def __init__(self, node: str, key: str, also: Path | None, *rest: Any) -> None:
        self.node = node
        self.key = key
        self.also = also
        super().__init__(*rest, directory=str(HERE))

    def translate_path(self, path: str) -> str:
        """Return the file of a path: of these pages, else of the other directory."""
        found = super().translate_path(path)
        if self.also is not None and not Path(found).exists():
            return str(self.also / Path(found).name)
        return found

    def do_POST(self) -> None:
        """Answer with a token; a real server asks first who is signed in (and checks its CSRF)."""
        if self.path != "/token":
            self.send_error(404)
            return
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        url = f"{self.node}/v1/token"  # the operator's own
        asked = urllib.request.Request(url, method="POST", headers=headers)  # noqa: S310
        try:
            with urllib.request.urlopen(asked, timeout=5) as answer:  # noqa: S310
                status, body = 200, answer.read()
        except urllib.error.HTTPError as error:
            status, body = error.code, error.read()
        except OSError as error:
            status, body = 502, json.dumps({"message": f"no answer of the node: {error}"}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing a request."""


def main() -> None:
    """Serve until it is interrupted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--node", default="http://127.0.0.1:9480")
    parser.add_argument("--key", type=Path, help="file with the key for /token")
    parser.add_argument("--also", type=Path, help="directory of further files, such as RxJS")
    given = parser.parse_args()
    key = given.key.read_text().strip() if given.key else ""
    handler = partial(Handler, given.node, key, given.also)
    with http.server.ThreadingHTTPServer(("127.0.0.1", given.port), handler) as server:
        print(f"http://127.0.0.1:{server.server_port}/", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
