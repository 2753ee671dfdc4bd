"""One truth of a link that is down: status, --json, --check, outages, dashboard, metrics, events.

Each is asked over a cut with a restart of the daemon in it, of a link that was never up, of one
that flaps and of a drill, and compared with a clock of the test's own.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from linkd.cli import output
from linkd.drill.testbed import free_port
from tests.support import figures
from tests.support.daemon import COMMAND, Daemon, peer
from tests.support.lab import python
from tests.support.pairs import Pair, fetch
from tests.web.driver import Driver

pytestmark = pytest.mark.slow

BOUND = 1.0


@pytest.fixture
def pair() -> Iterator[Pair]:
    with Pair() as linked:
        yield linked


def command(daemon: Daemon, *words: str, codes: tuple[int, ...] = (0,)) -> str:
    """Return what `linkd …` prints."""
    line = [*python(*COMMAND), "-c", str(daemon.config_file), *words]
    done = subprocess.run(line, capture_output=True, text=True, timeout=30)
    assert done.returncode in codes, (words, done)
    return done.stdout


def seconds(words: str) -> float:
    """Return the seconds that a printed duration means, such as `1m12s`."""
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
    return sum(float(n) * units[unit] for n, unit in re.findall(r"([\d.]+)(ms|s|m|h|d)", words))


def cut(pair: Pair) -> float:
    """Kill the hub just after it was heard; return when, by `time.time()`."""
    pair.edge.call("POST", "/v1/channels/orders?wait=hub", b"{}")
    pair.hub.kill()
    return time.time()


def back(pair: Pair) -> None:
    """Start the hub again and wait until the link is up."""
    pair.hub.start()
    pair.edge.call("POST", "/v1/peers/hub/kick", b"")
    pair.edge.wait_up("hub")


class Answers:
    """How every face describes a link that is down, and by how much each duration is wrong.

    An answer is as old as its asking took: it is right if it was so at any moment between.
    """

    def __init__(self, edge: Daemon, port: int, peer_name: str = "hub") -> None:
        self.edge, self.port, self.peer = edge, port, peer_name
        self.wrong: dict[str, float] = {}
        self.since: dict[str, str] = {}
        self.reason: dict[str, str] = {}

    def ask(self, began: float, page: Driver | None = None) -> Answers:
        """Ask all of them.

        Args:
            began: When the outage began, by `time.time()`.
            page: The dashboard, opened before.
        """
        asked = time.time() - began
        link = json.loads(command(self.edge, "status", self.peer, "--json"))
        self._note("status --json", link["down_seconds"], asked, began)
        self._note("status --json, since_seconds", link["since_seconds"], asked, began)
        self.since["status --json"] = link["down_since"]
        self.reason["status --json"] = link["reason"]
        asked = time.time() - began
        table = command(self.edge, "status")
        row = next(line for line in table.splitlines() if line.startswith(f"{self.peer} "))
        assert "DOWN" in row, table
        self._note("status", seconds(row.split("DOWN")[1].split()[0]), asked, began)
        why = re.search(r"^ +(\S+?)[:,] (?:.*, )?down since (.*) UTC$", table, re.MULTILINE)
        assert why is not None, table
        self.reason["status"], self.since["status"] = why[1], why[2]
        asked = time.time() - began
        check = command(self.edge, "status", "--check", codes=(1, 2))
        found = re.search(rf"{self.peer} DOWN for (\S+) since (.*?) UTC \((\S+?)\)", check)
        assert found is not None, check
        self._note("status --check", seconds(found[1]), asked, began)
        self.since["status --check"], self.reason["status --check"] = found[2], found[3]
        asked = time.time() - began
        last = json.loads(command(self.edge, "outages", self.peer, "--json").splitlines()[-1])
        assert last["ongoing"], last
        self._note("outages", last["down_seconds"], asked, began)
        self.since["outages"], self.reason["outages"] = last["began"], last["reason"]
        asked = time.time() - began
        text_page = fetch(self.port, "GET", "/metrics")[1].decode()
        value = re.search(rf'linkd_link_outage_seconds{{peer="{self.peer}"}} (\S+)', text_page)
        assert value is not None
        # The page of metrics is made once a second for all who ask.
        self._note("metrics", float(value[1]), asked, began)
        assert f'linkd_link_up{{peer="{self.peer}"}} 0.0' in text_page
        if page is not None:
            self._look(page, began)
        return self

    def _look(self, page: Driver, began: float) -> None:
        """Read the dashboard three times, at moments that have nothing to do with its clock."""
        page.wait(lambda now: now["tone"] == "bad" and "down for" in now["since"], 15.0)
        for number in range(3):
            page.read(0.37)
            shown = page.last("since").replace(" min", "m").replace(" ", "")
            at = time.time() - began
            self._note(f"dashboard {number}", seconds(shown), at, began)
        self.reason["dashboard"] = page.last("why").split(":")[0]

    def _note(self, name: str, down: float, asked: float, began: float) -> None:
        answered = time.time() - began
        self.wrong[name] = down - min(max(down, asked), answered)

    def agree(self, what: str) -> None:
        """Check that all report the same, within a second of the outside clock."""
        worst = max(self.wrong.items(), key=lambda pair: abs(pair[1]))
        figures.tell(
            f"{what}: {len(self.wrong)} durations, most wrong {worst[0]} {worst[1]:+.2f} s"
        )
        assert all(abs(wrong) < BOUND for wrong in self.wrong.values()), self.wrong
        moments = {output.clock_time(each) if "T" in each else f"{each} UTC"
                   for each in self.since.values()}  # fmt: skip
        assert len(moments) == 1, self.since
        assert len(set(self.reason.values())) == 1, self.reason


def test_a_cut_with_a_restart_in_it(pair: Pair) -> None:
    edge = pair.edge
    began = cut(pair)
    edge.wait_line(5.0, event="link.waiting", old="up")
    time.sleep(4.0)
    published = time.time()
    edge.call("POST", "/v1/channels/orders", b'{"n": 2}')
    Answers(edge, pair.port).ask(began).agree("cut")
    edge.stop()
    edge.start()
    time.sleep(3.0)
    answers = Answers(edge, pair.port).ask(began)
    answers.agree("cut, the daemon restarted meanwhile")
    assert set(answers.reason.values()) == {"closed"}
    link = edge.link("hub")
    assert link["backlog_age_seconds"] == pytest.approx(time.time() - published, abs=1.5)
    back(pair)
    lasted = time.time() - began
    link = edge.link("hub")
    assert (link["down_since"], link["down_seconds"]) == (None, None)
    assert link["reason"] == "closed"
    assert "last outage: closed" in command(edge, "status")
    last = json.loads(command(edge, "outages", "--json").splitlines()[-1])
    assert last["down_seconds"] == pytest.approx(lasted, abs=BOUND)
    assert not last["ongoing"]


def test_a_link_that_was_never_up() -> None:
    port, http = free_port(), free_port()
    config = f'http = "127.0.0.1:{http}"\nrequire_key = false\n'
    began = time.time()
    with Daemon("edge", config + peer("hub", f"ws://127.0.0.1:{port}/link")) as edge:
        # It is down since it was configured, which is when the daemon read that.
        time.sleep(3.0)
        since = json.loads(command(edge, "status", "hub", "--json"))["down_seconds"]
        began = time.time() - since
        assert since < 10.0
        answers = Answers(edge, http).ask(began)
        answers.agree("never up")
        assert set(answers.reason.values()) == {"refused"}
        [last] = [json.loads(line) for line in command(edge, "outages", "--json").splitlines()]
        assert last["never_up"]
        assert edge.link("hub")["last_heard_seconds"] is None
        available = edge.call("GET", "/v1/outages")["availability"][0]
        assert available["hour"] == pytest.approx(0.0, abs=0.001)


def test_a_link_that_flaps(pair: Pair) -> None:
    for _ in range(2):
        before = time.monotonic()
        began = cut(pair)
        pair.edge.wait_line(5.0, before, event="link.waiting", old="up")
        Answers(pair.edge, pair.port).ask(began).agree("flapping")
        back(pair)
    outages = [json.loads(line) for line in command(pair.edge, "outages", "--json").splitlines()]
    assert [(one["reason"], one["ongoing"]) for one in outages] == [("closed", False)] * 2
    downs = [e for e in pair.edge.call("GET", "/v1/events")["events"]
             if e["old"] == "up"]  # fmt: skip
    assert [event["reason"] for event in downs] == ["closed"] * 2


def drill(edge: Daemon, state: str, **more: Any) -> None:
    """Announce a drill, as `linkd drill` does."""
    body = json.dumps({"drill": "blackhole", "state": state, **more}).encode()
    edge.call("POST", "/v1/peers/hub/drill", body)


def test_a_drill_is_marked_everywhere(pair: Pair) -> None:
    edge = pair.edge
    drill(edge, "started", seconds=30)
    began = cut(pair)
    edge.wait_line(5.0, event="link.waiting", old="up")
    Answers(edge, pair.port).ask(began).agree("drill")
    drill(edge, "ended", verdict="pass")
    back(pair)
    [outage] = [json.loads(line) for line in command(edge, "outages", "--json").splitlines()]
    assert outage["drill"]
    assert "closed drill" in command(edge, "outages")
    assert "no outage is recorded" in command(edge, "outages", "--no-drills")
    names = [event["event"] for event in edge.call("GET", "/v1/events")["events"]]
    assert [name for name in names if name.startswith("drill.")] == [
        "drill.started",
        "drill.ended",
    ]


def dashboard(port: int) -> Driver:
    """Open the dashboard of the daemon that answers at `port`."""
    return Driver("watch.mjs", f"http://127.0.0.1:{port}/", "hub")


def marks(page: Driver, outages: int, drills: int) -> None:
    """Wait until the dashboard draws so many outages, so many of them drills."""
    page.wait(lambda now: (now["bars"], now["drills"]) == (outages, drills), 20.0)


@pytest.mark.timing
def test_the_dashboard_agrees_on_a_cut_with_a_restart_in_it(pair: Pair) -> None:
    """One page stays open throughout; one is opened after the restart."""
    edge = pair.edge
    with dashboard(pair.port) as page:
        page.wait(lambda now: now["tone"] == "good", 30.0)
        began = cut(pair)
        Answers(edge, pair.port).ask(began, page).agree("dashboard, cut")
        edge.stop()
        edge.start()
        page.wait(lambda now: now["connection"] == "up" and not now["lost"], 20.0)
        Answers(edge, pair.port).ask(began, page).agree("dashboard, open over a restart")
        marks(page, 1, 0)
    with dashboard(pair.port) as page:
        answers = Answers(edge, pair.port).ask(began, page)
        answers.agree("dashboard, opened after a restart")
        assert answers.reason["dashboard"] == "closed"
        marks(page, 1, 0)


@pytest.mark.timing
def test_the_dashboard_agrees_on_flapping_and_drills(pair: Pair) -> None:
    with dashboard(pair.port) as page:
        for number, is_drill in enumerate((False, True)):
            page.wait(lambda now: now["tone"] == "good", 30.0)
            if is_drill:
                drill(pair.edge, "started", seconds=30)
            began = cut(pair)
            Answers(pair.edge, pair.port).ask(began, page).agree(
                f"dashboard, {'drill' if is_drill else 'flapping'}"
            )
            marks(page, number + 1, int(is_drill))
            back(pair)


@pytest.mark.timing
def test_the_dashboard_agrees_on_a_link_that_was_never_up() -> None:
    port, http = free_port(), free_port()
    config = f'http = "127.0.0.1:{http}"\nrequire_key = false\n'
    with Daemon("edge", config + peer("hub", f"ws://127.0.0.1:{port}/link")) as edge:
        began = time.time() - edge.link("hub")["down_seconds"]
        with dashboard(http) as page:
            Answers(edge, http).ask(began, page).agree("dashboard, never up")
            marks(page, 1, 0)
