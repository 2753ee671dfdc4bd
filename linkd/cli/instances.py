"""`linkd instances`: the instances that serve this node."""

from __future__ import annotations

import argparse

import msgspec

from linkd.cli import exits, http
from linkd.cli.options import add_socket
from linkd.cli.output import Colour, Colours, duration, number, print_json, printable, table
from linkd.status import InstanceStatus

_HEAD = ("INSTANCE", "STATE", "VERSION", "RUNNING", "SEEN", "LINKS", "HOST", "API")


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's description, arguments and options."""
    parser.description = (
        "List the instances that serve this node ([cluster] in the configuration), as any of them"
        " knows them. SEEN: since each wrote of itself, every 5 s; beyond 15 s it is `silent`, and"
        " its links are `unknown` until they are up elsewhere. LINKS: those that are up there. The"
        " keeper deletes what nobody needs any more, and dials. An instance that has another"
        " [[peer]] or private key than the one that answers is named."
    )
    add_socket(parser)
    parser.add_argument("--json", action="store_true", help="print one object a line")


def run(arguments: argparse.Namespace) -> int:
    """List the instances."""
    answer = http.get(arguments, "/v1/instances")
    if arguments.json:
        for one in answer.json()["instances"]:
            print_json(one)
        return exits.OK
    found = answer.decode(_Instances, "a list of instances").instances
    lines = instance_lines(found, Colours())
    print("\n".join(lines) if found else "this node has no [cluster]: it is its only instance")
    return exits.OK


class _Instances(msgspec.Struct):
    instances: list[InstanceStatus]


def instance_lines(found: list[InstanceStatus], paint: Colours) -> list[str]:
    """Return a table of instances; below each how it differs from the one that answers."""
    rows = [
        [
            one.instance + (" (here)" if one.here else ""),
            one.state + (", keeper" if one.keeper else ""),
            printable(one.version),
            duration(one.uptime_seconds if one.state in ("up", "draining") else None),
            duration(one.seen_seconds),
            number(one.links),
            printable(one.host),
            printable(one.api or "–"),
        ]
        for one in found
    ]
    head, *lines = table(_HEAD, rows, frozenset((3, 4, 5)))
    shown = [head]
    for one, line in zip(found, lines, strict=True):
        colours: dict[str, Colour] = {"silent": "red", "draining": "yellow"}
        shown.append(paint(line, colours[one.state]) if one.state in colours else line)
        shown += [paint(f"  {printable(text)}", "red") for text in one.differs]
    return shown
