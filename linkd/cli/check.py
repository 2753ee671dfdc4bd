"""`linkd check`: validate the configuration and every file that it names; show what is in force."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from typing import Any

import msgspec

from linkd.cli import exits
from linkd.cli.options import add_config, config_path
from linkd.cli.output import duration
from linkd.cli.status import certificate_words, ends_soon
from linkd.clock import wall
from linkd.config import Config, files, load
from linkd.config.validation import quote, warnings
from linkd.errors import ConfigError, Unavailable
from linkd.protocol.json import rfc3339
from linkd.status import CertificateStatus


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's description, arguments and options."""
    parser.description = (
        "Check the configuration and every file that it names, and print what is in"
        " force, defaults too. Exit code 2 and one line for each error where something is wrong."
        " Where several instances serve the node ([cluster]), it warns of each one whose [[peer]]"
        " tables or private keys are not those here."
    )
    add_config(parser)
    parser.add_argument("--json", action="store_true", help="print it as one object")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing if all is well")


def run(arguments: argparse.Namespace) -> int:
    """Print what is in force and return 0; or print one line for each error and return 2.

    Raises:
        ConfigError: Errors in the files themselves, one line each.
    """
    paths = files(config_path(arguments))
    config = load(paths)
    from linkd.preflight import certificate_ends, check_files, look_at_bus  # noqa: PLC0415  # slow to load

    problems = check_files(config)
    for problem in problems:
        sys.stderr.write(f"linkd: {problem}\n")
    if problems:
        return exits.USAGE
    ends = [
        CertificateStatus(role, peer, end - wall()) for role, peer, end in certificate_ends(config)
    ]
    found = ""
    if config.log.engine == "postgresql":
        from linkd.log import inspect_postgresql  # noqa: PLC0415  # psycopg is optional

        found = inspect_postgresql(config.log)
    differing = list(_differing(config))
    bus, away = look_at_bus(config)
    found += f"\n# {bus}" if bus else ""
    for warning in [
        *warnings(config),
        *filter(None, [*map(ends_soon, ends), away]),
        *differing,
    ]:
        sys.stderr.write(f"linkd: warning: {warning}\n")
    if arguments.json:
        print(json.dumps(msgspec.to_builtins(config), indent=2))
    elif not arguments.quiet:
        print("\n".join(in_toml(config)) + "\n")
        if found:
            print(f"# {found}")
        for each in ends:
            words, left = certificate_words(each), each.expires_seconds
            end = f"ends in {duration(left)}" if left > 0 else f"ended {duration(-left)} ago"
            print(f"# {words}: {end}")
        for name, fingerprint in fingerprints(config):
            print(f"# fingerprint of the secret for {name}: {fingerprint}")
        print(f"# {', '.join(str(path) for path in paths)}: fine")
    return exits.OK


def _differing(config: Config) -> Iterator[str]:
    """Yield a sentence for each instance with other peers or private keys than here."""
    if config.cluster is None:
        return
    from linkd.log import shared_values  # noqa: PLC0415  # psycopg is optional
    from linkd.node import instances  # noqa: PLC0415  # slow to load
    from linkd.preflight import key_fingerprints  # noqa: PLC0415  # slow to load

    peers, keys = instances.peers_checksum(config), key_fingerprints(config)
    for name, value in sorted(shared_values(config.log, instances.INSTANCE).items()):
        try:
            note = instances.decode_note(value)
        except msgspec.DecodeError:
            continue  # of a newer version
        if name != config.cluster.instance and note.state != "stopped":
            found = instances.differences(peers, keys, note.peers, note.keys)
            seen = rfc3339(note.time)
            yield from (f"the instance {name} (it wrote last at {seen}): {text}" for text in found)


def fingerprints(config: Config) -> Iterator[tuple[str, str]]:
    """Yield each peer's name and its secret as eight digits, to be compared on both hosts.

    They are the first 32 bits of a SHA-256, which do not help to guess a random secret.
    """
    from linkd.net.auth import load_secret  # noqa: PLC0415  # it loads cryptography

    for peer in config.peers:
        if peer.secret_file is not None:
            try:
                digest = hashlib.sha256(b"linkd secret\0" + load_secret(peer.secret_file))
            except (ConfigError, Unavailable):
                continue  # systemd hides its credentials from this command
            yield peer.name, digest.hexdigest()[:8]


def in_toml(config: Config) -> Iterator[str]:
    """Yield the lines of a file with all settings of `config`, including defaults."""
    tables: dict[str, Any] = json.loads(msgspec.json.encode(config))
    for name, value in tables.items():
        if isinstance(value, dict):
            yield from _table(f"[{name}]", name, value)
        elif isinstance(value, list):
            for item in value:
                yield from _table(f"[[{name}]]", name, item)


def _table(heading: str, name: str, table: dict[str, Any]) -> Iterator[str]:
    """Yield one table's lines, and those of the arrays of tables within it."""
    yield ""
    yield heading
    nested = []
    for key, value in table.items():
        if isinstance(value, dict):
            nested.append((f"[{name}.{key}]", f"{name}.{key}", value))
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            nested += [(f"[[{name}.{key}]]", f"{name}.{key}", item) for item in value]
        elif value is not None and not (value == [] and (name, key) == ("api", "key")):
            yield f"{key} = {_value(value)}"
    for each in nested:
        yield from _table(*each)


def _value(value: object) -> str:
    """Return a value as TOML writes it."""
    if isinstance(value, list):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return quote(value)
