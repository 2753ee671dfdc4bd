"""Lines of the log: the table, the calls that use it, text, JSON, the journal, folding."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from twisted.internet.task import Clock
from twisted.logger import Logger, LogLevel, globalLogPublisher
from twisted.python.failure import Failure

from linkd.core.link import STATES
from linkd.events import (
    COMMON_FIELDS,
    EVENTS,
    Level,
    Observer,
    catalog,
    emit,
    json_line,
    text_line,
    unknown_fields,
)
from linkd.events.observers import MOST_KEYS, Format, LineForm, RepeatFilter, to_journal
from linkd.events.sink import MESSAGE_IDS

ROOT = Path(__file__).resolve().parents[2]


class Written:
    """An observer of everything that is logged, on a clock of its own."""

    def __init__(self) -> None:
        self.raw: list[str] = []
        self.clock = Clock()

    def observe(
        self, format: Format = "text", journal: bool = False, least: Level = "info"
    ) -> Observer:
        form = LineForm(format, journal)
        observer = Observer(self.put, form, least, self.clock.seconds)
        self.observer = observer
        globalLogPublisher.addObserver(observer)
        return observer

    def put(self, line: str, urgent: bool, fields: bytes) -> None:
        self.raw += line.split("\n")

    @property
    def lines(self) -> list[str]:
        """What was written, without the time."""
        return [line[25:] if line[:2] == "20" else line for line in self.raw]


@pytest.fixture
def written() -> Iterator[Written]:
    made = Written()
    yield made
    if hasattr(made, "observer"):
        globalLogPublisher.removeObserver(made.observer)


def calls() -> Iterator[tuple[str, str, list[str]]]:
    """Yield (place, event, fields) of each line that the source logs with a literal name."""
    for path in sorted((ROOT / "linkd").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            keywords = [word.arg for word in node.keywords if word.arg]
            place = f"{path.relative_to(ROOT)}:{node.lineno}"
            event = next((word.value for word in node.keywords if word.arg == "event"), None)
            if name in ("debug", "info", "warn", "error", "failure") and event is not None:
                fields = [word for word in keywords if word not in ("event", "failure")]
                assert isinstance(event, ast.Constant), place
                yield place, str(event.value), fields
            for position, verb in (
                (0, "emit"),
                (1, "log_event"),
                (1, "_log_event"),
                (1, "LogEvent"),
                (1, "OperatorNotice"),
            ):
                if name == verb and len(node.args) > position:
                    literal = node.args[position]
                    known = isinstance(literal, ast.Constant) and isinstance(literal.value, str)
                    if known and (verb == "emit" or "." in literal.value):
                        fields = [word for word in keywords if word not in ("level", "event")]
                        yield place, literal.value, fields


def test_every_line_in_the_source_is_in_the_table() -> None:
    found = list(calls())
    assert len(found) >= 5
    wrong = [
        f"{place}: {event}: {loose}"
        for place, event, fields in found
        if (loose := unknown_fields(event, fields))
    ]
    assert wrong == []


TABLE = ROOT / "linkd/events/catalog.py"


def words() -> set[str]:
    """Return every string, keyword, parameter and attribute of the source, the table left out."""
    found: set[str] = set()
    for path in sorted((ROOT / "linkd").rglob("*.py")):
        if path == TABLE:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
            elif isinstance(node, ast.keyword) and node.arg:
                found.add(node.arg)
    return found


def measured() -> set[str]:
    """Return the fields of the lines that a link's change of state makes."""
    found: set[str] = set()
    for path in (ROOT / "linkd/node/history.py", ROOT / "linkd/node/link_driver.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name in ("measured", "_measured"):
                keys = [
                    key
                    for each in ast.walk(node)
                    if isinstance(each, ast.Dict)
                    for key in each.keys
                ]
                found |= {str(key.value) for key in keys if isinstance(key, ast.Constant)}
    assert found
    return found


def test_every_line_in_the_table_is_in_the_source() -> None:
    changes = {f"link.{state}" for state in STATES}
    assert sorted(EVENTS.keys() - words() - changes) == []


def test_every_field_in_the_table_is_in_the_source() -> None:
    """Where all calls of a line are literal, each of its fields is in one; else somewhere."""
    literal: dict[str, set[str]] = {}
    for path in sorted((ROOT / "linkd").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            event = node.args[0]
            if name == "emit" and isinstance(event, ast.Constant):
                fields = literal.setdefault(str(event.value), set())
                # A `**` may stand for any field.
                fields |= {word.arg or "**" for word in node.keywords}
    everywhere = words()
    literal |= {f"link.{state}": measured() for state in STATES}
    dead = []
    for kind in EVENTS.values():
        fields = literal.get(kind.name, {"**"})
        dead += [
            f"{kind.name}: {field}"
            for field in kind.fields
            if field not in fields and ("**" not in fields or field not in everywhere)
        ]
    assert dead == []


PAGE = (ROOT / "docs/events.md").read_text()


def described() -> dict[str, list[str]]:
    """Return the other cells of each event's row in docs/events.md."""
    lines = [line for line in PAGE.splitlines() if re.match(r"\| `[a-z]+\.[a-z-]+` \| [a-z]", line)]
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
    assert len({name for name, *_ in rows}) == len(rows)
    return {name.strip("`"): cells for name, *cells in rows}


def test_the_page_has_each_event_with_level_fields_and_folding_of_the_table() -> None:
    def words(names: tuple[str, ...]) -> str:
        return " ".join(f"`{name}`" for name in names)

    page = {
        name: (level, fields, folds) for name, (level, fields, _, _, folds) in described().items()
    }
    assert page == {
        kind.name: (kind.level, words(kind.fields), words(kind.folds)) for kind in EVENTS.values()
    }


def test_the_page_has_the_common_fields_and_the_ids_in_the_journal() -> None:
    assert ", ".join(f"`{name}`" for name in COMMON_FIELDS) in PAGE
    assert re.findall(r"^\| `([a-z.-]+)` \| `([0-9a-f]{32})` \|$", PAGE, re.MULTILINE) == [
        *MESSAGE_IDS.items()
    ]


@pytest.mark.parametrize("kind", EVENTS.values(), ids=lambda kind: kind.name)
def test_each_row_is_whole(kind) -> None:
    area, _, what = kind.name.partition(".")
    assert area.isalpha()
    assert what.replace("-", "").isalpha()
    _, _, meaning, action, _ = described()[kind.name]
    assert meaning.endswith(".")
    assert action
    assert set(kind.folds) <= {"event", *COMMON_FIELDS, *kind.fields}
    if kind.level == "error":
        assert action != "Nothing.", "an error has something to do"


def test_text_has_the_peer_first_rounds_and_omits_none() -> None:
    line = text_line(
        "link.up",
        {"outage_seconds": 3.41249, "replayed_records": 120, "peer": "hub", "reason": None},
    )
    assert line == "link.up peer=hub outage_seconds=3.412 replayed_records=120"


def test_text_quotes_what_is_not_one_word() -> None:
    fields = {"detail": 'say "no"', "where": "", "url": "a=b", "node": "x\ny", "tls": True}
    assert text_line("node.internal-error", fields) == (
        r'node.internal-error detail="say \"no\"" where="" url="a=b" node="x\ny" tls=true'
    )


def test_text_moves_no_cursor() -> None:
    line = text_line("node.internal-error", {"detail": "\x1b[2J \x9b1A \u202e\u2028 größe"})
    assert line.isprintable()
    assert line.isascii()
    assert (
        text_line("node.internal-error", {"detail": "größe ja"})
        == 'node.internal-error detail="größe ja"'
    )


@pytest.mark.parametrize("sign", ["\x1b", "\x9b", "\u202e", "\u2066", "\u2028", "\ufeff", "\ud800"])
def test_json_commands_no_terminal(sign: str) -> None:
    text = json_line("node.internal-error", {"detail": f"größe {sign}2J"}, "error", 0.0)
    assert text.isprintable()
    assert json.loads(text)["detail"] == f"größe {sign}2J"
    assert "größe ja" in json_line("node.internal-error", {"detail": "größe ja"}, "error", 0.0)


def test_json_rounds_and_stamps() -> None:
    line = json.loads(
        json_line("link.up", {"rtt_seconds": 0.12345, "peer": "hub", "old": None}, "info", 0.25)
    )
    assert line == {
        "time": "1970-01-01T00:00:00.250Z",
        "level": "info",
        "event": "link.up",
        "peer": "hub",
        "rtt_seconds": 0.123,
    }


def test_a_terminal_gets_the_time(written: Written) -> None:
    written.observe()
    emit("node.ready", node="a", peers=2, start_seconds=0.5)
    (line,) = written.raw
    assert line[4] == "-"
    assert line[23] == "Z"
    assert written.lines == ["info  node.ready node=a peers=2 start_seconds=0.500"]


def test_the_journal_gets_priorities(written: Written) -> None:
    written.observe(journal=True, least="debug")
    emit("link.connecting", peer="hub")
    emit("link.up", peer="hub")
    emit("link.waiting", peer="hub", reason="silence")
    emit("link.diverged", peer="hub")
    assert [line[:3] for line in written.lines] == ["<7>", "<6>", "<4>", "<3>"]


def test_a_level_may_be_another(written: Written) -> None:
    written.observe(journal=True)
    emit("link.up", "error", peer="hub")
    assert written.lines == ["<3>link.up peer=hub"]


def test_json_in_the_journal_has_priorities_too(written: Written) -> None:
    written.observe(journal=True, format="json")
    emit("link.up", peer="hub")
    assert written.lines[0].startswith('<6>{"time": ')


def test_debug_is_left_out(written: Written) -> None:
    written.observe()
    emit("link.connecting", peer="hub")
    assert written.lines == []


def test_an_unknown_name_or_field_is_told_and_written(written: Written) -> None:
    written.observe()
    emit("no.such", x=1)
    emit("link.up", peer="hub", colour="red")
    assert [line.split()[1] for line in written.lines] == [
        "node.internal-error", "no.such", "node.internal-error", "link.up",
    ]  # fmt: skip
    assert "has no colour" in written.lines[2]


def test_lines_through_a_logger_of_twisted(written: Written) -> None:
    written.observe()
    Logger().error("{detail}", event="tls.reload-failed", detail="bad file")
    Logger().info("fine", event="tls.loaded", days=3.0)
    assert written.lines == [
        'error tls.reload-failed detail="bad file"',
        "info  tls.loaded detail=fine days=3.000",
    ]


def test_warnings_of_libraries_are_logged(written: Written) -> None:
    written.observe()
    log = Logger(namespace="twisted.x")
    log.info("not this")
    log.warn("this   and\nthat")
    autobahn = Logger(namespace="autobahn.twisted.websocket.WebSocketServerProtocol")
    autobahn.emit(LogLevel.warn, "dropping connection to peer {peer} with abort=True: x", peer="y")
    autobahn.emit(LogLevel.warn, "something else")
    assert written.lines == [
        'warn  library.warn detail="this and that" namespace=twisted.x',
        'warn  library.warn detail="something else" namespace='
        "autobahn.twisted.websocket.WebSocketServerProtocol",
    ]


def test_a_traceback_has_its_priority_on_each_line(written: Written) -> None:
    written.observe(journal=True)
    try:
        raise ValueError("oh\nno")
    except ValueError:
        Logger(namespace="x").failure("broken", Failure())
    assert written.lines[0] == '<3>library.error detail="broken oh\\nno" namespace=x'
    assert len(written.lines) > 3
    assert all(line.startswith("<3>") for line in written.lines)


def test_a_traceback_is_not_for_programs(written: Written) -> None:
    written.observe(format="json")
    Logger(namespace="x").failure("broken", Failure(ValueError("no")))
    (line,) = written.lines
    assert json.loads(line)["detail"] == "broken no"


def test_each_line_has_the_instance_first_where_there_is_one(written: Written) -> None:
    form = LineForm("text", False)
    written.observer = Observer(written.put, form, common={"instance": "hub-a"})
    globalLogPublisher.addObserver(written.observer)
    emit("link.kicked", peer="edge")
    assert written.lines == ["info  link.kicked instance=hub-a peer=edge"]


def test_install_applies_format_and_level(capfd: pytest.CaptureFixture[str]) -> None:
    program = (
        "import sys; from linkd.events import emit, install; emit('node.kicked');"
        "install(sys.stderr, 'json', 'warn'); emit('link.up', peer='a');"
        "emit('link.diverged', peer='b')"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=30).returncode == 0
    (line,) = capfd.readouterr().err.splitlines()
    assert json.loads(line)["event"] == "link.diverged"


def test_only_the_stream_that_journal_stream_names_is_the_journal(tmp_path: Path) -> None:
    with (tmp_path / "x").open("w") as stream:
        status = os.fstat(stream.fileno())
        here = f"{status.st_dev}:{status.st_ino}"
        assert to_journal(stream, {"JOURNAL_STREAM": here})
        assert not to_journal(stream, {"JOURNAL_STREAM": f"{here}1"})
        assert not to_journal(stream, {})
    assert not to_journal(io.StringIO(), {"JOURNAL_STREAM": here})


def test_lines_that_nobody_writes_are_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []
    monkeypatch.setattr(catalog._log, "emit", lambda *_, event, **__: built.append(event))
    monkeypatch.setattr(catalog, "_unwanted", ())
    catalog.leave_out("debug")
    for event in ("link.connecting", "link.up"):
        emit(event)
    emit("link.connecting", "info")
    assert built == ["link.up", "link.connecting"]


class TestFolding:
    """Repeats: the first is written, the rest counted."""

    WAIT: ClassVar = {"peer": "hub", "reason": "unreachable"}

    def take(self, folding: RepeatFilter, times: list[float]) -> list[tuple[float, object]]:
        return [
            (now, fields.get("repeats"))
            for now in times
            for _, fields in folding.take("link.waiting", self.WAIT, now)
        ]

    def test_a_summary_every_window(self) -> None:
        folding = RepeatFilter(window=120.0)
        said = self.take(folding, [float(second) for second in range(300)])
        assert said == [(0.0, None), (120.0, 120), (240.0, 120)]

    def test_the_last_one_speaks(self) -> None:
        folding = RepeatFilter(window=10.0)
        for number in range(5):
            folding.take("link.waiting", {**self.WAIT, "attempts": number}, number * 1.0)
        (event, fields), = folding.flush(12.0)  # fmt: skip
        assert event == "link.waiting"
        assert fields == {**self.WAIT, "attempts": 4, "repeats": 4, "within_seconds": 4.0}
        assert folding.flush(30.0) == []

    def test_after_a_quiet_window_a_line_is_written_at_once(self) -> None:
        folding = RepeatFilter(window=10.0)
        self.take(folding, [0.0])
        assert folding.flush(11.0) == []
        assert self.take(folding, [12.0]) == [(12.0, None)]

    def test_a_window_that_lasts_is_not_flushed(self) -> None:
        folding = RepeatFilter(window=10.0)
        self.take(folding, [0.0, 1.0])
        assert folding.flush(9.0) == []
        assert len(folding.flush(9.0, all=True)) == 1

    def test_another_reason_is_another_line(self) -> None:
        folding = RepeatFilter()
        assert len(folding.take("link.waiting", self.WAIT, 0.0)) == 1
        assert len(folding.take("link.waiting", {**self.WAIT, "reason": "dns"}, 0.0)) == 1
        assert folding.take("link.waiting", {**self.WAIT, "reason": "dns"}, 0.0) == []

    def test_a_change_of_the_same_peer_settles_first(self) -> None:
        folding = RepeatFilter()
        self.take(folding, [0.0, 1.0, 2.0])
        folding.take("link.waiting", {"peer": "other", "reason": "dns"}, 2.0)
        lines = folding.take("link.up", {"peer": "hub"}, 3.0)
        assert [event for event, _ in lines] == ["link.waiting", "link.up"]
        assert lines[0][1]["repeats"] == 2
        assert self.take(folding, [4.0]) == [(4.0, None)]
        assert folding.take("link.waiting", {"peer": "other", "reason": "dns"}, 5.0) == []

    def test_memory_is_bounded(self) -> None:
        folding = RepeatFilter()
        for number in range(MOST_KEYS):
            folding.take("link.waiting", {"peer": str(number), "reason": "dns"}, 0.0)
        folding.take("link.waiting", {"peer": "0", "reason": "dns"}, 1.0)
        lines = folding.take("link.waiting", {"peer": "one more", "reason": "dns"}, 2.0)
        assert [fields["peer"] for _, fields in lines] == ["0", "one more"]

    def test_the_end_tells_all(self, written: Written) -> None:
        observer = written.observe()
        emit("link.waiting", peer="hub", reason="dns", attempts=1)
        emit("link.waiting", peer="hub", reason="dns", attempts=2)
        assert len(written.lines) == 1
        observer.flush(all=True)
        assert written.lines[1] == (
            "warn  link.waiting peer=hub reason=dns attempts=2 repeats=1 within_seconds=0.000"
        )


def test_a_clock_may_be_any_function() -> None:
    clock: Callable[[], float] = Clock().seconds
    assert Observer(lambda line, urgent, fields: None, clock=clock).flush() is None
