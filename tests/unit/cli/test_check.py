"""`status --check` and the page for people, from a status."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from linkd.cli import main
from linkd.cli.output import Colours
from linkd.cli.status import check_line, node_text
from linkd.clock import wall
from linkd.config import ApiSettings, Config, NodeSettings, PeerSettings, load
from linkd.node.instances import peers_checksum
from linkd.pairing.ca import Authority
from linkd.preflight import key_fingerprints
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


def test_check_names_instances_with_other_peers_or_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "pairing"
    Authority(place, "hub", wall).hub_certificate(["hub"])
    file = tmp_path / "hub.toml"
    file.write_text(
        f'[node]\nname = "hub"\nstate_dir = "{tmp_path}"\n[cluster]\ninstance = "hub-a"\n'
        '[log]\nengine = "postgresql"\n[log.postgresql]\ndsn = "host=/run dbname=linkd"\n'
        f'[listen]\naddress = ":9443"\ncertificate = "{place}/hub.crt"\nkey = "{place}/hub.key"\n'
        f'client_ca = "{place}/ca.crt"\n[[peer]]\nname = "edge"\n'
    )
    config = load([file])
    keys = key_fingerprints(config)
    assert {*keys} == {"listen.certificate", "authority of pairing"}
    assert all(len(each) == 16 for each in keys.values())

    def note(name: str, **more: Any) -> bytes:
        fields: dict[str, Any] = {
            "instance": name, "run": "r", "version": "9", "state": "up", "keeper": False,
            "host": name, "api": None, "time": 0.0, "log_time": 0.0, "log_next": 1, "links": 0,
            "uptime_seconds": 1.0, "peers": peers_checksum(config), "keys": keys, "notes": [],
        } | more  # fmt: skip
        return msgspec.msgpack.encode(fields)

    rows = {
        "hub-a": note("hub-a", peers="of an earlier run"),
        "hub-b": note("hub-b"),
        "hub-c": note("hub-c", peers="0", keys=keys | {"listen.certificate": "1"}),
        "hub-d": note("hub-d", peers="0", state="stopped"),
        "hub-e": b"\xc1 of a newer linkd",
    }
    monkeypatch.setattr("linkd.log.inspect_postgresql", lambda _: "log in PostgreSQL")
    monkeypatch.setattr("linkd.log.shared_values", lambda _, kind: rows)
    assert main(["check", "-c", str(file), "-q"]) == 0
    assert capsys.readouterr().err.splitlines() == [
        "linkd: warning: the instance hub-c (it wrote last at 1970-01-01T00:00:00.000Z):"
        f" {difference}"
        for difference in (
            "its [[peer]] tables are not those here",
            "its listen.certificate has another private key than the one here",
        )
    ]


def test_the_fingerprint_is_of_the_key_and_of_all_that_have_one(tmp_path: Path) -> None:
    first, second = Authority(tmp_path / "a", "hub", wall), Authority(tmp_path / "b", "hub", wall)
    for each in (first, second):
        each.hub_certificate(["hub"])
    peer = PeerSettings(name="far", certificate=str(tmp_path / "a" / "hub.crt"))
    lost = PeerSettings(name="lost", certificate=str(tmp_path / "lost.crt"))
    node = NodeSettings(name="hub", state_dir=str(tmp_path))
    api = ApiSettings(certificate=str(tmp_path / "b" / "hub.crt"))
    found = key_fingerprints(Config(node=node, api=api, peers=(peer, lost)))
    assert {*found} == {"certificate of the peer far", "api.certificate"}
    assert len({*found.values()}) == 2
