"""`status --check` and the page for people, from a status."""

from __future__ import annotations

from pathlib import Path

import pytest

from linkd.cli import main
from linkd.cli.check_line import check_line
from linkd.cli.status import node_text
from linkd.cli.text import Paint
from linkd.status import LogStatus, NodeStatus

STATUS = NodeStatus("hub", "1", 3.0, LogStatus("x", 1, 2, 3, 400), [], [])


def test_without_a_warning_it_is_ok() -> None:
    code, line = check_line(STATUS)
    assert (code, line.split(" | ")[0]) == (0, "LINKD OK - 0 links up")


def test_a_standing_warning_is_a_warning_and_shown() -> None:
    status = NodeStatus("hub", "1", 3.0, STATUS.log, [], [], ["few descriptors are left"])
    code, line = check_line(status)
    assert code == 1
    assert line.startswith("LINKD WARNING - few descriptors are left | ")
    assert "few descriptors are left" in node_text(status, Paint())


def test_check_ends_with_its_verdict_and_shows_a_fingerprint_of_each_secret(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = []
    for name in ("hub", "edge"):
        secret = tmp_path / f"{name}.secret"
        secret.touch(0o600)
        secret.write_text(f"  {'s' * 40}\n\n")  # white space around it does not count
        file = tmp_path / f"{name}.toml"
        peer = f'[[peer]]\nname = "peer"\ndial = ["wss://x:1"]\nsecret_file = "{secret}"\n'
        file.write_text(f'[node]\nname = "{name}"\nstate_dir = "{tmp_path}"\n{peer}')
        assert main(["check", "-c", str(file)]) == 0
        *_, fingerprint, verdict = capsys.readouterr().out.splitlines()
        assert verdict == f"# {file}: fine"
        lines.append(fingerprint)
    assert lines[0] == lines[1]
    assert lines[0].startswith("# fingerprint of the secret for peer: ")
    assert "ssss" not in lines[0]
