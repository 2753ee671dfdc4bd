"""Good configurations: what is in force, where paths lead, what a reload changes."""

from __future__ import annotations

import stat
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from linkd.cli import main
from linkd.cli.check import in_toml
from linkd.config import (
    ApiKey,
    ApiSettings,
    ChannelSettings,
    Config,
    HeartbeatSettings,
    ListenSettings,
    NodeSettings,
    PeerSettings,
    apply_live,
    changes,
    files,
    load,
)
from linkd.config.addresses import (
    BusUrl,
    ProxyUrl,
    Url,
    is_loopback,
    parse_address,
    parse_bus,
    parse_network,
    parse_proxy,
    parse_url,
)
from linkd.config.loading import UnreadableConfig
from linkd.config.settings import ClusterSettings
from linkd.config.validation import warnings
from linkd.errors import ConfigError, Unavailable
from linkd.preflight import check_files, look_at_bus

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = sorted((ROOT / "conf").glob("*.toml"))
HERE = Config(node=NodeSettings(name="here"))


def peer(name: str = "hub", **fields: object) -> PeerSettings:
    made = PeerSettings(name=name, dial=("wss://hub/link",), secret_file="/s")
    return msgspec.structs.replace(made, **fields)


@pytest.mark.parametrize(
    ("publish", "subscribe", "everything"),
    [((">",), (">", "a"), True), ((">",), ("a",), False), (("a",), (">",), False)],
)
def test_a_key_for_everything_is_one_for_both(
    publish: tuple[str, ...], subscribe: tuple[str, ...], everything: bool
) -> None:
    key = ApiKey(name="k", secret_file="/s", publish=publish, subscribe=subscribe)
    assert key.is_for_everything is everything


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_samples_are_fine(sample: Path) -> None:
    config = load([sample])
    assert config.peers


def test_there_are_the_promised_samples() -> None:
    assert {path.stem for path in SAMPLES} >= {"hub", "edge", "telemetry", "lab"}


def test_a_name_is_enough_and_the_rest_has_defaults(tmp_path: Path) -> None:
    config = load([write(tmp_path / "a.toml", '[node]\nname = "here"\n')])
    assert config == HERE
    assert config.node.state_dir == "/var/lib/linkd"
    assert config.api.socket == "/run/linkd/linkd.sock"
    assert (config.heartbeat.ping_interval, config.heartbeat.ping_timeout) == (5.0, 2.0)
    assert (config.reconnect.connect_timeout, config.reconnect.max_delay) == (5.0, 15.0)
    assert config.log.max_bytes == 10 * 2**30
    assert config.listen is None
    assert config.peer("hub") is None


def test_whole_numbers_are_seconds_too(tmp_path: Path) -> None:
    text = '[node]\nname = "here"\n[heartbeat]\nping_interval = 3\n'
    interval = load([write(tmp_path / "a.toml", text)]).heartbeat.ping_interval
    assert interval == 3.0
    assert isinstance(interval, float)


def test_drop_ins_add_peers_in_order(tmp_path: Path) -> None:
    head = '[node]\nname = "here"\n[listen]\naddress = "127.0.0.1:1"\n'
    one = '[[peer]]\nname = "{}"\nsecret_file = "/s"\n'
    main_file = write(tmp_path / "linkd.toml", head + one.format("a"))
    write(tmp_path / "linkd.d/20.toml", one.format("c"))
    write(tmp_path / "linkd.d/10.toml", one.format("b") + "[reconnect]\nmax_delay = 3.0\n")
    write(tmp_path / "linkd.d/note.txt", "not read")
    found = files(main_file)
    assert [path.name for path in found] == ["linkd.toml", "10.toml", "20.toml"]
    config = load(found)
    assert [each.name for each in config.peers] == ["a", "b", "c"]
    assert config.reconnect.max_delay == 3.0
    assert config.peer("b") is config.peers[1]


def test_a_listener_beyond_loopback_has_the_node_s_own_authority(tmp_path: Path) -> None:
    """One line is enough, and there is no line without TLS unless somebody asks for it."""

    def listen(lines: str) -> ListenSettings:
        head = '[node]\nname = "here"\nstate_dir = "/state"\n[listen]\n'
        found = load([write(tmp_path / "a.toml", head + lines)]).listen
        assert found is not None
        return found

    own = listen('address = ":9443"\n')
    assert own.certificate == "/state/pairing/hub.crt"
    assert own.key == "/state/pairing/hub.key"
    assert own.client_ca == "/state/pairing/ca.crt"
    assert not own.insecure
    assert listen('address = "0.0.0.0:9443"\nclient_ca = "/ca"\n').client_ca == "/ca"
    named = 'address = ":9443"\ncertificate = "/c"\nkey = "/k"\n'
    assert (listen(named).certificate, listen(named).client_ca) == ("/c", None)
    assert listen('address = ":9443"\ninsecure = true\n').certificate is None
    assert listen('address = "127.0.0.1:9443"\n').certificate is None
    for lines in ('address = "nowhere"\n', 'address = ":9443"\nkey = "/k"\n'):
        with pytest.raises(ConfigError, match=r"listen\."):
            listen(lines)


def test_wide_networks_of_balancers_are_a_warning(tmp_path: Path) -> None:
    """Each host in them counts as any address that it names."""

    def warned(listen: str) -> list[str]:
        text = f'[node]\nname = "here"\n{listen}'
        return list(warnings(load([write(tmp_path / "a.toml", text)])))

    listed = '["10.0.0.5", "10.0.0.0/24", "2001:db8::/64", "10.0.0.0/23", "2001:db8::/63"]'
    v4, v6 = warned(f'[listen]\naddress = "127.0.0.1:1"\nproxy_protocol = {listed}\n')
    assert '"10.0.0.0/23" is wider than /24' in v4
    assert '"2001:db8::/63" is wider than /64' in v6
    assert warned("") == []


def test_the_option_precedes_the_environment_and_the_default(tmp_path: Path) -> None:
    assert files(None, {})[0] == Path("/etc/linkd/linkd.toml")
    assert files(None, {"LINKD_CONFIG": str(tmp_path / "x")}) == [tmp_path / "x"]
    assert files(tmp_path / "y", {"LINKD_CONFIG": "/x"}) == [tmp_path / "y"]


def test_a_folder_that_cannot_be_read_is_said_unless_its_file_cannot_either(tmp_path: Path) -> None:
    main = tmp_path / "linkd.toml"
    (tmp_path / "linkd.d").symlink_to("linkd.d")
    assert files(main) == [main]
    main.write_text("")
    with pytest.raises(UnreadableConfig, match=r"linkd\.d: can't be read: Too many levels"):
        files(main)


def test_relative_paths_start_at_the_file_and_credentials_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        '[node]\nname = "here"\nstate_dir = "state"\n[listen]\naddress = "127.0.0.1:1"\n'
        '[[peer]]\nname = "a"\nsecret_file = "a.secret"\n'
        '[[peer]]\nname = "b"\nsecret_file = "b.secret"\n'
        '[[peer]]\nname = "c"\nsecret_file = "/etc/c"\n'
    )
    credentials = tmp_path / "credentials"
    write(credentials / "a.secret", "x")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    config = load([write(tmp_path / "etc/linkd.toml", text)])
    assert config.node.state_dir == str(tmp_path / "etc/state")
    assert [each.secret_file for each in config.peers] == [
        str(credentials / "a.secret"),
        str(tmp_path / "etc/b.secret"),
        "/etc/c",
    ]


def test_credentials_of_the_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`LoadCredential=secret:/etc/linkd/credentials`, in the service and outside of it."""
    text = (
        '[node]\nname = "here"\n[listen]\naddress = "127.0.0.1:1"\n'
        '[[peer]]\nname = "hub"\nsecret_file = "hub"\n'
    )
    (tmp_path / "etc").mkdir()
    file = write(tmp_path / "etc/linkd.toml", text)
    outside = write(tmp_path / "etc/credentials/hub", "x")
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert load([file]).peers[0].secret_file == str(outside)
    inside = write(tmp_path / "run/secret_hub", "x")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "run"))
    assert load([file]).peers[0].secret_file == str(inside)


def test_check_shows_what_is_in_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secret = write(tmp_path / "s", "0123456789" * 4)
    secret.chmod(0o600)
    text = (
        f'[node]\nname = "here"\n[api]\nhttp = "127.0.0.1:1"\n[[api.key]]\nname = "k"\n'
        f'secret_file = "{secret}"\npublish = ["a.>"]\n[[channel]]\nname = "*"\nttl = 1.5\n'
        f'[[peer]]\nname = "hub"\ndial = ["wss://hub"]\nsecret_file = "{secret}"\n'
    )
    file = write(tmp_path / "a.toml", text)
    assert main(["check", "-c", str(file)]) == 0
    said = capsys.readouterr().out
    again = write(tmp_path / "b.toml", said)
    assert load([again]) == load([file])
    assert main(["check", "-c", str(file), "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    assert main(["check", "-c", str(file), "--json"]) == 0
    shown = msgspec.json.decode(capsys.readouterr().out)
    assert shown["peer"][0]["name"] == "hub"


def test_check_looks_into_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = write(tmp_path / "short", "abc")
    short.chmod(0o600)
    world = write(tmp_path / "world", "0123456789" * 4)
    world.chmod(0o644)
    text = (
        '[node]\nname = "here"\n[listen]\naddress = "127.0.0.1:1"\ncertificate = "c"\nkey = "k"\n'
        'client_ca = "ca"\n'
        + "".join(
            f'[[peer]]\nname = "{name}"\nsecret_file = "{name}"\n'
            for name in ("short", "world", "none")
        )
    )
    assert main(["check", "-c", str(write(tmp_path / "a.toml", text))]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1] for line in lines] == [
        "listen.certificate",
        "listen.client_ca",
        "peer (short).secret_file",
        "peer (world).secret_file",
        "peer (none).secret_file",
    ]
    assert "at least 32 characters" in lines[2]
    assert "0644" in lines[3]
    assert "No such file" in lines[4]
    assert stat.S_IMODE(world.stat().st_mode) == 0o644


def test_check_looks_at_proxies_and_shows_no_password(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in (("good", "user:hidden"), ("bad", "hidden"), ("s", "0123456789" * 4)):
        write(tmp_path / name, content).chmod(0o600)
    monkeypatch.setenv("https_proxy", "http://user:hidden@proxy.test:1")
    peers = (("a", "http://proxy.test:1", "good"), ("b", "socks5://proxy.test:1", "bad"),
             ("c", "environment", "none"))  # fmt: skip
    text = '[node]\nname = "here"\n' + "".join(
        f'[[peer]]\nname = "{name}"\ndial = ["wss://{name}/"]\nsecret_file = "s"\n'
        f'proxy = "{proxy}"\nproxy_secret_file = "{file}"\n'
        for name, proxy, file in peers
    )
    assert main(["check", "-c", str(write(tmp_path / "a.toml", text))]) == 2
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert [line.split(": ")[1] for line in lines] == [
        "peer (b).proxy_secret_file",
        "peer (c).proxy_secret_file",
        "peer (c).proxy",
    ]
    assert "expected `USER:PASSWORD` in its first line" in lines[0]
    assert "No such file" in lines[1]
    assert "environment variable HTTPS_PROXY: expected" in lines[2]
    assert "hidden" not in printed.out + printed.err


@pytest.mark.parametrize("command", ["check", "check --json", "run", "report -o -"])
def test_a_password_in_place_of_its_file_is_not_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    text = (
        '[node]\nname = "here"\n[[peer]]\nname = "a"\ndial = ["wss://a/"]\nsecret_file = "s"\n'
        'proxy = "http://proxy.test:1"\nproxy_secret_file = "user:hidden"\n'
    )
    main([*command.split(), "-c", str(write(tmp_path / "a.toml", text))])
    printed = capsys.readouterr()
    assert 'peer[0].proxy_secret_file ("a"): expected the path' in printed.out + printed.err
    assert "hidden" not in printed.out + printed.err


def test_keys_of_an_api_that_is_not_there_are_not_read() -> None:
    key = ApiKey(name="k", secret_file="/nowhere")
    assert check_files(msgspec.structs.replace(HERE, api=ApiSettings(keys=(key,)))) == []


def test_credentials_that_systemd_hides_from_a_reload_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = PeerSettings(name="a", secret_file=f"{tmp_path}/a.secret")
    config = msgspec.structs.replace(HERE, peers=(secret,))
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert len(check_files(config)) == 1
    monkeypatch.setattr("linkd.preflight.os.access", lambda path, mode: path != str(tmp_path))
    assert check_files(config) == []
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/nowhere")
    assert len(check_files(config)) == 1


@given(
    interval=st.floats(1, 60),
    max_bytes=st.integers(2**26, 2**40),
    ttl=st.none() | st.floats(0.001, 1e9),
    send=st.lists(st.sampled_from(["a", "a.*", ">", "a.b_c.>"])),
    insecure=st.booleans(),
)
def test_what_check_prints_is_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    interval: float,
    max_bytes: int,
    ttl: float | None,
    send: list[str],
    insecure: bool,
) -> None:
    config = msgspec.structs.replace(
        HERE,
        heartbeat=HeartbeatSettings(ping_interval=interval, ping_timeout=1.0),
        log=msgspec.structs.replace(HERE.log, max_bytes=max_bytes),
        channels=(ChannelSettings(name="x", ttl=ttl),),
        peers=(peer(send=tuple(send), insecure=insecure),),
    )
    file = tmp_path_factory.mktemp("c") / "a.toml"
    file.write_text("\n".join(in_toml(config)))
    assert load([file]) == config


def _parsed(parse: Callable[[str], object], text: str) -> bool:
    try:
        parse(text)
    except ValueError:
        return False
    return True


class TestAddresses:
    """URLs and addresses."""

    @pytest.mark.parametrize(
        ("text", "url"),
        [
            ("wss://hub.example.net", Url(True, "hub.example.net", 443, "/link")),
            ("wss://hub:9443/", Url(True, "hub", 9443, "/link")),
            ("ws://[2001:db8::7]:80/x/y", Url(False, "2001:db8::7", 80, "/x/y")),
            ("WSS://HUB:1/link", Url(True, "hub", 1, "/link")),
        ],
    )
    def test_a_url_is_parsed_and_printed(self, text: str, url: Url) -> None:
        assert parse_url(text) == url
        assert parse_url(str(url)) == url

    @pytest.mark.parametrize(
        ("text", "proxy", "printed"),
        [
            ("http://proxy:3128", ProxyUrl("http", "proxy", 3128), "http://proxy:3128"),
            ("socks5://[::1]:1/", ProxyUrl("socks5", "::1", 1), "socks5://[::1]:1"),
            ("SOCKS5H://192.0.2.1:1", ProxyUrl("socks5", "192.0.2.1", 1), "socks5://192.0.2.1:1"),
        ],
    )
    def test_a_proxy_is_parsed_and_printed(self, text: str, proxy: ProxyUrl, printed: str) -> None:
        assert parse_proxy(text) == proxy
        assert str(proxy) == printed

    @pytest.mark.parametrize(
        ("text", "bus", "printed"),
        [
            ("redis://lb", BusUrl(False, (("lb", 6379),)), "redis://lb:6379"),
            ("rediss://[::1]:7", BusUrl(True, (("::1", 7),)), "rediss://[::1]:7"),
            (
                "rediss://linkd@lb:7",
                BusUrl(True, (("lb", 7),), user="linkd"),
                "rediss://linkd@lb:7",
            ),
            (
                "rediss+sentinel://a,b:7/linkd",
                BusUrl(True, (("a", 26379), ("b", 7)), "linkd"),
                "rediss+sentinel://a:26379,b:7/linkd",
            ),
        ],
    )
    def test_the_url_of_a_bus_is_parsed_and_printed(
        self, text: str, bus: BusUrl, printed: str
    ) -> None:
        assert parse_bus(text) == bus
        assert str(bus) == printed
        assert parse_bus(printed) == bus

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("lb:6379", "another scheme"),
            ("redis://@lb", "the user before `@`"),
            ("redis://a b@lb", "the user before `@`"),
            ("redis://", "host or port"),
            ("redis://lb:0", "host or port"),
            ("redis://lb:99999", "host or port"),
            ("redis://lb?db=1", "host or port"),
            ("redis://lb/1", "nothing belongs behind the port"),
            ("redis://a,b", "several hosts are for Sentinel"),
            ("rediss+sentinel://a,b", "the name under which Sentinel"),
            ("rediss+sentinel://a,/linkd", "host or port"),
        ],
    )
    def test_what_is_no_url_of_a_bus_is_refused(self, text: str, words: str) -> None:
        with pytest.raises(ValueError, match=words):
            parse_bus(text)

    @pytest.mark.parametrize(
        "lines",
        [
            'bus = "redis://127.0.0.1"',
            'bus = "rediss://lb"\nbus_password_file = "s"',
            'bus = "redis+sentinel://a,b/linkd"\ninsecure = true',
        ],
    )
    def test_a_cluster_may_have_a_bus(self, lines: str, tmp_path: Path) -> None:
        file = tmp_path / "linkd.toml"
        file.write_text(
            '[node]\nname = "here"\n[log]\nengine = "postgresql"\n[log.postgresql]\ndsn = "x=y"\n'
            f'[cluster]\ninstance = "a"\n{lines}\n'
        )
        config = load([file])
        assert config.cluster is not None
        assert config.cluster.bus is not None
        missing = {str(error).partition(":")[0] for error in check_files(config)}
        assert missing == ({"cluster.bus_password_file"} if "file" in lines else set())

    def test_a_bus_is_looked_at_where_there_is_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        credentials = tmp_path / "none"
        cluster = ClusterSettings(
            instance="a", bus="redis://[::1]", bus_password_file=str(credentials / "redis")
        )
        config = Config(node=NodeSettings(name="here"))
        assert look_at_bus(config) == ("", "")
        config = Config(node=NodeSettings(name="here"), cluster=cluster)
        monkeypatch.setattr("linkd.preflight.inspect_bus", lambda _: "Redis")
        assert look_at_bus(config) == ("Redis", "")

        def away(_: ClusterSettings) -> str:
            raise Unavailable("refused")

        monkeypatch.setattr("linkd.preflight.inspect_bus", away)
        assert look_at_bus(config)[1].startswith("refused: volatile messages and presence stay")
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
        assert look_at_bus(config) == ("", "")

    @pytest.mark.parametrize("text", ["http://proxy:3128", "environment"])
    def test_a_peer_may_have_a_proxy(self, text: str, tmp_path: Path) -> None:
        file = tmp_path / "linkd.toml"
        file.write_text(
            '[node]\nname = "here"\n[[peer]]\nname = "hub"\ndial = ["wss://hub/"]\n'
            f'secret_file = "s"\nproxy = "{text}"\nproxy_secret_file = "p"\n'
        )
        [found] = load([file]).peers
        assert (found.proxy, found.proxy_secret_file) == (text, str(tmp_path / "p"))

    @pytest.mark.parametrize(
        ("text", "address"),
        [
            ("0.0.0.0:9443", ("0.0.0.0", 9443)),
            (":0", ("", 0)),
            ("[::1]:1", ("::1", 1)),
            ("localhost:80", ("127.0.0.1", 80)),
        ],
    )
    def test_an_address_is_parsed(self, text: str, address: tuple[str, int]) -> None:
        assert parse_address(text) == address

    @pytest.mark.parametrize(
        ("text", "network"),
        [
            ("192.0.2.9", "192.0.2.9/32"),
            ("::ffff:192.0.2.9", "192.0.2.9/32"),
            ("::ffff:192.0.2.0/120", "192.0.2.0/24"),
            ("::ffff:0.0.0.0/96", "0.0.0.0/0"),
            ("::fffe:0:0/95", "::fffe:0:0/95"),
            ("2001:db8::/120", "2001:db8::/120"),
        ],
    )
    def test_a_network_is_parsed_and_of_ipv4_where_it_means_that(
        self, text: str, network: str
    ) -> None:
        assert str(parse_network(text)) == network

    def test_loopback_addresses_are_recognised(self) -> None:
        assert all(map(is_loopback, ["127.0.0.1", "127.9.9.9", "::1", "localhost", "LocalHost."]))
        assert not any(map(is_loopback, ["", "0.0.0.0", "::", "hub", "localhost.example.net"]))

    @given(st.text(max_size=40))
    def test_anything_is_an_address_or_a_value_error(self, text: str) -> None:
        for parse in (parse_url, parse_address, parse_proxy, parse_bus):
            with (
                pytest.raises(ValueError, match=r"^expected ")
                if not _parsed(parse, text)
                else (nullcontext())
            ):
                parse(text)


class TestPairedPeers:
    """A peer without secret and certificate that pairing has vouched for."""

    TEXT = (
        '[node]\nname = "here"\nstate_dir = "{state}"\n[[peer]]\nname = "a"\n'
        '[listen]\naddress = "127.0.0.1:1"\ncertificate = "c"\nkey = "k"\n'
    )

    def test_a_paired_authority_takes_the_place_of_a_secret(self, tmp_path: Path) -> None:
        write(tmp_path / "pairing/ca.crt", "")
        loaded = load([write(tmp_path / "a.toml", self.TEXT.format(state=tmp_path))])
        assert [peer.name for peer in loaded.peers] == ["a"]

    def test_without_one_a_peer_needs_a_secret_or_a_certificate(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="neither a secret nor a certificate"):
            load([write(tmp_path / "a.toml", self.TEXT.format(state=tmp_path))])

    def test_a_state_directory_that_cannot_be_read_is_no_error(self, tmp_path: Path) -> None:
        text = self.TEXT.format(state="/" + "x" * 300)
        assert load([write(tmp_path / "a.toml", text)]).peers[0].name == "a"


class TestReload:
    """What changes, and what of it is in force at once."""

    def said(self, old: Config, new: Config) -> list[tuple[str, bool]]:
        return [(str(change), change.live) for change in changes(old, new)]

    def test_equal_configurations_have_no_changes(self) -> None:
        assert changes(HERE, HERE) == []
        assert apply_live(HERE, HERE) == HERE

    def test_changes_of_peers_are_named(self) -> None:
        old = msgspec.structs.replace(HERE, peers=(peer("a"), peer("b"), peer("c")))
        new = msgspec.structs.replace(
            HERE, peers=(peer("b", send=("x",), required=True), peer("c"), peer("d"))
        )
        assert self.said(old, new) == [
            ('peer "a": removed', True),
            ('peer "b": send, required changed', True),
            ('peer "d": added', True),
        ]
        assert apply_live(old, new) == new

    def test_order_of_channels_counts(self) -> None:
        one, two = ChannelSettings(name="a"), ChannelSettings(name=">")
        old = msgspec.structs.replace(HERE, channels=(one, two))
        new = msgspec.structs.replace(HERE, channels=(two, one))
        assert self.said(old, new) == [("channel: another order", True)]

    def test_all_peers_removed(self) -> None:
        old = msgspec.structs.replace(HERE, peers=(peer("a"),))
        assert self.said(old, HERE) == [('peer "a": removed', True)]

    def test_live_and_restart(self) -> None:
        new = msgspec.structs.replace(
            HERE,
            node=NodeSettings(name="there", state_dir="/x"),
            heartbeat=HeartbeatSettings(ping_interval=2.0),
            api=ApiSettings(http="127.0.0.1:1", origins=("https://a",)),
        )
        assert self.said(HERE, new) == [
            ('node.name: "here" -> "there"', False),
            ('node.state_dir: "/var/lib/linkd" -> "/x"', False),
            ('api.http: none -> "127.0.0.1:1"', False),
            ('api.origins: [] -> ["https://a"]', True),
            ("heartbeat.ping_interval: 5.0 -> 2.0", True),
        ]
        kept = apply_live(HERE, new)
        assert kept.node == HERE.node
        assert kept.api == ApiSettings(origins=("https://a",))
        assert kept.heartbeat.ping_interval == 2.0

    def test_a_new_listener_needs_a_restart(self) -> None:
        new = msgspec.structs.replace(HERE, listen=ListenSettings(address="127.0.0.1:1"))
        assert self.said(HERE, new) == [("[listen]: added", False)]
        assert self.said(new, HERE) == [("[listen]: removed", False)]
        assert apply_live(HERE, new) == HERE
        assert apply_live(new, HERE) == new

    def test_certificates_are_live(self) -> None:
        old = msgspec.structs.replace(HERE, listen=ListenSettings(address=":1", certificate="/a"))
        new = msgspec.structs.replace(HERE, listen=ListenSettings(address=":2", certificate="/b"))
        assert self.said(old, new) == [
            ('listen.address: ":1" -> ":2"', False),
            ('listen.certificate: "/a" -> "/b"', True),
        ]
        kept = apply_live(old, new).listen
        assert kept == ListenSettings(address=":1", certificate="/b")

    def test_a_socket_goes_over_to_tls_at_a_restart(self) -> None:
        plain = msgspec.structs.replace(HERE, listen=ListenSettings(address=":1"))
        secure = msgspec.structs.replace(
            HERE, listen=ListenSettings(address=":1", certificate="/c", key="/k")
        )
        assert [live for _, live in self.said(plain, secure)] == [False, False]
        assert apply_live(plain, secure) == plain
        assert apply_live(secure, plain) == secure
