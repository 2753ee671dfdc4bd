"""The dashboard and the browser client: files of the package, served from memory."""

from __future__ import annotations

import hashlib
from importlib.resources import files

import msgspec

from linkd.api.answer import Answer
from linkd.api.refusals import Refusal

TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
    "LICENSE": "text/plain; charset=utf-8",
    "ORIGIN": "text/plain; charset=utf-8",
}
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class File(msgspec.Struct, frozen=True):
    """A file as it is served."""

    body: bytes
    type: str
    etag: str


class Files:
    """All files of the dashboard, read once."""

    def __init__(self) -> None:
        self._files: dict[str, File] = {}
        for entry in files("linkd.api").joinpath("dashboard").iterdir():
            kind = TYPES.get(entry.name.rpartition(".")[2])
            if kind is not None and entry.is_file():
                body = entry.read_bytes()
                etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
                self._files[entry.name] = File(body, kind, etag)

    def answer(self, path: str, known: str | None) -> Answer:
        """Return the file of a path; 304 where the caller has it (`known`: its If-None-Match).

        Raises:
            Refusal: There is none.
        """
        name = "index.html" if path == "/" else path.removeprefix("/dashboard/").lstrip("/")
        found = self._files.get(name)
        if found is None:
            raise Refusal("not-found", f"there is no file {name[:80]}")
        headers = {"ETag": found.etag, "Cache-Control": "no-cache"}
        if name == "index.html":
            headers["Content-Security-Policy"] = PAGE_POLICY
        if known is not None and found.etag in [one.strip() for one in known.split(",")]:
            return Answer(304, headers=headers)
        return Answer(200, found.body, found.type, headers)
