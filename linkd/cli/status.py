"""`linkd status`: the state of every link, and `--check` for monitoring."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Final

import msgspec

from linkd.cli import exits, http
from linkd.cli.exits import CommandError
from linkd.cli.options import add_socket
from linkd.cli.output import (
    Colour,
    Colours,
    clock_time,
    disk_stalled,
    duration,
    json_text,
    number,
    plural,
    printable,
    short,
    size,
    table,
)
from linkd.client.errors import NoDaemon
from linkd.errors import LinkdError
from linkd.status import CertificateStatus, LinkStatus, NodeStatus, RefusedConnection

WARN_FILL: Final = 0.8
WARN_CERTIFICATE_SECONDS: Final = 14 * 86_400.0
WARN_AUTHORITY_SECONDS: Final = 730 * 86_400.0
"""An authority of pairing has a successor by then, which a peer has got with a renewal."""

WARN_SKEW_SECONDS: Final = 5.0

_WORDS: Final = ("OK", "WARNING", "CRITICAL", "UNKNOWN")


def check_line(status: NodeStatus, peer: str | None = None) -> tuple[int, str]:
    """Judge a status and return one line with performance figures.

    Args:
        status: The node's.
        peer: Only this link, which then counts as required.

    Returns:
        0 up; 1 warning: a link that is not required is down, the log is filling, a certificate
        expires within 14 days or pairing's authority within two years, the status has warnings; 2 a
        required link is down, or publishes are refused; 3 no such peer. And the line.
    """
    links = [link for link in status.links if peer is None or link.peer == peer]
    if peer is not None and not links:
        return 3, f"LINKD UNKNOWN - no peer {peer} is configured"
    down = [link for link in links if link.state != "up"]
    broken = [link for link in down if link.required or peer is not None]
    complaints = [_down(link) for link in down] + _warnings(status, links)
    code = 2 if broken or status.log.full else 1 if complaints else 0
    text = "; ".join(complaints) or f"{plural(len(links), 'link')} up"
    return (
        code,
        f"LINKD {_WORDS[code]} - {printable(text).replace('|', '/')} | {_figures(status, links)}",
    )


def _down(link: LinkStatus) -> str:
    since = "" if link.down_since is None else f" since {clock_time(link.down_since)}"
    why = f" ({link.reason})" if link.reason else ""
    state = "" if link.state in _QUIET else link.state
    failed = ": ".join(part for part in (link.attempt_reason, link.attempt_detail) if part)
    tried = f", last attempt: {failed}" if failed else ""
    word = "unknown" if link.state == "unknown" else f"DOWN {state}".strip()
    if link.state == "unknown":
        since, why = f" at {link.instance}", ""
    return f"{link.peer} {word} for {duration(link.since_seconds)}{since}{why}{tried}"


def _warnings(status: NodeStatus, links: list[LinkStatus]) -> list[str]:
    """Return warnings of what will break soon."""
    log = status.log
    found = list(status.warnings)
    if log.full:
        found.append(f"publishes are refused: {log.full}")
    elif log.max_bytes and log.bytes / log.max_bytes >= WARN_FILL:
        found.append(f"log {log.bytes / log.max_bytes:.0%} full")
    if log.stalled_seconds is not None:
        found.append(disk_stalled(log.stalled_seconds))
    found += [text for each in status.certificates if (text := ends_soon(each)) is not None]
    names = {link.peer for link in links}
    found += [
        f"a second host at {each.address} uses the name of {each.claimed} or another node's log"
        for each in status.refused
        if each.reason == "duplicate" and each.claimed in names
    ]
    for link in links:
        if link.large_messages_lost:
            found.append(f"small messages pass to {link.peer}, large ones do not: MTU?")
        if link.nothing_passes:
            found.append(f"nothing passes to {link.peer}: its `receive` lacks all of our `send`")
        skew = link.clock_skew_seconds
        if skew is not None and abs(skew) > WARN_SKEW_SECONDS:
            found.append(f"clock of {link.peer} is {clock_words(skew)}")
        left = link.certificate_expires_seconds
        if left is not None and left < WARN_CERTIFICATE_SECONDS:
            found.append(f"certificate of {link.peer} expires in {duration(left)}")
        if link.not_relayed_records:
            found.append(
                f"{plural(link.not_relayed_records, 'record')} not relayed between this node and"
                f" {link.peer}: see `relay` in [[peer]] of both"
            )
    return found


def ends_soon(found: CertificateStatus) -> str | None:
    """Return a sentence for a certificate that expires soon; None for others.

    Peers' certificates are reported with their links: an absent peer may have a newer one.
    """
    limit = WARN_AUTHORITY_SECONDS if found.role == "authority" else WARN_CERTIFICATE_SECONDS
    left = found.expires_seconds
    if left >= limit or found.role == "peer":
        return None
    ended = f"expires in {duration(left)}" if left > 0 else f"expired {duration(-left)} ago"
    return f"{certificate_words(found)} {ended}"


def certificate_words(found: CertificateStatus) -> str:
    """Return what a certificate is for."""
    peer = found.peer
    return {
        "own": "own certificate" + (f" for {peer}" if peer else ""),
        "peer": f"certificate of {peer}",
        "authority": f"pairing authority of {peer}" if peer else "own pairing authority",
        "ca": f"trusted authority of {peer}" if peer else "trusted authority of dialers",
        "api": "certificate of the API",
    }[found.role]


def _figures(status: NodeStatus, links: list[LinkStatus]) -> str:
    up = sum(link.state == "up" for link in links)
    backlog = sum(link.backlog_records for link in links)
    return (
        f"up={up};;;0;{len(links)} backlog={backlog};;;0"
        f" log={status.log.bytes}B;;;0;{status.log.max_bytes}"
    )


WATCH_SECONDS: Final = 1.0
_UNKNOWN: Final = 3
_LOSSES: Final = 3
_REFUSED: Final = 5
_CLEAR: Final = "\x1b[H\x1b[2J"
_ALTERNATE: Final = ("\x1b[?1049h", "\x1b[?1049l")
"""Enter and leave the terminal's other screen: what was on the first one stays."""

_QUIET: Final = ("connecting", "opening", "resuming", "waiting")
"""States of a link that is down and being retried."""

_HEAD: Final = (
    "PEER",
    "STATE",
    "FOR",
    "RTT",
    "SILENT",
    "BACKLOG",
    "BYTES",
    "AGE",
    "NEXT",
    "CERT",
)
_AT: Final = "AT"
"""The instance whose link it is; a column where several serve the node."""


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's description, arguments and options."""
    parser.description = (
        "Print the state of the node and of every link. FOR: how long it has been up"
        " or down; SILENT: since the last byte received; NEXT: until the next attempt; CERT: until"
        " the certificate expires. Where several instances serve the node ([cluster]), the links"
        " are those of all; AT: the instance whose link it is, `unknown` if that is silent."
    )
    add_socket(parser)
    parser.add_argument("peer", nargs="?", metavar="PEER", help="only this link, in full")
    parser.add_argument(
        "--json", action="store_true", help="print an object; with --watch one a line"
    )
    parser.add_argument("--watch", action="store_true", help="redraw every second until ^C")
    parser.add_argument("--check", action="store_true", help="one line and an exit code for Nagios")


def run(arguments: argparse.Namespace) -> int:
    """Print the status once, or repeatedly; with `--check` one line and Nagios' codes."""
    if arguments.check:
        return _check(arguments)
    if arguments.watch:
        return _watch(arguments)
    print(_drawn(arguments, Colours()))
    return exits.OK


def _check(arguments: argparse.Namespace) -> int:
    try:
        code, line = check_line(fetch_status(arguments), arguments.peer)
    except (LinkdError, CommandError) as error:
        code, line = _UNKNOWN, f"LINKD UNKNOWN - {error}"
    print(line)
    return code


def _watch(arguments: argparse.Namespace) -> int:
    paint = Colours()
    terminal = sys.stdout.isatty() and not arguments.json
    if not terminal:
        return _redraw(arguments, paint, "")
    enter, leave = _ALTERNATE
    try:
        sys.stdout.write(enter)
        return _redraw(arguments, paint, _CLEAR)
    finally:
        sys.stdout.write(leave)
        sys.stdout.flush()


def _redraw(arguments: argparse.Namespace, paint: Colours, clear: str) -> int:
    while True:
        try:
            drawn = _drawn(arguments, paint)
        except NoDaemon as error:
            if arguments.json:
                raise
            drawn = paint(f"linkd: {error}", "red")
        sys.stdout.write(f"{clear}{drawn}\n")
        sys.stdout.flush()
        time.sleep(WATCH_SECONDS)


def fetch_status(arguments: argparse.Namespace) -> NodeStatus:
    """Return the daemon's status; raise NoDaemon or ClientError."""
    return http.get(arguments, "/v1/status").decode(NodeStatus, "a status")


def _drawn(arguments: argparse.Namespace, paint: Colours) -> str:
    answer = http.get(arguments, "/v1/status")
    status = answer.decode(NodeStatus, "a status")
    if arguments.peer is None:
        return json_text(answer.body.strip()) if arguments.json else node_text(status, paint)
    for link in status.links:
        if link.peer == arguments.peer:
            if arguments.json:
                return json_text(msgspec.json.encode(link))
            mine = [each for each in status.refused if each.claimed == link.peer]
            return "\n".join([link_text(link, paint), *refused_lines(mine, paint)])
    names = ", ".join(link.peer for link in status.links) or "none"
    raise CommandError(
        f"no peer {arguments.peer!r} is configured; there are: {names}", exits.REFUSED
    )


def node_text(status: NodeStatus, paint: Colours) -> str:
    """Return the table of a node and its links; sentences are never cut."""
    log = status.log
    fill = log.bytes / log.max_bytes if log.max_bytes else 0.0
    lines = [
        f"{paint(status.node, 'bold')}{_here(status)}  linkd {printable(status.version)}"
        f"  running {duration(status.uptime_seconds)}",
        f"log {_fill(fill, paint)} of {size(log.max_bytes)}, next offset {log.next:,}",
    ]
    lines += certificate_lines(status.certificates, paint)
    if log.full:
        lines.append(paint(f"publishes are refused: {printable(log.full)}", "red"))
    if log.stalled_seconds is not None:
        lines.append(paint(disk_stalled(log.stalled_seconds), "red"))
    lines += [paint(printable(loss), "red") for loss in log.losses[-_LOSSES:]]
    lines += [paint(printable(warning), "red") for warning in status.warnings]
    if status.links:
        lines += ["", *_links(status.links, paint)]
    else:
        lines.append("no peer is configured")
    lines += refused_lines(status.refused, paint)
    if status.consumers:
        rows = [
            [f"{c.owner}/{c.name}", number(c.next), number(c.lag_records)] for c in status.consumers
        ]
        head = ("CONSUMER", "NEXT OFFSET", "OFFSETS TO END")
        lines += ["", *table(head, rows, frozenset((1, 2)))]
    return "\n".join(lines)


def _here(status: NodeStatus) -> str:
    """Return which instance of a node answers, where there are several."""
    return "" if status.instance is None else f" at {printable(status.instance)}"


def certificate_lines(found: list[CertificateStatus], paint: Colours) -> list[str]:
    """Return one line for this node's own certificates; in red one for each that expires soon."""
    lines = [paint(text, "red") for each in found if (text := ends_soon(each)) is not None]
    own = [each for each in found if each.peer is None and each.expires_seconds > 0]
    if own:
        ends = (f"{certificate_words(each)} {duration(each.expires_seconds)}" for each in own)
        lines.insert(0, f"until the end of: {', '.join(ends)}")
    return lines


def refused_lines(found: list[RefusedConnection], paint: Colours) -> list[str]:
    """Return the connections refused in the last hour; a second host with a peer's name is red."""
    lines = [""] if found else []
    for each in found[:_REFUSED]:
        name = f" {each.claimed!r}" if each.claimed else ""
        times = f" ({each.count:,} times in a row)" if each.count > 1 else ""
        text = (
            f"refused{name} from {each.address} {duration(each.seconds_ago)} ago{times}:"
            f" {each.reason}: {each.detail}"
        )
        lines.append(paint(printable(text), "red" if each.reason == "duplicate" else "dim"))
    if len(found) > _REFUSED:
        lines.append(paint(f"and {len(found) - _REFUSED} more: --json lists them", "dim"))
    return lines


def _fill(fill: float, paint: Colours) -> str:
    text = f"{fill:.0%}"
    return paint(text, "red") if fill >= 0.9 else paint(text, "yellow") if fill >= 0.7 else text


def _links(links: list[LinkStatus], paint: Colours) -> list[str]:
    """Return the table of links; below each link why it is down, or was down last."""
    heads, cells = list(_HEAD), [_row(link) for link in links]
    if any(link.instance is not None for link in links):
        heads.append(_AT)
        for cell, link in zip(cells, links, strict=True):
            cell.append(link.instance or "–")
    head, *rows = table(heads, cells, frozenset(range(2, len(_HEAD))))
    lines = [head]
    for link, row in zip(links, rows, strict=True):
        word = state_word(link)
        lines.append(row.replace(word, _state(link, paint), 1) if paint.on else row)
        lines += [paint(f"  {line}", "dim") for line in why_lines(link)]
        if abs(link.clock_skew_seconds or 0.0) > WARN_SKEW_SECONDS:
            lines.append(paint(f"  its clock is {clock_words(link.clock_skew_seconds)}", "yellow"))
    return lines


def state_word(link: LinkStatus) -> str:
    """Return `up`, `unknown`, `DOWN`, or `DOWN` and a state that needs an operator."""
    if link.state in ("up", "unknown"):
        return link.state
    return "DOWN" if link.state in _QUIET else f"DOWN {link.state}"


def _row(link: LinkStatus) -> list[str]:
    return [
        link.peer,
        state_word(link),
        duration(link.since_seconds),
        duration(link.rtt_seconds),
        duration(link.last_heard_seconds),
        short(link.backlog_records),
        size(link.backlog_bytes).replace(" ", ""),
        duration(link.backlog_age_seconds),
        duration(link.next_attempt_seconds),
        duration(link.certificate_expires_seconds),
    ]


def _state(link: LinkStatus, paint: Colours) -> str:
    """Return the word for the state: red if an operator must act, or the link is required."""
    serious = link.required or link.state in ("rejected", "diverged")
    colour: Colour = "green" if link.state == "up" else "red" if serious else "yellow"
    return paint(state_word(link), colour)


def why_lines(link: LinkStatus) -> list[str]:
    """Return why a link is down, with its last attempt; of one that is up, its last outage."""
    why = _sentence(link.reason, link.detail)
    if link.state == "up":
        return [f"last outage: {why}"] if link.reason else []
    since = "" if link.down_since is None else f", down since {clock_time(link.down_since)}"
    if link.state == "unknown":
        return [why]
    lines = [f"{why or link.state}{since}"]
    if link.attempts or link.attempt_reason:
        tries = plural(link.attempts, "attempt")
        age = link.attempt_seconds
        under_way = "" if age is None else f", this one {duration(age)} old"
        failed = _sentence(link.attempt_reason, link.attempt_detail)
        lines.append(f"{failed or link.state} ({tries}{under_way})")
    return lines


def _sentence(reason: str | None, detail: str | None) -> str:
    """Return a reason and its detail on one line."""
    return printable(": ".join(part for part in (reason, detail) if part))


def clock_words(skew: float | None) -> str:
    """Return how a peer's clock differs from ours; below a second it is not measurable."""
    if skew is None:
        return "–"
    if abs(skew) < 1.0:
        return "as this host's, to a second"
    return f"{duration(abs(skew))} {'ahead of' if skew > 0 else 'behind'} this host's"


def _last_heard(link: LinkStatus) -> str:
    heard = link.last_heard_seconds
    return "–" if heard is None else f"{duration(heard)} ago"


def link_text(link: LinkStatus, paint: Colours) -> str:
    """Return all that is known of one link, in lines."""
    rows = [
        ("state", f"{_state(link, paint)} for {duration(link.since_seconds)}"),
        ("down since", clock_time(link.down_since) if link.down_since else "–"),
        ("last heard", _last_heard(link)),
        ("role", link.role + (", required" if link.required else "")),
        ("address", printable(link.address or "–")),
        ("why", (why_lines(link) or ["–"])[0]),
        ("attempts", number(link.attempts)),
        ("last failed attempt", _sentence(link.attempt_reason, link.attempt_detail) or "–"),
        ("this attempt's age", duration(link.attempt_seconds)),
        ("next attempt in", duration(link.next_attempt_seconds)),
        ("round trip", duration(link.rtt_seconds)),
        ("silence", duration(link.silence_seconds)),
        ("compressed", {True: "yes", False: "no", None: "–"}[link.compressed]),
        (
            "backlog",
            f"{number(link.backlog_records)} records, {size(link.backlog_bytes)},"
            f" oldest {duration(link.backlog_age_seconds)}",
        ),
        ("sent, received", f"{number(link.sent_records)}, {number(link.received_records)} records"),
        ("peer's clock", clock_words(link.clock_skew_seconds)),
        ("certificate expires in", duration(link.certificate_expires_seconds)),
        ("peer's version", printable(link.peer_version or "–")),
        ("generation", link.generation or "–"),
    ]
    if link.instance is not None:
        rows.insert(1, ("instance", printable(link.instance)))
    return "\n".join([paint(link.peer, "bold"), *(f"  {name:<23} {value}" for name, value in rows)])
