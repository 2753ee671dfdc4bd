"""Checks of the files that a configuration names: present, safe and valid."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from linkd.config import Config
from linkd.config.addresses import parse_url
from linkd.errors import ConfigError, Unavailable
from linkd.net.auth import load_secret, read_secret_file
from linkd.net.certificates import load_certificates, load_key_pair, public_bytes
from linkd.net.proxy import choose_proxy, load_credentials
from linkd.net.tls import AUTHORITY_FILE
from linkd.node.bus import inspect_bus
from linkd.status import CertificateRole


def check_files(config: Config) -> list[ConfigError | Unavailable]:
    """Return an error for each secret, certificate or key that can't be used.

    `Unavailable` means that a retry may succeed: the disk fails, or the file may be on a file
    system that is not mounted yet. Files that pairing creates at the daemon's start may still
    be missing.
    """
    errors = (_error(key, read, paths) for key, read, paths in _reads(config))
    return [error for error in errors if error is not None]


def look_at_bus(config: Config) -> tuple[str, str]:
    """Return what is found at the bus of a cluster, and why it can't be reached; one is empty.

    Linkd runs without it, so that is no error. Where the password is hidden nothing is found.

    Raises:
        ConfigError: It refuses the password, or redis-py is missing.
    """
    cluster = config.cluster
    if cluster is None or cluster.bus is None or _hidden(cluster.bus_password_file or ""):
        return "", ""
    try:
        return inspect_bus(cluster), ""
    except Unavailable as error:
        return "", f"{error}: volatile messages and presence stay at this instance"


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


def key_fingerprints(config: Config) -> dict[str, str]:
    """Return a fingerprint of each private key, by the setting of its certificate.

    Instances of one node have the same private keys. Unreadable files are skipped. It is the first
    64 bits of a SHA-256 of the SubjectPublicKeyInfo: a certificate that was renewed for the same
    key has the same.
    """
    listen, place = config.listen, Path(config.node.state_dir) / "pairing"
    files: dict[str, str | Path | None] = {"api.certificate": config.api.certificate}
    if listen is not None:
        files["listen.certificate"] = listen.certificate
        if (place / AUTHORITY_FILE).exists():
            files["authority of pairing"] = place / AUTHORITY_FILE
    for peer in config.peers:
        files[f"certificate of the peer {peer.name}"] = peer.certificate
    found = {}
    for setting, path in files.items():
        if path is None:
            continue
        with suppress(ConfigError, Unavailable, OSError):
            key = load_certificates(path)[0].public_key()
            found[setting] = hashlib.sha256(public_bytes(key)).hexdigest()[:16]
    return found


def _error(
    key: str, read: Callable[..., object], paths: tuple[str | None, ...]
) -> ConfigError | Unavailable | None:
    """Return why the files of a setting can't be used; nothing where it is not set."""
    if any(path is None or _hidden(path) for path in paths):
        return None
    try:
        read(*paths)
    except Unavailable as error:
        return Unavailable(f"{key}: {error}")
    except ConfigError as error:
        missing = isinstance(error.__context__, FileNotFoundError)
        return (Unavailable if missing else ConfigError)(f"{key}: {error}")
    return None


def _reads(
    config: Config,
) -> Iterator[tuple[str, Callable[..., object], tuple[str | None, ...]]]:
    """Yield each setting that names files, how they are read, and the files; None: not set."""
    listen, api = config.listen, config.api
    if listen is not None:
        if not _to_be_made(config, listen.certificate):
            yield "listen.certificate", load_key_pair, (listen.certificate, listen.key)
        if not _to_be_made(config, listen.client_ca):
            yield "listen.client_ca", load_certificates, (listen.client_ca,)
    if api.http is not None:
        yield "api.certificate", load_key_pair, (api.certificate, api.private_key)
        for key in api.keys:
            yield f"api.key ({key.name}).secret_file", load_secret, (key.secret_file,)
    if config.cluster is not None:
        yield "cluster.bus_password_file", read_secret_file, (config.cluster.bus_password_file,)
        yield "cluster.bus_ca", load_certificates, (config.cluster.bus_ca,)
    for peer in config.peers:
        name = f"peer ({peer.name})"
        yield f"{name}.secret_file", load_secret, (peer.secret_file,)
        yield f"{name}.ca", load_certificates, (peer.ca,)
        yield f"{name}.certificate", load_key_pair, (peer.certificate, peer.key)
        yield f"{name}.proxy_secret_file", load_credentials, (peer.proxy_secret_file,)
        yield f"{name}.proxy", partial(_choose_proxies, peer.dial), (peer.proxy,)


def _choose_proxies(urls: Iterable[str], setting: str) -> None:
    """Choose a proxy for each URL: what the environment has is checked too."""
    for url in urls:
        choose_proxy(setting, parse_url(url))


def _to_be_made(config: Config, path: str | None) -> bool:
    """Return whether `linkd.pairing.prepare` will create this file of `[listen]`."""
    if path is None or Path(path).parent != Path(config.node.state_dir) / "pairing":
        return False
    try:
        return not Path(path).exists()
    except OSError:
        return False


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
