"""Run the Autobahn Testsuite on linkd's listener, dialer and `/ws`; say what it found.

`python -m tests.conformance.suite WSTEST [--all] [--cases PATTERN] [--results DIR] [END...]`; each
END is `listener`, `dialer` or `ws`, all three where none is named. Without `--all` or `--cases` the
cases of speed and of compression, which linkd does not offer, are left out.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from linkd.drill.testbed import free_port

ENDS = ("listener", "dialer", "ws")
SLOW = ("9.*",)
COMPRESSION = ("12.*", "13.*")
STRICT = frozenset(("OK", "INFORMATIONAL"))
_PATHS = {"listener": "/link", "ws": "/ws"}
_LIMIT_SECONDS = 3600.0


def wait_for(port: int, process: subprocess.Popen[bytes], within: float = 30.0) -> None:
    """Wait until somebody listens.

    Raises:
        RuntimeError: Nobody does in time.
    """
    end = time.monotonic() + within
    while time.monotonic() < end and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise RuntimeError(f"nobody listens on port {port}")


class Suite:
    """The suite's program and where its results go.

    Args:
        wstest: Its command.
        folder: For specifications and reports.
        cases: Patterns of the cases to run.
        excluded: Patterns of those not to run.
        pongs: Let the ends send pongs that nobody asked for (see `echo`).
    """

    def __init__(
        self,
        wstest: str,
        folder: Path,
        cases: Sequence[str],
        excluded: Sequence[str],
        pongs: bool,
    ) -> None:
        self._pongs = pongs
        self._wstest = wstest
        self._folder = folder
        self._cases = list(cases)
        self._excluded = list(excluded)

    def run(self, end: str) -> dict[str, Any]:
        """Run all cases on one end; return the suite's index of them.

        Raises:
            RuntimeError: The suite or the echo did not start, or did not end.
        """
        return self._against_dialer() if end == "dialer" else self._against(end)

    def _echo(self, *words: str) -> subprocess.Popen[bytes]:
        quiet = () if self._pongs else ("--no-pongs",)
        return subprocess.Popen([sys.executable, "-m", "tests.conformance.echo", *words, *quiet])

    def _against(self, end: str) -> dict[str, Any]:
        port = free_port()
        echo = self._echo(end, str(port))
        try:
            wait_for(port, echo)
            url = f"ws://127.0.0.1:{port}{_PATHS[end]}"
            spec = self._spec(end, servers=[{"agent": end, "url": url}])
            with (self._folder / f"{end}.out").open("wb") as out:
                subprocess.run(
                    [self._wstest, "-m", "fuzzingclient", "-s", str(spec)],
                    stdout=out, stderr=subprocess.STDOUT, timeout=_LIMIT_SECONDS, check=True,
                )  # fmt: skip
        finally:
            _end(echo)
        return self._index(end)

    def _against_dialer(self) -> dict[str, Any]:
        port = free_port()
        spec = self._spec("dialer", url=f"ws://127.0.0.1:{port}")
        with (self._folder / "dialer.out").open("wb") as out:
            server = subprocess.Popen(
                [self._wstest, "-m", "fuzzingserver", "-s", str(spec)],
                stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip
            try:
                wait_for(port, server)
                echo = self._echo("dialer", str(port), "dialer")
                try:
                    echo.wait(_LIMIT_SECONDS)
                finally:
                    _end(echo)
                time.sleep(1.0)
            finally:
                _end(server)
        return self._index("dialer")

    def _spec(self, end: str, **more: Any) -> Path:
        path = self._folder / f"{end}.json"
        path.write_text(
            json.dumps(
                {
                    "outdir": str(self._folder / end),
                    "cases": self._cases,
                    "exclude-cases": self._excluded,
                    "exclude-agent-cases": {},
                    "webport": 0,
                    **more,
                }
            )
        )
        return path

    def _index(self, end: str) -> dict[str, Any]:
        path = self._folder / end / "index.json"
        if not path.exists():
            raise RuntimeError(f"the suite wrote no report for {end}: see {self._folder}")
        found: dict[str, Any] = json.loads(path.read_text())[end]
        return found


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(5.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5.0)


def lines(end: str, index: dict[str, Any]) -> list[str]:
    """Return what came of one end: the counts, then every case that is not strictly OK."""
    behaviour = Counter(case["behavior"] for case in index.values())
    closing = Counter(case["behaviorClose"] for case in index.values())
    said = [
        f"{end}: {len(index)} cases: "
        + ", ".join(f"{count} {word}" for word, count in behaviour.most_common())
        + "; their closes: "
        + ", ".join(f"{count} {word}" for word, count in closing.most_common())
    ]
    for name in sorted(index, key=lambda name: [int(part) for part in name.split(".")]):
        case = index[name]
        if case["behavior"] != "OK" or case["behaviorClose"] not in STRICT:
            said.append(
                f"    {name}: {case['behavior']}, close {case['behaviorClose']}"
                f" ({case['remoteCloseCode']})"
            )
    return said


def good(index: dict[str, Any]) -> bool:
    """Tell whether no case failed."""
    allowed = STRICT | {"NON-STRICT"}
    return bool(index) and all(
        case["behavior"] in allowed and case["behaviorClose"] in STRICT for case in index.values()
    )


def main() -> int:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(prog="scripts/conformance", description=__doc__)
    parser.add_argument("wstest")
    parser.add_argument("ends", nargs="*", metavar="END", help=", ".join(ENDS))
    parser.add_argument("--all", action="store_true", help="speed and compression, too: an hour")
    parser.add_argument("--no-pongs", action="store_true", help="none unasked: for 9.*")
    parser.add_argument("--cases", action="append", help="a pattern, as 1.*; may be repeated")
    parser.add_argument("--results", type=Path)
    given = parser.parse_intermixed_args()
    unknown = set(given.ends) - set(ENDS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    folder = given.results or Path(tempfile.mkdtemp(prefix="linkd-conformance-"))
    folder.mkdir(parents=True, exist_ok=True)
    excluded = () if given.all or given.cases else (*SLOW, *COMPRESSION)
    suite = Suite(
        given.wstest, folder.absolute(), given.cases or ["*"], excluded, not given.no_pongs
    )
    kept = True
    for end in given.ends or ENDS:
        began = time.monotonic()
        index = suite.run(end)
        kept = kept and good(index)
        print("\n".join(lines(end, index)), f"({time.monotonic() - began:.0f} s)", flush=True)
    print("GOOD" if kept else "NOT GOOD", "- reports in", folder)
    return 0 if kept else 1


if __name__ == "__main__":
    raise SystemExit(main())
