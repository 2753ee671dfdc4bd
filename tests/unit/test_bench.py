"""The benchmarks' modules can be read one after another: no module imports one that imports it."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

BENCH = Path(__file__).resolve().parents[2] / "bench"


def test_the_benchmarks_import_in_one_direction() -> None:
    imports: dict[str, set[str]] = {}
    for path in sorted(BENCH.glob("*.py")):
        found = imports.setdefault(f"bench.{path.stem}", set())
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bench"):
                names = [f"bench.{alias.name}" for alias in node.names]
                found |= set(names) if node.module == "bench" else {node.module or ""}
            elif isinstance(node, ast.Import):
                found |= {each.name for each in node.names if each.name.startswith("bench.")}
    assert len(imports) > 10
    TopologicalSorter(imports).prepare()  # raises CycleError
