"""What the settings must be together, once each by itself is of the right shape."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from linkd.config.addresses import is_loopback, parse_address, parse_url
from linkd.config.settings import NAME_PATTERN, PATHS, Config, PeerSettings, Settings
from linkd.config.shape import Trouble, shown
from linkd.core.channels import (
    MAX_WANTS,
    MAX_WANTS_BYTES,
    MAX_WILDCARD_WORDS,
    has_too_many_words,
    is_pattern,
)

_NAME = re.compile(NAME_PATTERN.removesuffix("$"))
_SOCKET_PATH_BYTES = 107
"""The longest path of a unix socket on Linux. Source: unix(7)."""


def broken(config: Config) -> list[Trouble]:
    """Return every rule that the configuration breaks, one for each place."""
    troubles = [
        *_names(config),
        *_paths(config, ()),
        *_api(config),
        *_listen(config),
        *_timing(config),
        *_channels(config),
        *_peers(config),
    ]
    return list({place: (place, what) for place, what in reversed(troubles)}.values())[::-1]


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
        return config  # reported by `broken`
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


def _names(config: Config) -> Iterator[Trouble]:
    """Names are well formed, and each stands once."""
    yield from _name(("node", "name"), config.node.name)
    for array, names in (
        (("peer",), [peer.name for peer in config.peers]),
        (("api", "key"), [key.name for key in config.api.keys]),
    ):
        for index, name in enumerate(names):
            place = (*array, index, "name")
            yield from _name(place, name)
            if name in names[:index]:
                yield place, f"{shown(name)} stands twice; names are unique"
    for index, peer in enumerate(config.peers):
        if peer.name == config.node.name:
            yield ("peer", index, "name"), f"{shown(peer.name)} is this node's own name"


def _paths(table: Settings, place: tuple[str | int, ...]) -> Iterator[Trouble]:
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
            yield here, f"expected something, got {shown(value)}"


def _name(place: tuple[str | int, ...], name: str) -> Iterator[Trouble]:
    """A node's name."""
    if not _NAME.fullmatch(name):
        yield (
            place,
            "expected 1 to 63 of a-z, 0-9, `.` and `-`, beginning with a letter or digit,"
            f" got {shown(name)}",
        )


def _pair(
    table: tuple[str | int, ...], certificate: str | None, key: str | None, key_name: str = "key"
) -> Iterator[Trouble]:
    """Certificate and key come together."""
    if certificate and not key:
        yield (*table, key_name), "missing: `certificate` needs its private key"
    if key and not certificate:
        yield (*table, "certificate"), f"missing: `{key_name}` needs its certificate"


def _patterns(place: tuple[str | int, ...], patterns: Sequence[str]) -> Iterator[Trouble]:
    """Patterns are patterns."""
    for index, pattern in enumerate(patterns):
        if not is_pattern(pattern):
            yield (
                (*place, index),
                "expected a channel or a pattern: words of letters, digits, `_` and `-` between"
                f" dots, `*` for one word, `>` last for the rest; got {shown(pattern)}",
            )
        elif has_too_many_words(pattern):
            yield (
                (*place, index),
                f"expected at most {MAX_WILDCARD_WORDS} words in a pattern with `*`,"
                f" got {shown(pattern)}",
            )


def _api(config: Config) -> Iterator[Trouble]:
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
        yield ("api", "http"), f"{error}, got {shown(api.http)}"
        return
    if is_loopback(host):
        return
    if not api.require_key:
        yield (
            ("api", "require_key"),
            f"false is allowed on loopback only, and `http` is {shown(api.http)}",
        )
    if not (api.certificate or api.insecure):
        yield (
            ("api", "http"),
            f"{shown(api.http)} is beyond loopback: expected `certificate` and `private_key`,"
            " or `insecure = true` on a line that is safe by itself",
        )


def _listen(config: Config) -> Iterator[Trouble]:
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
    try:
        _, port = parse_address(listen.address)
    except ValueError as error:
        yield ("listen", "address"), f"{error}, got {shown(listen.address)}"
        return
    if port and config.api.http == listen.address:
        yield ("listen", "address"), f"{shown(listen.address)} is `api.http` already"


def _timing(config: Config) -> Iterator[Trouble]:
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


def _channels(config: Config) -> Iterator[Trouble]:
    """Channels' rules are patterns, and none hides another."""
    seen: set[str] = set()
    for index, channel in enumerate(config.channels):
        place = ("channel", index, "name")
        for _, problem in _patterns((), (channel.name,)):
            yield place, problem
        if channel.name in seen:
            yield place, f"{shown(channel.name)} stands twice; the first match wins"
        seen.add(channel.name)


def _peers(config: Config) -> Iterator[Trouble]:
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
        if not peer.dial and config.listen is None:
            yield (
                (*place, "dial"),
                "missing: a peer without `dial` dials this node, which has no [listen]",
            )


def _identity(
    config: Config, peer: PeerSettings, place: tuple[str | int, ...]
) -> Iterator[Trouble]:
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
            f"missing: peer {shown(peer.name)} has neither a secret nor a certificate: expected"
            " `secret_file`, or `ca`, `certificate` and `key`",
        )


def _pairs(config: Config) -> bool:
    """Tell whether pairing has an authority here; who may not look gets the benefit of doubt."""
    try:
        return (Path(config.node.state_dir) / "pairing" / "ca.crt").exists()
    except OSError:
        return True


def _dial(peer: PeerSettings, place: tuple[str | int, ...]) -> Iterator[Trouble]:
    """URLs are well formed, each stands once, and none is open to the world unasked."""
    for index, text in enumerate(peer.dial):
        here = (*place, "dial", index)
        try:
            url = parse_url(text)
        except ValueError as error:
            yield here, f"{error}, got {shown(text)}"
            continue
        if text in peer.dial[:index]:
            yield here, f"{shown(text)} stands twice"
        if not (url.secure or peer.insecure or is_loopback(url.host)):
            yield (
                here,
                f"{shown(text)} goes beyond loopback without TLS: expected `wss://`,"
                " or `insecure = true` on a line that is safe by itself",
            )
        if not url.secure and not peer.secret_file:
            yield (
                here,
                f"{shown(text)} without TLS can't show a certificate: expected `secret_file`",
            )
