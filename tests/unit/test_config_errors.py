"""Every kind of bad configuration: exit code 2, one line that names file, key, expected and got."""

# ruff: noqa: E501  # a table: one row a kind

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest
from msgspec import inspect

from linkd.cli import main
from linkd.config import load
from linkd.config.validation import expectation, shape_errors, tables
from linkd.errors import ConfigError

NODE = '[node]\nname = "here"\n'
SECRET = 'secret_file = "s"\n'
PEER = '[[peer]]\nname = "hub"\n' + SECRET
DIALED = PEER + 'dial = ["wss://hub.example.net:9443/link"]\n'
LISTEN = '[listen]\naddress = "127.0.0.1:9443"\n'
CLUSTER = '[log]\nengine = "postgresql"\n[log.postgresql]\ndsn = "dbname=linkd"\n[cluster]\ninstance = "a"\n'
API = '[api]\nhttp = "127.0.0.1:9480"\n'

BAD: dict[str, tuple[str, str, str]] = {
    # What is wrong: the file, the key that the line names, words of what it says.
    "no node": ("", "node", "missing: expected a table"),
    "no name": ('[node]\nstate_dir = "/x"\n', "node.name", "missing: expected a string"),
    "name with capitals": ('[node]\nname = "Edge"\n', "node.name", 'got "Edge"'),
    "name with a blank": ('[node]\nname = "a b"\n', "node.name", 'got "a b"'),
    "name begins with a dash": ('[node]\nname = "-a"\n', "node.name", 'got "-a"'),
    "name too long": (f'[node]\nname = "{"a" * 64}"\n', "node.name", "1 to 63"),
    "name with a newline": ('[node]\nname = "a\\n"\n', "node.name", "1 to 63"),
    "name empty": ('[node]\nname = ""\n', "node.name", "1 to 63"),
    "name a number": ("[node]\nname = 7\n", "node.name", "expected a string, got 7"),
    "state_dir empty": (NODE + 'state_dir = ""\n', "node.state_dir", "expected something"),
    "unknown table": (NODE + "[heartbeats]\n", "heartbeats", "did you mean `heartbeat`?"),
    "unknown key": (DIALED.replace("dial", "dail") + NODE, "peer[0].dail", "mean `dial`?"),
    "unknown key, dashed": (NODE + "[heartbeat]\nping-interval = 5\n", "heartbeat.ping-interval",
                            "did you mean `ping_interval`?"),
    "key of another table": (NODE + SECRET, "node.secret_file", "belongs under"),
    "nonsense key": (NODE + "xyzzy = 1\n", "node.xyzzy", "expected one of name, state_dir"),
    "table for array": (NODE + '[peer]\nname = "hub"\n', "peer", "[[…]], got a table"),
    "array for table": ('[[node]]\nname = "here"\n', "node", "got an array of tables"),
    "string for list": (NODE + LISTEN + PEER + 'send = "orders"\n', "peer[0].send",
                        'expected an array of strings, got "orders"'),
    "number in list": (NODE + LISTEN + PEER + 'send = ["a", 5]\n', "peer[0].send[1]", "got 5"),
    "pattern of too many words": (NODE + LISTEN + PEER + f'send = ["a.*{".b" * 15}"]\n',
                                  "peer[0].send[0]", "at most 16 words in a pattern with `*`"),
    "more patterns than a peer takes": (
        NODE + LISTEN + PEER + "receive = [" + '"a", ' * 1025 + "]\n", "peer[0].receive",
        "expected at most 1024 patterns, of 24576 bytes together"),
    "string for number": (NODE + '[heartbeat]\nping_interval = "5"\n', "heartbeat.ping_interval",
                          'expected a number from 1 to 60, got "5"'),
    "bool for number": (NODE + "[heartbeat]\nping_interval = true\n", "heartbeat.ping_interval",
                        "got true"),
    "number for bool": (NODE + LISTEN + PEER + "required = 1\n", "peer[0].required",
                        "expected true or false, got 1"),
    "float for size": (NODE + "[log]\nmax_bytes = 1e9\n", "log.max_bytes", "a whole number"),
    "interval 0.5": (NODE + "[heartbeat]\nping_interval = 0.5\n", "heartbeat.ping_interval",
                     "from 1 to 60, got 0.5"),
    "interval 61": (NODE + "[heartbeat]\nping_interval = 61\n", "heartbeat.ping_interval",
                    "from 1 to 60, got 61"),
    "interval nan": (NODE + "[heartbeat]\nping_interval = nan\n", "heartbeat.ping_interval",
                     "got nan"),
    "timeout 0": (NODE + "[heartbeat]\nping_timeout = 0\n", "heartbeat.ping_timeout", "got 0"),
    "timeout above interval": (NODE + "[heartbeat]\nping_timeout = 6\n", "heartbeat.ping_timeout",
                               "at most `ping_interval`, 5, got 6"),
    "connect_timeout negative": (NODE + "[reconnect]\nconnect_timeout = -1\n",
                                 "reconnect.connect_timeout", "got -1"),
    "max_delay inf": (NODE + "[reconnect]\nmax_delay = inf\n", "reconnect.max_delay", "got inf"),
    "engine without its table": (
        NODE + '[log]\nengine = "postgresql"\n',
        "log.postgresql",
        "missing: `engine",
    ),
    "cluster without a database": (NODE + '[cluster]\ninstance = "a"\n', "log.engine",
                                   'expected "postgresql": the instances of a [cluster]'),
    "instance with a blank": (NODE + '[cluster]\ninstance = "a b"\n[log]\nengine = "postgresql"\n'
                              '[log.postgresql]\ndsn = "dbname=a"\n', "cluster.instance", 'got "a b"'),
    "engine": (NODE + '[log]\nengine = "redis"\n', "log.engine", 'expected "postgresql" or'),
    "bus without TLS": (
        NODE + CLUSTER + 'bus_password_file = "s"\nbus = "redis://lb:6379"\n',
        "cluster.bus",
        'beyond loopback without TLS: expected `rediss://`',
    ),
    "bus by Sentinels without TLS": (
        NODE + CLUSTER + 'bus_password_file = "s"\nbus = "redis+sentinel://[::1]:1/linkd"\n',
        "cluster.bus",
        'beyond loopback without TLS',
    ),
    "bus without a password": (
        NODE + CLUSTER + 'bus = "rediss://lb"\n',
        "cluster.bus_password_file",
        "missing: Redis beyond loopback needs a password",
    ),
    "bus elsewhere": (NODE + CLUSTER + 'bus = "http://lb"\n', "cluster.bus", "another scheme"),
    "when_full": (NODE + '[log]\nwhen_full = "drop_oldest"\n', "log.when_full",
                  'did you mean "drop-oldest"?'),
    "body too large": (NODE + "[log]\nmax_body_bytes = 16_777_217\n", "log.max_body_bytes",
                       "to 16777216, got 16777217"),
    "body larger than the log": (NODE + "[log]\nmax_bytes = 16_777_216\nmax_body_bytes = 8_000_000\n",
                                 "log.max_body_bytes", "a quarter of `max_bytes`"),
    "log too small": (NODE + "[log]\nmax_bytes = 5\n", "log.max_bytes", "got 5"),
    "channel name": (NODE + '[[channel]]\nname = "a..b"\n', "channel[0].name", 'got "a..b"'),
    "channel after >": (NODE + '[[channel]]\nname = ">.a"\n', "channel[0].name", 'got ">.a"'),
    "channel twice": (NODE + '[[channel]]\nname = "a"\n' * 2, "channel[1].name", "occurs twice"),
    "delivery": (NODE + '[[channel]]\nname = "a"\ndelivery = "volatil"\n', "channel[0].delivery",
                 'did you mean "volatile"?'),
    "ttl 0": (NODE + '[[channel]]\nname = "a"\nttl = 0\n', "channel[0].ttl", "above 0"),
    "peer without name": (NODE + "[[peer]]\n" + SECRET, "peer[0].name", "missing"),
    "peer twice": (NODE + DIALED + DIALED, 'peer[1].name ("hub")', "occurs twice"),
    "peer is us": (NODE + DIALED.replace("hub", "here"), "peer[0].name", "own name"),
    "peer's name": (NODE + DIALED.replace('"hub"', '"Hub"'), "peer[0].name", 'got "Hub"'),
    "no identity": (NODE + DIALED.replace(SECRET, ""), "peer[0].secret_file",
                    "neither a secret nor a certificate"),
    "no identity, authority alone": (NODE + DIALED.replace(SECRET, 'ca = "c"\n'),
                                     "peer[0].secret_file", "neither"),
    "proxy of another scheme": (NODE + DIALED + 'proxy = "ftp://a:1"\n', "peer[0].proxy",
                                'another scheme was given; or "environment"'),
    "proxy with TLS": (NODE + DIALED + 'proxy = "https://a:1"\n', "peer[0].proxy",
                       "linkd does not speak TLS to a proxy"),
    "proxy without a port": (NODE + DIALED + 'proxy = "http://a"\n', "peer[0].proxy",
                             "host or port is missing"),
    "proxy of port 0": (NODE + DIALED + 'proxy = "http://a:0"\n', "peer[0].proxy",
                        "host or port is missing"),
    "proxy without a host": (NODE + DIALED + 'proxy = "socks5://:1"\n', "peer[0].proxy",
                             "host or port is missing"),
    "proxy with a path": (NODE + DIALED + 'proxy = "http://a:1/b"\n', "peer[0].proxy",
                          "nothing belongs behind the port"),
    "proxy that is no URL": (NODE + DIALED + 'proxy = "http://[a:1"\n', "peer[0].proxy",
                             "this is no URL"),
    "proxy of a peer that dials": (NODE + LISTEN + PEER + 'proxy = "http://a:1"\n', "peer[0].proxy",
                                   "this peer has no `dial`"),
    "proxy's secret alone": (NODE + DIALED + 'proxy_secret_file = "p"\n', "peer[0].proxy",
                             "missing: `proxy_secret_file` is for a proxy"),
    "proxy's login in place of a path": (
        NODE + DIALED + 'proxy = "http://a:1"\nproxy_secret_file = "me:hidden"\n',
        "peer[0].proxy_secret_file", "what was given is not shown"),
    "secret_file empty": (NODE + DIALED.replace('"s"', '""'), "peer[0].secret_file", "something"),
    "balancer is a name": (NODE + LISTEN + 'proxy_protocol = ["10.0.0.5", "lb"]\n',
                           "listen.proxy_protocol[1]", 'expected "ADDRESS" or "ADDRESS/BITS"'),
    "balancers with host bits": (NODE + LISTEN + 'proxy_protocol = ["10.0.0.5/24"]\n',
                                 "listen.proxy_protocol[0]", "has host bits set"),
    "certificate without key": (NODE + DIALED + 'certificate = "c"\n', "peer[0].key", "private key"),
    "key without certificate": (NODE + DIALED + 'key = "k"\n', "peer[0].certificate", "missing"),
    "nobody can dial": (NODE + PEER, "peer[0].dial", "no [listen]"),
    "url without scheme": (NODE + PEER + 'dial = ["hub:9443"]\n', "peer[0].dial[0]", "wss://HOST"),
    "url http": (NODE + PEER + 'dial = ["http://hub"]\n', "peer[0].dial[0]", 'is "http"'),
    "url without host": (NODE + PEER + 'dial = ["wss:///link"]\n', "peer[0].dial[0]", "no host"),
    "url port": (NODE + PEER + 'dial = ["wss://hub:99999/link"]\n', "peer[0].dial[0]", "out of range"),
    "url port 0": (NODE + PEER + 'dial = ["wss://hub:0/link"]\n', "peer[0].dial[0]", "port 0"),
    "url with user": (NODE + PEER + 'dial = ["wss://me:pw@hub/link"]\n', "peer[0].dial[0]", "no user"),
    "url with a query": (NODE + PEER + 'dial = ["wss://hub/link?a=1"]\n', "peer[0].dial[0]", "query"),
    "url with a blank": (NODE + PEER + 'dial = ["wss://hub/li nk"]\n', "peer[0].dial[0]", "blank"),
    "url address": (NODE + PEER + 'dial = ["wss://300.1.2.3:1/"]\n', "peer[0].dial[0]", "no host"),
    "url twice": (NODE + PEER + 'dial = ["wss://hub:1", "wss://hub:1"]\n', "peer[0].dial[1]", "twice"),
    "ws beyond loopback": (NODE + PEER + 'dial = ["ws://hub:9443/link"]\n', "peer[0].dial[0]",
                           "insecure = true"),
    "ws by certificate": (NODE + (DIALED.replace("wss", "ws").replace(
        SECRET, 'certificate = "c"\nkey = "k"\ninsecure = true\n')), "peer[0].dial[0]", "secret_file"),
    "send": (NODE + LISTEN + PEER + 'send = ["a b"]\n', "peer[0].send[0]", 'got "a b"'),
    "receive": (NODE + LISTEN + PEER + 'receive = [""]\n', "peer[0].receive[0]", 'got ""'),
    "peer's when_full": (NODE + LISTEN + PEER + 'when_full = "x"\n', "peer[0].when_full", "reject"),
    "listen without address": (NODE + "[listen]\n", "listen.address", "missing"),
    "listen port": (NODE + '[listen]\naddress = "127.0.0.1"\n', "listen.address", ":PORT"),
    "listen port number": (NODE + '[listen]\naddress = "127.0.0.1:70000"\n', "listen.address", "65535"),
    "listen IPv6": (NODE + '[listen]\naddress = "::1:9443"\n', "listen.address", "brackets"),
    "listen brackets": (NODE + '[listen]\naddress = "[hub]:1"\n', "listen.address", "brackets are for IPv6"),
    "listen name": (NODE + '[listen]\naddress = "hub:9443"\n', "listen.address", "no address"),
    "listen without key": (NODE + LISTEN + 'certificate = "c"\n', "listen.key", "private key"),
    "client_ca in the clear": (NODE + LISTEN + 'client_ca = "c"\n', "listen.client_ca", "TLS"),
    "listen is http": (NODE + API + LISTEN.replace("9443", "9480"), "listen.address", "`api.http`"),
    "http": (NODE + '[api]\nhttp = "9480"\n', "api.http", 'got "9480"'),
    "http in the clear": (NODE + '[api]\nhttp = "0.0.0.0:9480"\n', "api.http", "insecure = true"),
    "no key beyond loopback": (NODE + '[api]\nhttp = "0.0.0.0:1"\ninsecure = true\nrequire_key = false\n',
                               "api.require_key", "loopback only"),
    "api certificate": (NODE + API + 'certificate = "c"\n', "api.private_key", "private key"),
    "api key twice": (NODE + API + '[[api.key]]\nname = "k"\nsecret_file = "s"\n' * 2,
                      "api.key[1].name", "twice"),
    "api key without secret": (NODE + API + '[[api.key]]\nname = "k"\n', "api.key[0].secret_file",
                               "missing"),
    "api key pattern": (NODE + API + '[[api.key]]\nname = "k"\nsecret_file = "s"\npublish = ["*x"]\n',
                        "api.key[0].publish[0]", 'got "*x"'),
    "api.key as text": (NODE + '[api]\nkey = "/etc/key"\n', "api.key", "[[…]]"),
    "socket too long": (NODE + f'[api]\nsocket = "/{"a" * 120}"\n', "api.socket", "107 bytes, got 121"),
    "limit": (NODE + "[limits]\npending = 0\n", "limits.pending", "from 1"),
}  # fmt: skip

BROKEN: dict[str, tuple[bytes, str]] = {
    # Not even TOML.
    "syntax": (b"[node\n", "not TOML"),
    "no value": (b"[node]\nname =\n", "not TOML"),
    "no end": (b'[node]\nname = """x', "at end of document)"),
    "no-break space": (b'[node]\nname\xc2\xa0= "edge"\n', "it has a no-break space"),
    "curly quotes": ("[node]\nname = “edge”\n".encode(), 'name = “edge”"; use straight quotes'),
    "no quotes": (b"[node]\nname = edge\n", "a text needs quotes"),
    "key twice": (b'[node]\nname = "a"\nname = "b"\n', "not TOML"),
    "latin-1": (b'[node]\nname = "\xe9"\n', "expected UTF-8, got other bytes in line 2"),
    "nul": (b"\0\0\0", "not TOML"),
    "deep": (b"a = " + b"[" * 5000, "nested too deep"),
}


@pytest.mark.parametrize("kind", BAD)
def test_one_precise_line(
    kind: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("linkd.daemon.events.install", lambda *_: None)  # it takes over stderr
    text, key, words = BAD[kind]
    file = tmp_path / "linkd.toml"
    file.write_text(text)
    assert main(["check", "-c", str(file)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1, said.err
    assert said.err.startswith(f"linkd: {file}: {key}"), said.err
    assert words in said.err
    assert main(["run", "-c", str(file)]) == 2


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_not_toml(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, words = BROKEN[kind]
    file = tmp_path / "linkd.toml"
    file.write_bytes(content)
    assert main(["check", "-c", str(file)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"linkd: {file}: ")
    assert words in said
    assert said.count("\n") == 1


def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    file = tmp_path / "linkd.toml"
    with file.open("wb") as sparse:
        sparse.truncate(16 * 1024 * 1024 + 1)
    with pytest.raises(ConfigError, match="expected at most 16777216 bytes"):
        load([file])


def test_at_least_forty_kinds() -> None:
    assert len(BAD) + len(BROKEN) >= 40


def test_each_setting_given_a_date_says_what_the_documentation_says_of_it() -> None:
    checked = 0
    for heading, struct in tables():
        kind = inspect.type_info(struct)
        assert isinstance(kind, inspect.StructType)
        for field in kind.fields:
            words = expectation(field.type)
            assert words
            assert "None" not in words
            wrong: object = {field.encode_name: date(2026, 1, 1)}
            for word in reversed(heading.strip("[]").split(".")):
                wrong = {word: [wrong] if f"[[{word}]]" in heading or word == "key" else wrong}
            assert isinstance(wrong, dict)
            said = [what for where, what in shape_errors(wrong) if where[-1] == field.encode_name]
            assert len(said) == 1
            assert said[0].startswith(f"expected {words}, got 2026-01-01")
            checked += 1
    assert checked > 40


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "-c", str(tmp_path / "none.toml")]) == 2
    assert capsys.readouterr().err == (
        f"linkd: {tmp_path}/none.toml: can't be read: No such file or directory\n"
    )
    assert main(["check", "-c", str(tmp_path)]) == 2
    assert "Is a directory" in capsys.readouterr().err


def test_every_error_at_once(tmp_path: Path) -> None:
    file = tmp_path / "linkd.toml"
    file.write_text("[node]\nname = 1\n[heartbeat]\nping_interval = 0\nx = 1\n")
    with pytest.raises(ConfigError) as caught:
        load([file])
    assert len(str(caught.value).splitlines()) == 3


def test_a_secret_is_never_repeated(tmp_path: Path) -> None:
    file = tmp_path / "linkd.toml"
    file.write_text(NODE + '[[peer]]\nname = "hub"\nsecret = "hunter2-hunter2-hunter2"\n')
    with pytest.raises(ConfigError, match="did you mean `secret_file`") as caught:
        load([file])
    assert "hunter2" not in str(caught.value)


class TestManyFiles:
    """linkd.toml and linkd.d/*.toml."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "linkd.d").mkdir()
        (tmp_path / "linkd.toml").write_text(NODE + LISTEN + PEER)
        return tmp_path

    def fails(self, folder: Path) -> str:
        paths = [folder / "linkd.toml", *sorted((folder / "linkd.d").glob("*.toml"))]
        with pytest.raises(ConfigError) as caught:
            load(paths)
        return str(caught.value)

    def test_a_setting_twice_names_both_files(self, folder: Path) -> None:
        (folder / "linkd.d/a.toml").write_text('[node]\nname = "there"\n')
        assert self.fails(folder) == (
            f"{folder}/linkd.d/a.toml: node.name: {folder}/linkd.toml has set it already"
        )

    def test_an_index_counts_within_its_file(self, folder: Path) -> None:
        (folder / "linkd.d/b.toml").write_text('[[peer]]\nname = "hub"\nsecret_file = "s"\n')
        said = self.fails(folder)
        assert said.startswith(f'{folder}/linkd.d/b.toml: peer[0].name ("hub"): ')
        assert "occurs twice" in said

    def test_a_type_error_names_its_file(self, folder: Path) -> None:
        (folder / "linkd.d/c.toml").write_text("[[peer]]\nname = 5\n")
        assert self.fails(folder).startswith(f"{folder}/linkd.d/c.toml: peer[0].name: expected")

    def test_a_missing_key_names_its_file(self, folder: Path) -> None:
        (folder / "linkd.d/d.toml").write_text("[[peer]]\nrequired = true\n")
        said = self.fails(folder)
        assert said.startswith(f"{folder}/linkd.d/d.toml: peer[0].name: missing")


@pytest.mark.parametrize(
    "line",
    [
        'proxy = "http://user:hidden@proxy.test:3128"',
        'proxy = "http://hidden@proxy.test:3128"',
        'proxy = "socks5://user:hid/den@proxy.test:hidden"',
        'proxy = "user:hidden@proxy.test"',
        "proxy = “http://user:hidden@proxy.test:3128”",
        'proxi = "http://user:hidden@proxy.test:3128"',
        'proxy = ["http://user:hidden@proxy.test:3128"]',
        'proxy = "http://proxy.test:1"\ncompress = "http://user:hid@den@proxy.test:3128"',
    ],
)
def test_a_password_in_a_proxys_url_is_refused_and_not_shown(line: str, tmp_path: Path) -> None:
    file = tmp_path / "linkd.toml"
    file.write_text(NODE + DIALED + line + "\n")
    with pytest.raises(ConfigError) as error:
        load([file])
    assert "hid" not in str(error.value)


def test_a_password_in_a_peers_url_is_refused_and_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "linkd.toml"
    file.write_text(NODE + DIALED.replace("//", "//user:hidden@"))
    with pytest.raises(ConfigError, match="no user, query or fragment") as error:
        load([file])
    assert "hidden" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    ["rediss://:hidden@lb", "redis://linkd:hidden@lb:6379", "rediss://u:hi/hidden@lb", "hidden@lb"],
)
def test_a_password_in_the_url_of_the_bus_is_refused_and_not_shown(
    url: str, tmp_path: Path
) -> None:
    file = tmp_path / "linkd.toml"
    file.write_text(NODE + CLUSTER + f'bus = "{url}"\n')
    with pytest.raises(ConfigError, match=r"cluster\.bus: expected") as error:
        load([file])
    assert "hidden" not in str(error.value)
