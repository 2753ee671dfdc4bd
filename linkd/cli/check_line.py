"""`linkd status --check`: one line and an exit code as Nagios and its kin want them."""

from __future__ import annotations

from typing import Final

from linkd.cli.text import clock_time, disk_stalled, duration, plural, printable
from linkd.status import CertificateStatus, LinkStatus, NodeStatus

WARN_FILL: Final = 0.8
WARN_CERTIFICATE_SECONDS: Final = 14 * 86_400.0
WARN_AUTHORITY_SECONDS: Final = 730 * 86_400.0
"""An authority of pairing has a successor by then, which a peer has got with a renewal."""

WARN_SKEW_SECONDS: Final = 5.0

_WORDS: Final = ("OK", "WARNING", "CRITICAL", "UNKNOWN")


def check_line(status: NodeStatus, peer: str | None = None) -> tuple[int, str]:
    """Judge a status and say it in one line with performance figures.

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
    told = "; ".join(complaints) or f"{plural(len(links), 'link')} up"
    return (
        code,
        f"LINKD {_WORDS[code]} - {printable(told).replace('|', '/')} | {_figures(status, links)}",
    )


def _down(link: LinkStatus) -> str:
    since = "" if link.down_since is None else f" since {clock_time(link.down_since)}"
    why = f" ({link.reason})" if link.reason else ""
    state = "" if link.state in ("connecting", "opening", "resuming", "waiting") else link.state
    failed = ": ".join(part for part in (link.attempt_reason, link.attempt_detail) if part)
    tried = f", last attempt: {failed}" if failed else ""
    word = f"DOWN {state}".strip()
    return f"{link.peer} {word} for {duration(link.since_seconds)}{since}{why}{tried}"


def _warnings(status: NodeStatus, links: list[LinkStatus]) -> list[str]:
    """Return what is not yet broken but will be."""
    log = status.log
    found = list(status.warnings)
    if log.full:
        found.append(f"publishes are refused: {log.full}")
    elif log.max_bytes and log.bytes / log.max_bytes >= WARN_FILL:
        found.append(f"log {log.bytes / log.max_bytes:.0%} full")
    if log.stalled_seconds is not None:
        found.append(disk_stalled(log.stalled_seconds))
    found += [told for each in status.certificates if (told := ends_soon(each)) is not None]
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
            where = "ahead of" if skew > 0 else "behind"
            found.append(f"clock of {link.peer} is {duration(abs(skew))} {where} this host's")
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
    """Return a sentence for a certificate that ends soon; None for others.

    Those of peers are the links': a peer that is away may have a newer one.
    """
    limit = WARN_AUTHORITY_SECONDS if found.role == "authority" else WARN_CERTIFICATE_SECONDS
    left = found.expires_seconds
    if left >= limit or found.role == "peer":
        return None
    ended = f"expires in {duration(left)}" if left > 0 else f"expired {duration(-left)} ago"
    return f"{certificate_words(found)} {ended}"


def certificate_words(found: CertificateStatus) -> str:
    """Return what a certificate is."""
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
