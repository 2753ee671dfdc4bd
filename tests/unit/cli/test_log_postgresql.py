"""`linkd log init`, `migrate` and `copy`, and what `linkd check` shows of a database."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from linkd.cli import main
from tests.support.logs import SegmentBench, append, draft
from tests.support.postgresql import needs_postgresql, server


def write(folder: Path, dsn: str) -> str:
    file = folder / "linkd.toml"
    file.write_text(
        f'[node]\nname = "hub"\nstate_dir = "{folder / "state"}"\n[log]\nengine = "postgresql"\n'
        f'[log.postgresql]\ndsn = "{dsn}"\nsynchronous = "single"\n'
    )
    return str(file)


@needs_postgresql
def test_tables_are_made_shown_and_filled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = server().database("cli")
    file = write(tmp_path, server().dsn(name))
    assert main(["check", "-c", file]) == 2
    assert "run `linkd log init`" in capsys.readouterr().err
    owner = server().dsn(name, "owner")
    assert main(["log", "init", "--dsn", owner, "-c", file]) == 0
    assert "created; linkd may use them" in capsys.readouterr().out
    assert main(["log", "migrate", "--dsn", owner, "-c", file]) == 0
    assert main(["check", "-c", file]) == 0
    shown = capsys.readouterr().out
    assert "[log.postgresql]\ndsn = " in shown
    assert "# log in PostgreSQL 1" in shown
    bench = SegmentBench(tmp_path / "state" / "log")
    append(bench, draft(b"a"))
    bench.close()
    assert main(["log", "copy", "--to", "postgresql", "-c", file]) == 0
    assert "identity\n" in capsys.readouterr().out
    assert main(["log", "copy", "--to", "segments", "-c", file]) == 0
    assert (tmp_path / "state" / "log" / "identity").exists()


def test_without_psycopg_the_command_names_the_extra(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "linkd.log.postgresql.setup", None)
    assert main(["log", "init", "-c", write(tmp_path, "dbname=linkd")]) == 2
    assert "install linkd-daemon[postgresql]" in capsys.readouterr().err
