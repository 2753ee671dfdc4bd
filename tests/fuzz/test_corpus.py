"""Each target takes its corpus; needs no atheris."""

from __future__ import annotations

import pytest

from tests.fuzz.targets import CORPUS, NAMES, load


@pytest.mark.parametrize("name", NAMES)
def test_corpus(name: str) -> None:
    target, files = load(name), sorted((CORPUS / name).iterdir())
    assert len(files) >= 5
    for path in files:
        target(path.read_bytes())
        for cut in (1, 2, 3):
            target(path.read_bytes()[: -len(path.read_bytes()) // (cut + 1)])
