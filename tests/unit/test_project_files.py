"""The files that a hosting service looks for: they parse, and name commands that there are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from linkd.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def parsed(path: Path) -> Any:
    yaml: Any = pytest.importorskip("yaml")
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("name", ["CONTRIBUTING", "SECURITY", "CODE_OF_CONDUCT"])
def test_it_is_where_hosting_looks_for_it(name: str) -> None:
    assert (ROOT / f"{name}.md").read_text().startswith("# ")


def test_forms_have_what_a_form_needs() -> None:
    forms = [form for form in FORMS if form.name != "config.yml"]
    assert len(forms) == 2
    for form in forms:
        content = parsed(form)
        assert {"name", "description", "body"} <= content.keys()
        fields = [part for part in content["body"] if part["type"] != "markdown"]
        assert len({part["id"] for part in fields}) == len(fields)
        assert all(part["attributes"]["label"] for part in fields)
        for command in re.findall(r"linkd (\w+)", form.read_text()):
            assert command in COMMANDS or command[0].isdigit() or command == "or", command


def test_hosted_ci_calls_our_own_script_and_may_write_nothing() -> None:
    workflow = parsed(ROOT / ".github" / "workflows" / "ci.yml")
    assert workflow["permissions"] == {"contents": "read"}
    (job,) = workflow["jobs"].values()
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands[-1] == ".ci/run"
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
    minutes = re.findall(r"^part \S+ (\d+) ", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert sum(map(int, minutes)) <= job["timeout-minutes"]


def test_no_page_installs_the_other_project_that_is_called_linkd() -> None:
    """`linkd` on the package index is not this project."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    wrong = re.compile(r"(?:pip|pipx|uv) (?:install|add) (?:-\S+ )*['\"]?linkd(?![-\w])|\blinkd\[")
    assert wrong.search("pip install --upgrade linkd") is not None
    assert wrong.search("pip install linkd-client") is None
    found = [str(page) for page in pages if wrong.search(page.read_text())]
    assert found == []
