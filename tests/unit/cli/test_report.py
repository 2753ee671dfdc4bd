"""`linkd report`: what is in the file, and what is not."""

from __future__ import annotations

import stat
from base64 import b64encode
from pathlib import Path

import pytest

from linkd.cli import main
from tests.support.http_daemon import HttpDaemon

SECRET = "a-secret-of-more-than-32-characters"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    secret = tmp_path / "edge-1.secret"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    path = tmp_path / "linkd.toml"
    path.write_text(
        f'[node]\nname = "hub"\nstate_dir = "{tmp_path}"\n[listen]\naddress = "127.0.0.1:9443"\n'
        f'[[peer]]\nname = "edge-1"\nsecret_file = "{secret}"\n'
    )
    monkeypatch.setenv("LINKD_CONFIG", str(path))
    monkeypatch.setenv("LINKD_SOCKET", str(tmp_path / "d.sock"))
    monkeypatch.chdir(tmp_path)
    return path


def test_all_that_can_be_had_is_in_one_file(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with HttpDaemon(tmp_path / "d.sock") as daemon:
        daemon.answers["GET /v1/status"] = (200, {"node": "hub"})
        daemon.answers["GET /v1/outages"] = (200, {"outages": [{"detail": f"not {SECRET}"}]})
        assert main(["report"]) == 0
    [path] = tmp_path.glob("linkd-report-*.txt")
    assert capsys.readouterr().out == f"wrote {path.name}: read it before you send it\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text()
    assert '== status\n{"node":"hub"}\n' in text
    assert '[[peer]]\nname = "edge-1"\n' in text
    assert "== versions\nlinkd " in text
    assert SECRET not in text
    assert '"not (secret)"' in text
    assert "== metrics\nnot available: " in text


def test_a_proxys_password_is_not_in_it(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    login = tmp_path / "proxy.secret"
    login.write_text("user:hidden:word\n")
    login.chmod(0o600)
    short = tmp_path / "short.secret"
    short.write_text("user:b\n")
    short.chmod(0o600)
    with config.open("a") as file:
        for name, path in (("a", login), ("b", short), ("c", tmp_path / "none")):
            file.write(
                f'[[peer]]\nname = "{name}"\ndial = ["wss://{name}/"]\n'
                f'secret_file = "{tmp_path / "edge-1.secret"}"\n'
                f'proxy = "http://proxy.test:1"\nproxy_secret_file = "{path}"\n'
            )
    basic = b64encode(b"user:hidden:word").decode()
    with HttpDaemon(tmp_path / "d.sock") as daemon:
        daemon.answers["GET /v1/status"] = (200, {"node": f"hub {basic} hidden:word"})
        assert main(["report", "-o", "-"]) == 0
    text = capsys.readouterr().out
    assert '{"node":"hub (secret) (secret)"}' in text
    assert "hidden" not in text
    assert 'proxy = "http://proxy.test:1"' in text


def test_it_needs_neither_a_daemon_nor_a_configuration(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text("[node\n")
    assert main(["report", "--output", "-"]) == 0
    text = capsys.readouterr().out
    assert "== configuration\nnot available: " in text
    assert "== status\nnot available: no daemon at " in text


def test_it_replaces_no_file(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "-o", str(config)]) == 2
    assert capsys.readouterr().err == f"linkd: cannot write {config}: File exists\n"
    assert "edge-1" in config.read_text()
