"""Serve a page, sign people in, and fetch tokens of the node for them; standard library only.

LINKD_KEY_FILE=/etc/linkd/shop.key PASSWORD=... python server.py [--port 8000]
    [--node http://127.0.0.1:9480] [--pages DIRECTORY]
"""

from __future__ import annotations

import argparse
import contextlib
import hmac
import http.server
import json
import os
import secrets
import urllib.error
import urllib.request
from functools import partial
from http import HTTPStatus
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CHANNEL = "notices"
"""A page's token is good for this channel only."""

MAX_SIGNED_IN = 1000


class Site:
    """What all requests share: the node, its key, and who is signed in."""

    def __init__(self, node: str, key: str, password: str) -> None:
        self.node = node
        self.sessions: dict[str, None] = {}
        self._key = key
        self._password = password.encode()

    def sign_in(self, password: str) -> str | None:
        """Return a new session, or None for a wrong password."""
        if not hmac.compare_digest(password.encode(), self._password):
            return None
        session = secrets.token_urlsafe(32)
        self.sessions[session] = None
        if len(self.sessions) > MAX_SIGNED_IN:
            del self.sessions[next(iter(self.sessions))]
        return session

    def fetch_token(self) -> tuple[int, bytes]:
        """Return the node's answer to a request for a token: good once, within 30 s.

        The key stays here. A page that had it would give it to everyone who reads the page.
        """
        asked = urllib.request.Request(  # noqa: S310 - the operator's own address
            f"{self.node}/v1/token",
            data=json.dumps({"channel": CHANNEL}).encode(),
            headers={"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(asked, timeout=5) as answer:  # noqa: S310
                return HTTPStatus.OK, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
        except OSError as error:
            return HTTPStatus.BAD_GATEWAY, json.dumps({"message": f"no node: {error}"}).encode()


class Handler(http.server.SimpleHTTPRequestHandler):
    """Handles one request."""

    protocol_version = "HTTP/1.1"
    timeout = 30

    def __init__(self, site: Site, pages: Path, *rest: Any) -> None:
        self.site = site
        super().__init__(*rest, directory=str(pages))

    def do_GET(self) -> None:
        """Send a file; `/node` is where the node is."""
        if self.path == "/node":
            self._answer(HTTPStatus.OK, json.dumps({"url": self.site.node}).encode())
        else:
            super().do_GET()

    def do_POST(self) -> None:
        """Sign in, or bring a token."""
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(min(size, 4096))
        if not self._is_from_own_page():
            self._answer(HTTPStatus.FORBIDDEN, b'{"message": "from another site"}')
        elif self.path == "/sign-in":
            self._sign_in(body.decode(errors="replace"))
        elif self.path == "/token":
            if self._session() in self.site.sessions:
                self._answer(*self.site.fetch_token())
            else:
                self._answer(HTTPStatus.UNAUTHORIZED, b'{"message": "sign in first"}')
        else:
            self._answer(HTTPStatus.NOT_FOUND, b'{"message": "no such path"}')

    def _is_from_own_page(self) -> bool:
        """Browsers send `Origin` with each POST, and no page can forge it: no CSRF token needed."""
        return self.headers.get("Origin") in (None, f"http://{self.headers.get('Host')}")

    def _session(self) -> str:
        cookie = SimpleCookie(self.headers.get("Cookie", "")).get("session")
        return cookie.value if cookie else ""

    def _sign_in(self, password: str) -> None:
        session = self.site.sign_in(password)
        if session is None:
            self._answer(HTTPStatus.UNAUTHORIZED, b'{"message": "wrong password"}')
            return
        # Behind TLS, which a real site has, also `Secure`.
        cookie = f"session={session}; HttpOnly; SameSite=Strict; Path=/"
        self._answer(HTTPStatus.OK, b"{}", ("Set-Cookie", cookie))

    def _answer(self, status: int, body: bytes, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in (
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            *headers,
        ):
            self.send_header(name, value)
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
    parser.add_argument("--pages", type=Path, default=HERE / "pages")
    given = parser.parse_args()
    key = Path(os.environ["LINKD_KEY_FILE"]).read_text().strip()
    site = Site(given.node, key, os.environ["PASSWORD"])
    handler = partial(Handler, site, given.pages)
    with http.server.ThreadingHTTPServer(("127.0.0.1", given.port), handler) as server:
        print(f"http://127.0.0.1:{server.server_port}/", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


if __name__ == "__main__":
    main()
