"""`linkd invite`, `linkd join`, `linkd peers`, `linkd revoke`."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import struct
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from linkd.cli import exits, http, output
from linkd.cli.exits import CommandError
from linkd.cli.options import add_socket, config_path, socket_path, wait_seconds
from linkd.cli.output import print_json
from linkd.client.errors import Refused

if TYPE_CHECKING:
    from linkd.pairing.client import Joining

_PREFIX: Final = "/v1/pairing"
_POLL_SECONDS: Final = 0.25


def add(parser: argparse.ArgumentParser) -> None:
    """Add description, arguments and options of one of the four commands."""
    {
        "linkd invite": _add_invite,
        "linkd join": _add_join,
        "linkd peers": _add_peers,
        "linkd revoke": _add_revoke,
    }[parser.prog](parser)


def _add_invite(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Make a code with which another node joins this one: good for ten minutes, once."
    )
    add_socket(parser)
    parser.add_argument("name", metavar="NAME", help="the other node's `node.name`")
    parser.add_argument("--address", metavar="HOST[:PORT]", help="where it reaches this node")
    parser.add_argument(
        "--send",
        metavar="PATTERN",
        nargs="+",
        help="channels that this node sends to it (default: as in its [[peer]], or NAME.>)",
    )
    parser.add_argument(
        "--receive",
        metavar="PATTERN",
        nargs="+",
        help="channels that this node takes from it (default: as in its [[peer]], or >)",
    )
    parser.add_argument(
        "--relay",
        action="store_true",
        help="a gateway: it may pass on what began at other nodes",
    )
    parser.add_argument("--json", action="store_true", help="print an object")


def _add_join(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Join the node that made the code: fetch a certificate, write the [[peer]] into"
        " linkd.d, have the daemon reload, and report the first `up`."
    )
    add_socket(parser)
    parser.add_argument(
        "code", metavar="CODE", nargs="+", help="what `linkd invite` printed; - reads it"
    )
    parser.add_argument(
        "--timeout", type=wait_seconds, default=30.0, metavar="S", help="wait so long for `up` (30)"
    )
    parser.add_argument(
        "--proxy",
        metavar="URL",
        help="reach the node through a proxy, http://HOST:PORT, socks5://HOST:PORT or environment;"
        " the new [[peer]] names it too",
    )
    parser.add_argument(
        "--proxy-secret-file",
        metavar="FILE",
        type=os.path.abspath,
        help="file whose first line is USER:PASSWORD for the proxy",
    )


def _add_peers(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "List who was invited or paired, whom this node has joined, and when the"
        " certificates end; then the peers"
        " whose [[peer]] is missing, and what they are owed."
    )
    parser.add_argument(
        "--forget", metavar="NAME", help="end the cursor of a peer whose [[peer]] is missing"
    )
    parser.add_argument(
        "--yes", action="store_true", help="do it; without it only what would go is printed"
    )
    add_socket(parser)
    parser.add_argument("--json", action="store_true", help="print one object a line")


def _add_revoke(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Revoke a peer's certificates and codes, at once; a link that is up is cut."
    )
    add_socket(parser)
    parser.add_argument("name", metavar="NAME", help="the peer, as `linkd peers` names it")


def run(arguments: argparse.Namespace) -> int:
    """Run whichever of the four was parsed."""
    commands = {"invite": _invite, "join": _join, "peers": _peers, "revoke": _revoke}
    return commands[arguments.command](arguments)


def _invite(arguments: argparse.Namespace) -> int:
    """Print the code, and how long it is valid."""
    asked = {
        "name": arguments.name,
        "address": arguments.address,
        "send": arguments.send,
        "receive": arguments.receive,
        "relay": arguments.relay,
    }
    reply = http.post(arguments, f"{_PREFIX}/invite", asked).json()
    if arguments.json:
        sys.stdout.write(
            f'{{"code":"{reply["code"]}","expires_seconds":{reply["expires_seconds"]}}}\n'
        )
        return exits.OK
    sys.stderr.write(
        f"On {arguments.name}, within {reply['expires_seconds'] / 60:.0f} minutes, once:\n"
    )
    sys.stdout.write(f"linkd join {reply['code']}\n")
    return exits.OK


def _join(arguments: argparse.Namespace) -> int:
    """Join, have the daemon reload, and report the first `up`."""
    from linkd.config import files, load  # noqa: PLC0415  # slow to load
    from linkd.net.proxy import ProxySettings  # noqa: PLC0415
    from linkd.pairing.client import HubUnreachable, join  # noqa: PLC0415
    from linkd.pairing.messages import PairingRefused  # noqa: PLC0415

    paths = files(config_path(arguments))
    config = load(paths)
    proxy = ProxySettings(arguments.proxy, arguments.proxy_secret_file)
    if proxy.secret_file and not proxy.proxy:
        raise CommandError("--proxy-secret-file is for a proxy: add --proxy URL")
    try:
        done = join(_code(arguments.code), config, paths[0].parent / "linkd.d", _say, proxy)
    except PairingRefused as error:
        raise CommandError(str(error), exits.REFUSED) from None
    except HubUnreachable as error:
        raise CommandError(str(error), exits.NEGATIVE) from None
    _say(f"wrote {done.file}")
    path = socket_path(arguments)
    if not _reload(path):
        _say("the daemon is not running: start it, and the link comes up")
        return exits.OK
    return _wait_up(path, done, arguments.timeout)


def _code(words: list[str]) -> str:
    """Return the code: as typed, or read, so that other users of this host can't see it."""
    return sys.stdin.readline() if words == ["-"] else "".join(words)


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _reload(path: str) -> bool:
    """Have the daemon at the socket reload its configuration; return whether there is one.

    Its process id comes from the socket itself (SO_PEERCRED), so no file can name a wrong one.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(3.0)
        try:
            probe.connect(path)
        except OSError:
            return False
        size = struct.calcsize("3i")
        pid, _, _ = struct.unpack(
            "3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        )
    try:
        os.kill(pid, signal.SIGHUP)
    except PermissionError:
        raise CommandError(
            f"process {pid} may not be signalled by this user: reload it yourself", exits.REFUSED
        ) from None
    return True


def _wait_up(path: str, done: Joining, timeout: float) -> int:
    """Watch the link until it is up."""
    from linkd.client.http import call, expect  # noqa: PLC0415

    began = time.monotonic()
    last = "not configured yet"
    kicked = False
    while time.monotonic() - began < timeout:
        for link in expect(call(path, "GET", "/v1/status")).json()["links"]:
            if link["peer"] == done.peer:
                if link["state"] == "up":
                    _say(f"{done.peer} is up at {done.url}")
                    return exits.OK
                last = link["detail"] or link["state"]
                if not kicked and link["state"] in ("waiting", "rejected"):
                    kicked = True  # after a revocation its next attempt may be a minute away
                    call(path, "POST", f"/v1/peers/{http.quoted(done.peer)}/kick")
        time.sleep(_POLL_SECONDS)
    raise CommandError(
        f"{done.peer} is not up after {timeout:g} s: {output.printable(last)}", exits.TIMED_OUT
    )


def _peers(arguments: argparse.Namespace) -> int:
    """Print the invited and paired nodes, and those missing from the configuration."""
    if arguments.forget is not None:
        return _forget(arguments)
    rows = _paired(arguments)
    status = http.get(arguments, "/v1/status").json()
    absent = status.get("absent", [])
    rows += _hubs(status)
    if arguments.json:
        rows += [{"name": row.pop("peer"), "state": "absent", **row} for row in absent]
        for row in rows:
            print_json(row)
        return exits.OK
    if not rows:
        _say("this node is not paired with any other: see `linkd invite` and `linkd join`")
    else:
        cells = [
            [
                row["name"],
                row["state"],
                output.duration(row["expires_seconds"]),
                "yes" if row["configured"] else "no",
            ]
            for row in rows
        ]
        _table(["PEER", "STATE", "ENDS IN", "CONFIGURED"], cells, frozenset({2}))
    if absent:
        _say("\nNo longer configured; restore the [[peer]], or `linkd peers --forget NAME`:")
        cells = [
            [
                row["peer"],
                str(row["owed_records"]),
                str(row["owed_bytes"]),
                output.duration(row["forgotten_seconds"]),
            ]
            for row in absent
        ]
        _table(["PEER", "RECORDS OWED", "BYTES", "FORGOTTEN IN"], cells, frozenset({1, 2, 3}))
    return exits.OK


def _hubs(status: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the nodes that this one has joined: those it dials with a certificate of its own."""
    ends = {
        each["peer"]: each["expires_seconds"]
        for each in status.get("certificates", [])
        if each["role"] == "own" and each["peer"] is not None
    }
    return [
        {
            "name": link["peer"],
            "state": "joined" if ends[link["peer"]] > 0 else "expired",
            "expires_seconds": ends[link["peer"]],
            "configured": True,
        }
        for link in status.get("links", [])
        if link["role"] == "dialer" and link["peer"] in ends
    ]


def _paired(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the invited and paired nodes; none if this node does not use pairing."""
    try:
        rows: list[dict[str, Any]] = http.get(arguments, f"{_PREFIX}/peers").json()["peers"]
    except Refused as refused:
        if refused.status != 404:
            raise
        return []
    return rows


def _table(head: list[str], cells: list[list[str]], right: frozenset[int]) -> None:
    for line in output.table(head, cells, right):
        sys.stdout.write(f"{line}\n")


def _forget(arguments: argparse.Namespace) -> int:
    """Print how many records would be dropped, and return 1; with `--yes` forget the peer."""
    name = arguments.forget
    target = f"/v1/peers/{http.quoted(name)}/forget"
    reply = http.post(arguments, target, {"confirmed": bool(arguments.yes)}).json()
    owed = f"{output.plural(reply['records'], 'record')} ({reply['bytes']:,} bytes)"
    if arguments.yes:
        print(f"{name} is forgotten; it was owed {owed}")
        return exits.OK
    print(f"{name} is owed {owed}, which it would not get any more")
    print("nothing was changed; add --yes to do it")
    return exits.NEGATIVE


def _revoke(arguments: argparse.Namespace) -> int:
    """Revoke a peer's certificates and codes, and print what the listener refuses now."""
    target = f"{_PREFIX}/peers/{http.quoted(arguments.name)}/revoke"
    count = http.post(arguments, target).json()["certificates"]
    refused = (
        f"{output.plural(count, 'certificate')} of {arguments.name}"
        f" {'is' if count == 1 else 'are'} revoked, and its codes are void"
        if count
        else f"the codes of {arguments.name} are void; it has no certificate that is still valid"
    )
    _say(
        f"{refused}. Its [[peer]] and what is owed to it stay: delete its file in linkd.d to forget"
        " both"
    )
    return exits.OK
