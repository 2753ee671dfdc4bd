"""`status --check` and the page for people, from a status."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from linkd.cli import main
from linkd.cli.output import Colours
from linkd.cli.status import check_line, node_text
from linkd.clock import wall
from linkd.pairing.ca import Authority
from linkd.status import CertificateRole, CertificateStatus, LogStatus, NodeStatus

STATUS = NodeStatus("hub", "1", 3.0, LogStatus("x", 1, 2, 3, 400), [], [])


def test_without_a_warning_it_is_ok() -> None:
    code, line = check_line(STATUS)
    assert (code, line.split(" | ")[0]) == (0, "LINKD OK - 0 links up")


def test_a_standing_warning_is_a_warning_and_shown() -> None:
    status = NodeStatus("hub", "1", 3.0, STATUS.log, [], [], ["few descriptors are left"])
    code, line = check_line(status)
    assert code == 1
    assert line.startswith("LINKD WARNING - few descriptors are left | ")
    assert "few descriptors are left" in node_text(status, Colours())


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


def test_check_warns_of_a_wide_network_of_balancers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "hub.toml"
    listen = '[listen]\naddress = "127.0.0.1:9443"\nproxy_protocol = ["10.0.0.0/8"]\n'
    file.write_text(f'[node]\nname = "hub"\nstate_dir = "{tmp_path}"\n{listen}')
    assert main(["check", "-c", str(file)]) == 0
    shown = capsys.readouterr()
    assert 'linkd: warning: listen.proxy_protocol: "10.0.0.0/8" is wider than /24' in shown.err
    assert 'proxy_protocol = ["10.0.0.0/8"]' in shown.out


DAY = 86_400.0


@pytest.mark.parametrize(
    ("role", "peer", "days", "told"),
    [
        ("own", None, 15.0, None),
        ("own", None, 13.0, "own certificate expires in 13d"),
        ("own", "hub", -2.0, "own certificate for hub expired 2d"),
        ("api", None, 1.0, "certificate of the API expires in 1d"),
        ("ca", "hub", 13.0, "trusted authority of hub expires in 13d"),
        ("ca", None, 13.0, "trusted authority of dialers expires in 13d"),
        ("authority", None, 731.0, None),
        ("authority", None, 729.0, "own pairing authority expires in 729d"),
        ("authority", "hub", 1.0, "pairing authority of hub expires in 1d"),
        ("peer", "hub", 1.0, None),  # the link's own line says it
    ],
)
def test_a_certificate_that_ends_soon_is_a_warning(
    role: CertificateRole, peer: str | None, days: float, told: str | None
) -> None:
    ends = [CertificateStatus(role, peer, days * DAY)]
    status = NodeStatus("hub", "1", 3.0, STATUS.log, [], [], certificates=ends)
    code, line = check_line(status)
    page = node_text(status, Colours())
    assert code == (0 if told is None else 1)
    if told is not None:
        assert told in line
        assert told in page


def test_status_shows_when_the_node_s_own_certificates_end() -> None:
    ends = [
        CertificateStatus("own", None, 364 * DAY),
        CertificateStatus("authority", None, 3649 * DAY),
        CertificateStatus("own", "lab", 300 * DAY),
        CertificateStatus("api", None, -2 * DAY),
    ]
    page = node_text(NodeStatus("hub", "1", 3.0, STATUS.log, [], [], certificates=ends), Colours())
    assert page.splitlines()[2] == (  # one that has ended has a line of its own
        "until the end of: own certificate 364d, own pairing authority 3649d"
    )


def test_check_shows_when_certificates_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, now = tmp_path / "pairing", wall()
    authority = Authority(place, "hub", lambda: now)
    authority.hub_certificate(["hub"])
    monkeypatch.setattr("linkd.cli.check.wall", lambda: now + 3000.5 * DAY)
    file = tmp_path / "hub.toml"
    file.write_text(
        f'[node]\nname = "hub"\nstate_dir = "{tmp_path}"\n[listen]\naddress = ":9443"\n'
        f'certificate = "{place}/hub.crt"\nkey = "{place}/hub.key"\nclient_ca = "{place}/ca.crt"\n'
    )
    assert main(["check", "-c", str(file)]) == 0
    told = capsys.readouterr()
    assert "# own pairing authority: ends in 649d" in told.out
    assert re.search(r"# own certificate: ended 26\d\dd ago", told.out)
    assert "linkd: warning: own pairing authority expires in 649d" in told.err
    assert "linkd: warning: own certificate expired 26" in told.err
