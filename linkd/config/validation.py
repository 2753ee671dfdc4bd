"""Validate a configuration: the shape of the document, then rules across settings."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import inspect

from linkd.config.addresses import (
    ENVIRONMENT,
    check_login_path,
    is_loopback,
    parse_address,
    parse_bus,
    parse_network,
    parse_proxy,
    parse_url,
)
from linkd.config.settings import (
    NAME_PATTERN,
    PATHS,
    ClusterSettings,
    Config,
    PeerSettings,
    Settings,
)
from linkd.protocol.channels import (
    MAX_WANTS,
    MAX_WANTS_BYTES,
    MAX_WILDCARD_WORDS,
    has_too_many_words,
    is_pattern,
)

Problem = tuple[tuple[str | int, ...], str]
"""Where, as keys and indexes, and what."""

_ROOT = inspect.type_info(Config)
_USER_INFO = re.compile("//.*@", re.DOTALL)


def shape_errors(tables: Mapping[str, Any]) -> list[Problem]:
    """Return every unknown key, wrong type and impossible value in one file.

    A missing key is not looked for: another file may have it.
    """
    return list(_check(_ROOT, dict(tables), (), False))


def missing(tables: Mapping[str, Any]) -> list[Problem]:
    """Return every key that is required and absent once all files are merged."""
    return list(_check(_ROOT, dict(tables), (), True))


def quote(value: object) -> str:
    """Return a value as TOML would have it, shortened for a message; without a URL's password."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        value = _USER_INFO.sub("//…@", value)
        return json.dumps(value if len(value) <= 60 else value[:60] + "…", ensure_ascii=False)
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "an array of tables" if value and isinstance(value[0], dict) else "an array"
    return str(value)


def _check(
    kind: inspect.Type, value: object, place: tuple[str | int, ...], is_whole: bool
) -> Iterator[Problem]:
    """Compare a value with its type; where it `is_whole`, required keys must be there."""
    kind = _unwrap(kind)
    if isinstance(kind, inspect.StructType) and isinstance(value, dict):
        yield from _check_table(kind, value, place, is_whole)
    elif isinstance(kind, inspect.VarTupleType) and isinstance(value, list):
        for index, item in enumerate(value):
            yield from _check(kind.item_type, item, (*place, index), is_whole)
    elif not _fits(kind, value):
        yield place, f"expected {expectation(kind)}, got {quote(value)}{_meant(kind, value)}"


def _check_table(
    kind: inspect.StructType,
    value: dict[str, object],
    place: tuple[str | int, ...],
    is_whole: bool,
) -> Iterator[Problem]:
    """Compare a table's keys with the settings of its struct."""
    known = {field.encode_name: field for field in kind.fields}
    for key, item in value.items():
        if key in known:
            yield from _check(known[key].type, item, (*place, key), is_whole)
        else:
            yield (*place, key), f"unknown key; {_hint(key, tuple(known), place)}"
    for key, field in known.items() if is_whole else ():
        if field.required and key not in value:
            yield (*place, key), f"missing: expected {expectation(field.type)}"


def expectation(kind: inspect.Type) -> str:
    """Return a description of the values that a setting accepts."""
    kind = _unwrap(kind)
    if isinstance(kind, inspect.LiteralType):
        return " or ".join(f'"{value}"' for value in kind.values)
    if isinstance(kind, inspect.VarTupleType):
        if isinstance(kind.item_type, inspect.StructType):
            return "an array of tables, each under [[…]]"
        return "an array of strings"
    if isinstance(kind, inspect.IntType):
        return f"a whole number from {kind.ge} to {kind.le}"
    if isinstance(kind, inspect.FloatType):
        least = f"from {kind.ge:g} to" if kind.gt is None else f"above {kind.gt:g} and at most"
        return f"a number {least} {kind.le:g}"
    if isinstance(kind, inspect.BoolType):
        return "true or false"
    return "a table" if isinstance(kind, inspect.StructType) else "a string"


def _fits(kind: inspect.Type, value: object) -> bool:
    """Return whether a scalar has its type and is within its bounds; NaN never is."""
    if isinstance(kind, inspect.BoolType):
        return isinstance(value, bool)
    if isinstance(kind, inspect.StrType):
        return isinstance(value, str)
    if isinstance(kind, inspect.LiteralType):
        return isinstance(value, str) and value in kind.values
    if not isinstance(kind, inspect.IntType | inspect.FloatType):
        return False  # a table or an array was expected
    allowed = int if isinstance(kind, inspect.IntType) else int | float
    if isinstance(value, bool) or not isinstance(value, allowed):
        return False
    low = True if kind.ge is None else value >= kind.ge
    above = True if kind.gt is None else value > kind.gt
    return low and above and (kind.le is None or value <= kind.le)


def _meant(kind: inspect.Type, value: object) -> str:
    """Suggest the word that was meant among a setting's few."""
    if isinstance(kind, inspect.LiteralType) and isinstance(value, str):
        near = difflib.get_close_matches(value.lower(), [str(each) for each in kind.values], 1, 0.5)
        if near:
            return f'; did you mean "{near[0]}"?'
    return ""


def _hint(key: str, known: tuple[str, ...], place: tuple[str | int, ...]) -> str:
    """Return a hint: the key that was meant, its right table, or the known keys."""
    word = key.lower().replace("-", "_")
    longer = [name for name in known if len(word) > 2 and name.startswith(f"{word}_")]
    near = longer or difflib.get_close_matches(word, known, 1, 0.6)
    if near:
        return f"did you mean `{near[0]}`?"
    homes = [home for home in HOMES.get(key, ()) if home != _table(place)]
    if homes:
        return f"`{key}` belongs under {' or '.join(homes)}"
    return f"expected one of {', '.join(known)}"


def _table(place: tuple[str | int, ...]) -> str:
    """Return the heading of the table that contains a place."""
    words = ".".join(str(each) for each in place if isinstance(each, str))
    return f"[[{words}]]" if place and isinstance(place[-1], int) else f"[{words}]"


def tables() -> Iterator[tuple[str, type[msgspec.Struct]]]:
    """Yield every table's heading and its struct, in the order of the documentation."""
    assert isinstance(_ROOT, inspect.StructType)
    for field in _ROOT.fields:
        kind = _unwrap(field.type)
        yield from _tables(kind, field.encode_name)


def _tables(kind: inspect.Type, name: str) -> Iterator[tuple[str, type[msgspec.Struct]]]:
    """Yield a table and the tables within it."""
    array = isinstance(kind, inspect.VarTupleType)
    item = _unwrap(kind.item_type) if isinstance(kind, inspect.VarTupleType) else kind
    if isinstance(item, inspect.StructType):
        yield (f"[[{name}]]" if array else f"[{name}]"), item.cls
        for field in item.fields:
            yield from _tables(_unwrap(field.type), f"{name}.{field.encode_name}")


def _unwrap(kind: inspect.Type) -> inspect.Type:
    """Return a type without its notes and its None."""
    if isinstance(kind, inspect.Metadata):
        return _unwrap(kind.type)
    if isinstance(kind, inspect.UnionType):
        return _unwrap(next(e for e in kind.types if not isinstance(e, inspect.NoneType)))
    return kind


def _homes() -> dict[str, list[str]]:
    """Return under which headings each key is known."""
    homes: dict[str, list[str]] = {}
    for heading, struct in tables():
        for field in msgspec.structs.fields(struct):
            homes.setdefault(field.encode_name, []).append(heading)
    return homes


HOMES = _homes()


_NAME = re.compile(NAME_PATTERN.removesuffix("$"))
_SOCKET_PATH_BYTES = 107
"""The longest path of a unix socket on Linux. Source: unix(7)."""


def rule_errors(config: Config) -> list[Problem]:
    """Return every rule that the configuration breaks, one for each place."""
    problems = [
        *_names(config),
        *_paths(config, ()),
        *_api(config),
        *_listen(config),
        *_timing(config),
        *_log(config),
        *_channels(config),
        *_peers(config),
    ]
    return list({place: (place, what) for place, what in reversed(problems)}.values())[::-1]


def with_own_authority(config: Config) -> Config:
    """Return the configuration with the files of the node's own authority in `[listen]`.

    Only where the listener goes beyond loopback, names no certificate and is not `insecure`: there
    is no such line without TLS by default. The daemon makes the files at its start.
    """
    listen = config.listen
    if listen is None or listen.certificate or listen.key or listen.insecure:
        return config
    try:
        host, _ = parse_address(listen.address)
    except ValueError:
        return config  # reported by `rule_errors`
    if is_loopback(host):
        return config
    folder = Path(config.node.state_dir) / "pairing"
    own = msgspec.structs.replace(
        listen,
        certificate=str(folder / "hub.crt"),
        key=str(folder / "hub.key"),
        client_ca=listen.client_ca or str(folder / "ca.crt"),
    )
    return msgspec.structs.replace(config, listen=own)


def _names(config: Config) -> Iterator[Problem]:
    """Names are well formed, and each is unique."""
    yield from _name(("node", "name"), config.node.name)
    for array, names in (
        (("peer",), [peer.name for peer in config.peers]),
        (("api", "key"), [key.name for key in config.api.keys]),
    ):
        for index, name in enumerate(names):
            place = (*array, index, "name")
            yield from _name(place, name)
            if name in names[:index]:
                yield place, f"{quote(name)} occurs twice; names are unique"
    for index, peer in enumerate(config.peers):
        if peer.name == config.node.name:
            yield ("peer", index, "name"), f"{quote(peer.name)} is this node's own name"


def _paths(table: Settings, place: tuple[str | int, ...]) -> Iterator[Problem]:
    """No path is empty."""
    for name, key in zip(table.__struct_fields__, table.__struct_encode_fields__, strict=True):
        value = getattr(table, name)
        here = (*place, key)
        if isinstance(value, Settings):
            yield from _paths(value, here)
        elif isinstance(value, tuple):
            for index, item in enumerate(value):
                if isinstance(item, Settings):
                    yield from _paths(item, (*here, index))
        elif value == "" or (key in PATHS and "\0" in str(value)):
            yield here, f"expected something, got {quote(value)}"


def _name(place: tuple[str | int, ...], name: str) -> Iterator[Problem]:
    """A node's name."""
    if not _NAME.fullmatch(name):
        yield (
            place,
            "expected 1 to 63 of a-z, 0-9, `.` and `-`, beginning with a letter or digit,"
            f" got {quote(name)}",
        )


def _log(config: Config) -> Iterator[Problem]:
    """The engine has its table, and several instances have the engine for it."""
    if config.log.engine == "postgresql" and config.log.postgresql is None:
        yield ("log", "postgresql"), 'missing: `engine = "postgresql"` needs its `dsn` there'
    if config.cluster is not None:
        yield from _name(("cluster", "instance"), config.cluster.instance)
        if config.log.engine != "postgresql":
            yield (
                ("log", "engine"),
                'expected "postgresql": the instances of a [cluster] share one log',
            )
        yield from _bus(config.cluster)


def _bus(cluster: ClusterSettings) -> Iterator[Problem]:
    """The URL is well formed, and the bus is open to nobody unless requested."""
    if cluster.bus is None:
        return
    place = ("cluster", "bus")
    try:
        url = parse_bus(cluster.bus)
    except ValueError as error:
        yield place, str(error)  # without the text, which may contain a password
        return
    is_near = url.service is None and all(is_loopback(host) for host, _ in url.places)
    if cluster.insecure or is_near:
        return
    if not url.secure:
        yield (
            place,
            f"{quote(cluster.bus)} goes beyond loopback without TLS: expected `rediss://`,"
            " or `insecure = true` on a line that is safe by itself",
        )
    if cluster.bus_password_file is None:
        yield (
            ("cluster", "bus_password_file"),
            "missing: Redis beyond loopback needs a password,"
            " or `insecure = true` on a line that is safe by itself",
        )


def _pair(
    table: tuple[str | int, ...], certificate: str | None, key: str | None, key_name: str = "key"
) -> Iterator[Problem]:
    """Certificate and key come together."""
    if certificate and not key:
        yield (*table, key_name), "missing: `certificate` needs its private key"
    if key and not certificate:
        yield (*table, "certificate"), f"missing: `{key_name}` needs its certificate"


def _patterns(place: tuple[str | int, ...], patterns: Sequence[str]) -> Iterator[Problem]:
    """Patterns are patterns."""
    for index, pattern in enumerate(patterns):
        if not is_pattern(pattern):
            yield (
                (*place, index),
                "expected a channel or a pattern: words of letters, digits, `_` and `-` between"
                f" dots, `*` for one word, `>` last for the rest; got {quote(pattern)}",
            )
        elif has_too_many_words(pattern):
            yield (
                (*place, index),
                f"expected at most {MAX_WILDCARD_WORDS} words in a pattern with `*`,"
                f" got {quote(pattern)}",
            )


def _api(config: Config) -> Iterator[Problem]:
    """The API guards what goes beyond loopback."""
    api = config.api
    if len(api.socket.encode()) > _SOCKET_PATH_BYTES:
        yield (
            ("api", "socket"),
            f"expected a path of at most {_SOCKET_PATH_BYTES} bytes,"
            f" got {len(api.socket.encode())}",
        )
    yield from _pair(("api",), api.certificate, api.private_key, "private_key")
    for index, key in enumerate(api.keys):
        yield from _patterns(("api", "key", index, "publish"), key.publish)
        yield from _patterns(("api", "key", index, "subscribe"), key.subscribe)
    if api.http is None:
        return
    try:
        host, _ = parse_address(api.http)
    except ValueError as error:
        yield ("api", "http"), f"{error}, got {quote(api.http)}"
        return
    if is_loopback(host):
        return
    if not api.require_key:
        yield (
            ("api", "require_key"),
            f"false is allowed on loopback only, and `http` is {quote(api.http)}",
        )
    if not (api.certificate or api.insecure):
        yield (
            ("api", "http"),
            f"{quote(api.http)} is beyond loopback: expected `certificate` and `private_key`,"
            " or `insecure = true` on a line that is safe by itself",
        )


def _listen(config: Config) -> Iterator[Problem]:
    """The listener's files fit together; beyond loopback `with_own_authority` sees to TLS."""
    listen = config.listen
    if listen is None:
        return
    yield from _pair(("listen",), listen.certificate, listen.key)
    if listen.client_ca and not listen.certificate:
        yield (
            ("listen", "client_ca"),
            "peers show certificates only over TLS: expected `certificate` too",
        )
    for index, text in enumerate(listen.proxy_protocol):
        try:
            parse_network(text)
        except ValueError as error:
            yield ("listen", "proxy_protocol", index), str(error)
    try:
        _, port = parse_address(listen.address)
    except ValueError as error:
        yield ("listen", "address"), f"{error}, got {quote(listen.address)}"
        return
    if port and config.api.http == listen.address:
        yield ("listen", "address"), f"{quote(listen.address)} is `api.http` already"


def warnings(config: Config) -> Iterator[str]:
    """Yield a sentence for each setting that is allowed and rarely meant."""
    for text in () if config.listen is None else config.listen.proxy_protocol:
        network = parse_network(text)
        least = 24 if network.version == 4 else 64
        if network.prefixlen < least:
            yield (
                f"listen.proxy_protocol: {quote(text)} is wider than /{least}: each host in it"
                " counts as any address that it names: list the balancers alone"
            )


def _timing(config: Config) -> Iterator[Problem]:
    """Numbers that only make sense together."""
    beat = config.heartbeat
    if beat.ping_timeout > beat.ping_interval:
        yield (
            ("heartbeat", "ping_timeout"),
            f"expected at most `ping_interval`, {beat.ping_interval:g}, got {beat.ping_timeout:g}:"
            " a dialer drops a link after twice the interval",
        )
    log = config.log
    if log.max_body_bytes * 4 > log.max_bytes:
        yield (
            ("log", "max_body_bytes"),
            f"expected at most a quarter of `max_bytes`, {log.max_bytes // 4},"
            f" got {log.max_body_bytes}",
        )


def _channels(config: Config) -> Iterator[Problem]:
    """Channels' rules are patterns, and none hides another."""
    seen: set[str] = set()
    for index, channel in enumerate(config.channels):
        place = ("channel", index, "name")
        for _, problem in _patterns((), (channel.name,)):
            yield place, problem
        if channel.name in seen:
            yield place, f"{quote(channel.name)} occurs twice; the first match wins"
        seen.add(channel.name)


def _peers(config: Config) -> Iterator[Problem]:
    """Each peer can be reached, and proves who it is."""
    for index, peer in enumerate(config.peers):
        place = ("peer", index)
        yield from _patterns((*place, "send"), peer.send)
        yield from _patterns((*place, "receive"), peer.receive)
        size = sum([len(pattern) + 3 for pattern in peer.receive])
        if len(peer.receive) > MAX_WANTS or size > MAX_WANTS_BYTES:
            yield (
                (*place, "receive"),
                f"expected at most {MAX_WANTS} patterns, of {MAX_WANTS_BYTES} bytes together: the"
                f" peer takes no more; got {len(peer.receive)}, of {size} bytes",
            )
        yield from _pair(place, peer.certificate, peer.key)
        yield from _identity(config, peer, place)
        yield from _dial(peer, place)
        yield from _proxy(peer, place)
        if not peer.dial and config.listen is None:
            yield (
                (*place, "dial"),
                "missing: a peer without `dial` dials this node, which has no [listen]",
            )


def _identity(
    config: Config, peer: PeerSettings, place: tuple[str | int, ...]
) -> Iterator[Problem]:
    """A peer has a secret, or certificates are asked for."""
    listen = config.listen
    by_certificate = peer.certificate is not None or (
        not peer.dial
        and listen is not None
        and bool(listen.client_ca or peer.ca or (listen.certificate and _pairs(config)))
    )
    if not (peer.secret_file or by_certificate):
        yield (
            (*place, "secret_file"),
            f"missing: peer {quote(peer.name)} has neither a secret nor a certificate: expected"
            " `secret_file`, or `ca`, `certificate` and `key`",
        )


def _pairs(config: Config) -> bool:
    """Return whether pairing has an authority here; True if the directory is unreadable."""
    try:
        return (Path(config.node.state_dir) / "pairing" / "ca.crt").exists()
    except OSError:
        return True


def _dial(peer: PeerSettings, place: tuple[str | int, ...]) -> Iterator[Problem]:
    """URLs are well formed, each is unique, and none is open to the world unless requested."""
    for index, text in enumerate(peer.dial):
        here = (*place, "dial", index)
        try:
            url = parse_url(text)
        except ValueError as error:
            yield here, f"{error}, got {quote(text)}"
            continue
        if text in peer.dial[:index]:
            yield here, f"{quote(text)} occurs twice"
        if not (url.secure or peer.insecure or is_loopback(url.host)):
            yield (
                here,
                f"{quote(text)} goes beyond loopback without TLS: expected `wss://`,"
                " or `insecure = true` on a line that is safe by itself",
            )
        if not url.secure and not peer.secret_file:
            yield (
                here,
                f"{quote(text)} without TLS can't show a certificate: expected `secret_file`",
            )


def _proxy(peer: PeerSettings, place: tuple[str | int, ...]) -> Iterator[Problem]:
    """A proxy is for a peer that is dialed; its URL is well formed, and is never shown."""
    if peer.proxy is None:
        if peer.proxy_secret_file:
            yield (*place, "proxy"), "missing: `proxy_secret_file` is for a proxy"
        return
    if not peer.dial:
        yield (*place, "proxy"), "a proxy is for dialing, and this peer has no `dial`"
    if peer.proxy != ENVIRONMENT:
        try:
            parse_proxy(peer.proxy)
        except ValueError as error:
            yield (*place, "proxy"), f'{error}; or "{ENVIRONMENT}"'
    try:
        check_login_path(peer.proxy_secret_file or "")
    except ValueError as error:
        yield (*place, "proxy_secret_file"), str(error)
