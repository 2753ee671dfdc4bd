"""Pages in docs/ say what the code says."""

from __future__ import annotations

import difflib
import importlib.util
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from linkd.cli import completion
from linkd.config import load
from linkd.config.validation import shape_errors

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_made_pages_are_current(generate: ModuleType) -> None:
    assert generate.stale() == []


def test_a_stale_page_is_found(generate: ModuleType, tmp_path: Path) -> None:
    generate.DOCS, real = tmp_path, generate.DOCS
    try:
        assert generate.stale() == [*generate.PAGES]
        (tmp_path / "configuration.md").write_text(generate.configuration() + "x")
        assert "configuration.md" in generate.stale()
    finally:
        generate.DOCS = real


def test_settings_of_each_table_are_there(generate: ModuleType) -> None:
    configuration = generate.configuration()
    for key in ("ping_interval", "secret_file", "max_body_bytes", "private_key", "hello_timeout"):
        assert f"| `{key}` |" in configuration


def test_the_schema_takes_the_samples_and_refuses_mistakes(generate: ModuleType) -> None:
    rs: Any = pytest.importorskip("jsonschema_rs")
    validator = rs.validator_for(json.loads(generate.schema()))
    samples = sorted((ROOT / "conf").glob("*.toml"))
    assert len(samples) >= 4
    for sample in samples:
        validator.validate(tomllib.loads(sample.read_text()))
    for wrong in (
        "[node]\nnam = 'x'",
        "[nodes]\nname = 'x'",
        "[heartbeat]\nping_interval = 61",
        "[log]\nwhen_full = 'drop'",
        "[[peer]]\nname = 1",
        "[[peer]]\nsend = []",
        "[api]\nkey = 'x'",
    ):
        assert not validator.is_valid(tomllib.loads(wrong)), wrong
    assert validator.is_valid(tomllib.loads("[[peer]]\nname = 'hub'"))
    assert "null" not in generate.schema()


def test_every_row_has_as_many_cells_as_its_head(generate: ModuleType) -> None:
    for page in (generate.configuration(), (ROOT / "docs/events.md").read_text()):
        width = 0
        for line in page.splitlines():
            if not line.startswith("|"):
                width = 0
                continue
            cells = len(re.findall(r"(?<!\\)\|", line))
            width = width or cells
            assert cells == width, line


WHOLE = [
    (page, block)
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if page.exists()
    for block in re.findall(r"```toml\n(.*?)```", page.read_text(), re.DOTALL)
    if "[node]" in block
]


@pytest.mark.parametrize(("page", "block"), WHOLE, ids=lambda value: getattr(value, "stem", ""))
def test_whole_configurations_in_pages_are_right(page: Path, block: str, tmp_path: Path) -> None:
    file = tmp_path / "linkd.toml"
    file.write_text(block)
    assert load([file]).node.name, page


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TOML = [
    (page, block)
    for page in PAGES
    for block in re.findall(r"^```toml\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
]
LINE = re.compile(r"(?<![\w./$-])linkd((?: (?:-c|--socket) \S+)*) ([a-z][a-z-]*)([^|&;<>#]*)")


@pytest.mark.parametrize(("page", "block"), TOML, ids=lambda value: getattr(value, "stem", ""))
def test_settings_in_pages_are_settings(page: Path, block: str) -> None:
    assert shape_errors(tomllib.loads(block)) == []


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the command and the options of each line of `linkd` in a page's code."""
    fences = re.findall(r"^```(?:sh|)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    rest = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    code = [line for fence in fences for line in fence.replace("\\\n", "").splitlines()]
    for line in [*code, *re.findall(r"`([^`\n]+)`", rest)]:
        for match in LINE.finditer(re.sub(r"(^| )#.*", "", line)):
            yield match[2], re.findall(r"(?<=\s)--?[a-z][\w-]*", match[3])


def test_commands_in_pages_are_commands() -> None:
    known = {each.name: each for each in completion.commands()}
    found = 0
    for page in PAGES:
        for command, options in commands(page.read_text()):
            if command not in known:  # `linkd is DOWN:` is a message
                assert not difflib.get_close_matches(command, known, 1, 0.8), (page.name, command)
                assert not options or command == "help", (page.name, command, options)
                continue
            names = {name for option in known[command].options for name in option.names}
            assert {*options} <= names, (page.name, command, options)
            found += 1
    assert found > 150


def test_a_wrong_command_in_a_page_is_found() -> None:
    text = "`linkd statux`\n```\nedge# linkd -c a.toml log stat --jsn  # linkd says so\n```\n"
    assert [*commands(text)] == [("log", ["--jsn"]), ("statux", [])]


def figures_of(page: str) -> dict[tuple[str, ...], list[str]]:
    """Return the rows of a page's tables: the cells by the heading and the first two cells."""
    rows, heading = {}, ""
    for line in (ROOT / "docs" / "measurements" / page).read_text().splitlines():
        if line.startswith("## "):
            heading = line[3:]
        elif line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            rows[heading, *cells[:2]] = cells
    return rows


def rounded_as(shown: str, measured: str) -> bool:
    """Return whether a figure is the measured median, in as many decimals as it has."""
    figure = re.sub(r"[^\d.]", "", shown)
    median = float(measured.partition(" (")[0].replace(",", ""))
    return figure == f"{median:.{len(figure.partition('.')[2])}f}"


SYSTEMS = ("linkd", "mosquitto, QoS 1", "NATS, JetStream")
COMPARED = {
    "100-byte messages a second": ("Throughput", "100 B", 2),
    "in batches of 64, as the client library sends them": ("Throughput", "100 B", 2),
    "messages of 64 KiB a second": ("Throughput", "64 KiB", 2),
    "median latency at 1,000 a second": ("Latency", "1,000/s", 2),
    "memory of both ends, 100-byte messages": ("Throughput", "100 B", 5),
    "1,000,000 messages of backlog arrive after a restart of the hub within": (
        "Drain after an outage",
        "1,000,000",
        3,
    ),
    "one hub to 100 peers, deliveries a second": ("Fan-out", "100", 2),
    "memory of these 101 daemons": ("Fan-out", "100", 4),
}


def test_the_comparison_in_the_readme_is_that_of_the_measurements() -> None:
    section = (ROOT / "README.md").read_text().split("## Comparison")[1].split("\n## ")[0]
    shown = {
        cells[0]: cells[1:]
        for line in section.partition("| one link,")[2].splitlines()[2:]
        if len(cells := [cell.strip() for cell in line.strip("|").split("|")]) == 4
    }
    assert {*shown} == {*COMPARED}
    rows = figures_of("peers.md")
    for title, (heading, case, column) in COMPARED.items():
        own = "linkd"
        if heading == "Throughput":
            own = "linkd, batches of 64" if "batches" in title else "linkd, one a frame"
        for cell, system in zip(shown[title], (own, *SYSTEMS[1:]), strict=True):
            if cell != "–":
                measured = rows[heading, case, system][column]
                assert rounded_as(cell, measured), f"{title}: {system}: {cell}, now {measured}"


def test_the_campaign_in_the_readme_is_that_of_the_measurements() -> None:
    readme = (ROOT / "README.md").read_text()
    quoted = re.search(r"of (\d+) random faults ([\d,]+) records were compared: 0 lost", readme)
    assert quoted is not None
    rows = {key[1]: key[2] for key in figures_of("campaign.md")}
    assert quoted[1] == rows["faults"]
    assert quoted[2] == rows["held against them, in the logs of all nodes"]
    assert rows["**lost, twice, out of order**"] == "**0, 0, 0**"


def test_the_campaign_in_the_promises_is_that_of_the_measurements() -> None:
    promises = (ROOT / "docs" / "promises.md").read_text()
    rows = {key[1]: key[2] for key in figures_of("campaign.md")}
    held = int(rows["held against them, in the logs of all nodes"].replace(",", ""))
    assert f"{held // 1_000_000} million records compared in the last, 0 lost" in promises
    ends = [
        re.search(r"median ([\d.]+ s)", rows[f"the {end} noticed a dead path"])
        for end in ("listener", "dialer")
    ]
    assert " and ".join(found[1] for found in ends if found) in promises


@pytest.mark.parametrize(
    ("shown", "measured", "same"),
    [
        ("**1,140,000**", "1,140,000 (1,110,000 to 1,150,000)", True),
        ("0.83 ms", "0.831 (0.831 to 0.832)", True),
        ("45 MiB", "44.6 (17.2 to 55.5)", True),
        ("0.84 ms", "0.831 (0.831 to 0.832)", False),
        ("72,000", "72,100", False),
    ],
)
def test_a_figure_is_compared_in_its_own_decimals(shown: str, measured: str, same: bool) -> None:
    assert rounded_as(shown, measured) is same


def test_the_quick_start_is_on_the_first_screen_of_the_readme() -> None:
    first = "\n".join((ROOT / "README.md").read_text().splitlines()[:24])
    assert "\nscripts/demo " in first
    assert "\nscripts/test " in first
    assert "git clone" in first
