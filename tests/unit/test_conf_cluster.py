"""conf/cluster: linkd and HAProxy take the files; they agree with docs/how-to/several-hubs.md."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from linkd.config import load
from tests.support.needs import need

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "conf" / "cluster"
COMPOSE = CLUSTER / "compose"
PAGE = (ROOT / "docs" / "how-to" / "several-hubs.md").read_text()
HUBS = ("hub-a", "hub-b", "hub-c")


@pytest.mark.parametrize("hub", HUBS)
def test_one_file_and_a_name_make_a_hub(tmp_path: Path, hub: str) -> None:
    """The file is the same at all hubs; the name is in a file beside it."""
    (tmp_path / "linkd.d").mkdir()
    (tmp_path / "linkd.toml").write_text((CLUSTER / "linkd.toml").read_text())
    line = re.search(r"^printf '(\[cluster\].*)' .*instance\.toml$", PAGE, re.MULTILINE)
    assert line is not None
    text = line[1].replace("\\n", "\n").replace("%s", hub)
    (tmp_path / "linkd.d" / "instance.toml").write_text(text)
    config = load([tmp_path / "linkd.toml", tmp_path / "linkd.d" / "instance.toml"])
    assert config.cluster is not None
    assert (config.node.name, config.cluster.instance) == ("hub", hub)
    assert config.cluster.bus == "rediss://lb:6379"


def test_haproxy_takes_its_file() -> None:
    need("haproxy")
    command = ["haproxy", "-c", "-f", str(CLUSTER / "haproxy.cfg")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr


def test_hosts_and_addresses_are_those_of_the_page() -> None:
    """As /etc/hosts has them there, for links and for the API."""
    known = {
        name: address for address, name in re.findall(r"^(10\.\S+) +(\S+)", PAGE, re.MULTILINE)
    }
    text = (CLUSTER / "haproxy.cfg").read_text()
    servers = re.findall(r"^    server (\S+) (\S+):(\d+)$", text, re.MULTILINE)
    assert servers == [(hub, known[hub], port) for port in ("9443", "9480") for hub in HUBS]
    assert f"bind {known['lb']}:9480" in text
    assert f'proxy_protocol = ["{known["lb"]}"]' in (CLUSTER / "linkd.toml").read_text()
    assert f"bind {known['lb']}\n" in (CLUSTER / "redis.conf").read_text()
    names = "synchronous_standby_names = 'pg1, pg2'"
    assert names in (CLUSTER / "postgresql.conf").read_text()
    assert {"pg1", "pg2"} < known.keys()


def test_the_page_uses_every_file() -> None:
    files = {path.name for path in CLUSTER.iterdir() if path.is_file()}
    assert files == {"linkd.toml", "haproxy.cfg", "postgresql.conf", "redis.conf"}
    assert files == {*re.findall(r"\.\./conf/cluster/(\S+)", re.sub(r"\.\./\.\./\S+", "", PAGE))}


@pytest.mark.parametrize("hub", HUBS)
def test_the_hubs_of_the_compose_example_load(hub: str) -> None:
    config = load([COMPOSE / "linkd.toml", COMPOSE / f"{hub}.toml"])
    assert config.cluster is not None
    assert config.cluster.instance == hub
    assert config.log.postgresql is not None
    assert load([COMPOSE / "edge-1.toml"]).node.name == "edge-1"


def test_the_compose_example_fits_its_files_and_the_samples() -> None:
    yaml: Any = pytest.importorskip("yaml")
    made = yaml.safe_load((COMPOSE / "compose.yml").read_text())
    services = made["services"]
    haproxy = (CLUSTER / "haproxy.cfg").read_text()
    for name, service in services.items():
        assert service["hostname"] == name
        assert {*service.get("secrets", [])} <= made["secrets"].keys()
        for mount in service.get("volumes", []):
            source = mount.partition(":")[0]
            exists = (COMPOSE / source).exists() if source[0] == "." else source in made["volumes"]
            assert exists, mount
        if service["image"] == "linkd":
            assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
            assert any(mount.endswith(":/var/lib/linkd") for mount in service["volumes"])
    for hub in (*HUBS, "lb"):
        assert f"{services[hub]['networks']['inner']['ipv4_address']}:" in haproxy
    config = load([COMPOSE / "linkd.toml", COMPOSE / "hub-a.toml"])
    assert config.cluster is not None
    assert config.cluster.bus == "redis://redis:6379"
    assert config.listen is not None
    assert config.listen.proxy_protocol == (services["lb"]["networks"]["inner"]["ipv4_address"],)
    for secret in made["secrets"].values():
        name = Path(secret["file"]).name.removesuffix(".password")
        assert re.search(rf"^for name in .*\b{name}\b.*password; done$", PAGE, re.MULTILINE), name
