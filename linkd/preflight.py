"""Checks of the files that a configuration names: present, safe and valid."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from linkd.config import Config, PeerSettings, parse_url
from linkd.errors import ConfigError, Unavailable
from linkd.net.auth import load_secret
from linkd.net.certificates import load_certificates, load_key_pair
from linkd.net.proxy import choose_proxy, load_credentials
from linkd.net.tls import AUTHORITY_FILE
from linkd.status import CertificateRole


def check_files(config: Config) -> list[ConfigError | Unavailable]:
    """Return an error for each secret, certificate or key that can't be used.

    `Unavailable` means that a retry may succeed: the disk fails, or the file may be on a file
    system that is not mounted yet. Files that pairing creates at the daemon's start may still
    be missing.
    """
    return [error for key, read in _reads(config) if (error := _error(key, read)) is not None]


class CertificateEnd(NamedTuple):
    """When a certificate expires, in Unix seconds; `role` and `peer` as in `CertificateStatus`."""

    role: CertificateRole
    peer: str | None
    ends: float


def certificate_ends(config: Config) -> list[CertificateEnd]:
    """Return when the certificates of a configuration expire.

    Unreadable files are skipped: `check_files` reports them.
    """
    listen, place = config.listen, Path(config.node.state_dir) / "pairing"
    files: list[tuple[CertificateRole, str | None, str | Path | None]] = []
    if listen is not None:
        files.append(("own", None, listen.certificate))
        ca = listen.client_ca
        if (place / AUTHORITY_FILE).exists():
            files.append(("authority", None, place / AUTHORITY_FILE))
        if ca is not None and Path(ca) != place / AUTHORITY_FILE:
            files.append(("ca", None, ca))
    files.append(("api", None, config.api.certificate))
    for peer in config.peers:
        ours = peer.ca is not None and Path(peer.ca).parent == place
        files.append(("own", peer.name, peer.certificate))
        files.append(("authority" if ours else "ca", peer.name, peer.ca))
    found = []
    for role, name, path in files:
        if path is None:
            continue
        with suppress(ConfigError, Unavailable, OSError):
            ends = [each.not_valid_after_utc.timestamp() for each in load_certificates(path)]
            # Of a chain all must be valid, of trusted authorities one.
            first = min(ends) if role in ("own", "api") else max(ends)
            found.append(CertificateEnd(role, name, first))
    return found


def _error(key: str, read: Callable[[], object]) -> ConfigError | Unavailable | None:
    """Return why a file can't be used."""
    try:
        read()
    except Unavailable as error:
        return Unavailable(f"{key}: {error}")
    except ConfigError as error:
        missing = isinstance(error.__context__, FileNotFoundError)
        return (Unavailable if missing else ConfigError)(f"{key}: {error}")
    return None


def _reads(config: Config) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield each setting that names a file, and a function that reads it."""
    listen, api = config.listen, config.api
    if listen is not None:
        if not _to_be_made(config, listen.certificate):
            yield from _pair("listen.certificate", listen.certificate, listen.key)
        if not _to_be_made(config, listen.client_ca):
            yield from _authority("listen.client_ca", listen.client_ca)
    if api.http is not None:
        yield from _pair("api.certificate", api.certificate, api.private_key)
        for key in api.keys:
            yield from _secret(f"api.key ({key.name}).secret_file", key.secret_file)
    for peer in config.peers:
        name = f"peer ({peer.name})"
        yield from _secret(f"{name}.secret_file", peer.secret_file)
        yield from _authority(f"{name}.ca", peer.ca)
        yield from _pair(f"{name}.certificate", peer.certificate, peer.key)
        yield from _proxy(f"{name}.proxy", peer)


def _to_be_made(config: Config, path: str | None) -> bool:
    """Return whether `linkd.pairing.prepare` will create this file of `[listen]`."""
    if path is None or Path(path).parent != Path(config.node.state_dir) / "pairing":
        return False
    try:
        return not Path(path).exists()
    except OSError:
        return False


def _secret(key: str, path: str | None) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield a secret, if the setting is present."""
    if path is not None and not _hidden(path):
        yield key, lambda: load_secret(path)


def _proxy(key: str, peer: PeerSettings) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield the choice of a proxy, which may depend on the environment, and its credentials."""
    path = peer.proxy_secret_file
    if path is not None and not _hidden(path):
        yield f"{key}_secret_file", lambda: load_credentials(path)
    if peer.proxy is not None:
        yield key, lambda: [choose_proxy(peer.proxy, parse_url(url)) for url in peer.dial]


def _hidden(path: str) -> bool:
    """Return whether a path is in the unit's credentials, and hidden from this process.

    Systemd hides them from the command of a reload; the daemon has read them at its start.
    """
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    return (
        folder is not None
        and Path(path).is_relative_to(folder)
        and not os.access(folder, os.R_OK | os.X_OK)
    )


def _authority(key: str, path: str | None) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield authorities' certificates, if the setting is present."""
    if path is not None:
        yield key, lambda: load_certificates(path)


def _pair(
    key: str, certificate: str | None, private: str | None
) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield a certificate and its key, if the settings are present."""
    if certificate is not None and private is not None:
        yield key, lambda: load_key_pair(certificate, private)
