"""The catalogue of log events: name, fields, level, meaning and remedy of each."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Literal

import msgspec

Level = Literal["debug", "info", "warn", "error"]

COMMON_FIELDS = ("peer", "generation", "address", "old", "new", "reason", "detail")
"""Fields that any line may have, in this order, ahead of its own."""


class EventSpec(msgspec.Struct, frozen=True):
    """One event in the log.

    Args:
        name: Stable, since programs search for it.
        level: The level unless the caller gives another.
        fields: Its own fields, beside the common ones.
        meaning: What has happened.
        action: What the reader does about it.
        folds: Two lines with equal values of these fields are repeats; empty: never folded.
    """

    name: str
    level: Level
    fields: tuple[str, ...]
    meaning: str
    action: str
    folds: tuple[str, ...] = ()


def _event(
    level: Level,
    name: str,
    meaning: str,
    action: str = "Nothing.",
    fields: str = "",
    folds: str = "",
) -> EventSpec:
    """Return a row of the table; `fields` and `folds` are words separated by spaces."""
    return EventSpec(name, level, tuple(fields.split()), meaning, action, tuple(folds.split()))


debug, info, warn, error = (partial(_event, level) for level in ("debug", "info", "warn", "error"))


_LINK_DOWN = "noticed_after_seconds delay_seconds attempts"
_FIX = "Read `detail`, fix the cause on this host or the peer, then run `linkd kick PEER`."

LINK_EVENTS = (
    # Links
    debug("link.connecting", "An attempt has begun."),
    debug("link.opening", "TCP is connected; TLS, upgrade and hello are in progress."),
    debug("link.resuming", "The peer has sent its hello; both ends compare their positions."),
    info(
        "link.up",
        "The link is up. `outage_seconds` counts from the last byte received before.",
        fields="outage_seconds attempts replayed_records peer_version",
    ),
    warn(
        "link.waiting",
        "The link is down and will be dialed again, by us or by the peer.",
        "If it persists: `linkd status PEER`; docs/operations.md has the runbook.",
        fields=_LINK_DOWN,
        folds="peer reason",
    ),
    error(
        "link.rejected",
        "The peer refuses us, or we the peer: identity, certificate, path or protocol.",
        _FIX,
        fields=_LINK_DOWN,
        folds="peer reason detail",
    ),
    error(
        "link.diverged",
        "The two logs no longer have anything in common, as after a restore from a backup; "
        "nothing is sent.",
        "`linkd resync PEER` shows what would be sent again or lost; then repeat it with `--yes`.",
    ),
    info("link.stopped", "The link has ended: its peer was removed, or the daemon stops."),
    info(
        "link.drained",
        "All records that waited during an outage are on the peer's disk.",
        fields="drained_seconds replayed_records",
    ),
    info(
        "link.replaced", "The peer reconnected and took over the session of its older connection."
    ),
    error(
        "link.cloned-host",
        "Two hosts use the same name and take over from each other, or the peer claims another "
        "node's log as its own: a cloned host. It is refused.",
        "Give one of them another `node.name` and an empty `state_dir`.",
        folds="peer",
    ),
    error(
        "link.gap",
        "Records that the peer was owed are gone from the log: `first` to `next` - 1.",
        "Restore them from their source if they matter; raise `log.max_bytes`.",
        fields="first next records",
    ),
    error(
        "link.records-lost",
        "A log is older than it was before: these offsets are lost on the end that `detail` names.",
        "Find out why the disk went back in time; fetch the records from the other end.",
        fields="first next records",
    ),
    warn(
        "link.large-messages-lost",
        "Several connections were lost while they sent the same records. A probe of 1,100 bytes "
        "reached the peer, one of 16 KiB did not: something on the path drops large packets.",
        "Find where the MTU is smaller and allow ICMP there, or lower the interface's MTU. "
        "docs/operations.md.",
        folds="peer",
    ),
    warn(
        "link.nothing-passes",
        "No channel that this node's `send` selects is in the peer's `receive`, so the peer gets "
        "nothing of what is published here, although the link is up.",
        "Compare `send` and `receive` of both nodes' [[peer]], see `detail`; or empty `send` here.",
        folds="peer",
    ),
    warn(
        "link.clock-skew",
        "The wall clocks of the two hosts differ by more than 5 s. The link does not depend on it; "
        "the times of records, `ttl` and certificates do.",
        "Synchronise both clocks (chrony, systemd-timesyncd). docs/operations.md.",
        fields="skew_seconds",
        folds="peer",
    ),
    error(
        "link.ack-overdue",
        "The peer received records 30 s ago or earlier, could acknowledge them (a peer without "
        "room reports that) and has not. The link resumes from what both ends have on disk.",
        "Nothing is lost. If it repeats, report it with the surrounding lines of both hosts.",
        folds="peer",
    ),
    warn(
        "link.left-out",
        "Too many records of peers wait for this node's disk: new ones are discarded, and "
        "requested again once there is room.",
        "Nothing is lost. Free space (see log.full), or use a faster disk.",
        folds="peer",
    ),
    error(
        "link.out-of-step",
        "A batch arrived that does not start at this node's cursor in the peer's log; storing "
        "it would have left a hole. The link resumes from what both ends have on disk.",
        "Nothing is lost. It is a bug of linkd here or on the peer: report it with the "
        "surrounding lines of both hosts.",
        folds="peer",
    ),
    warn(
        "link.new-log",
        "The peer's log, or ours as the peer knew it, has been replaced: a new or emptied "
        "state directory.",
        "If nobody emptied it on purpose, look for the old `state_dir`: only it has the records "
        "that were still owed.",
    ),
    info(
        "link.duplicate-records",
        "Records arrived a second time, or in a loop, and were skipped.",
        "Nothing, unless it grows: look at `send` and `receive` of the hosts in the ring.",
        fields="channel records",
        folds="peer",
    ),
    error(
        "link.relay-refused",
        "One end sends records that come from a third node, and the other's `relay` is false: they "
        "are skipped. Logged once per connection, then counted.",
        "Set `relay = true` in the `[[peer]]` of the node that forwards them, at the node that "
        "`detail` names; or narrow its `send`.",
        fields="channel records",
    ),
    error(
        "link.false-origin",
        "The peer sent records whose origin offset cannot exist: they were skipped.",
        "Look at that peer: it forges records, or its disk is damaged. docs/security.md.",
        fields="channel records",
        folds="peer",
    ),
    warn(
        "link.late-records",
        "The peer sent records of an origin after later ones had arrived over another path; "
        "they are stored. Logged once per link, then counted by `linkd_records_late_total`.",
        "Nothing, where a path was added, removed or widened.",
        fields="channel origin first",
    ),
    error(
        "link.unproven-records",
        "Records arrived that this node may already have, but it no longer knows; they were "
        "stored, perhaps a second time.",
        "Look for a path whose backlog is weeks old, or for a node with about 1,000,000 channels.",
        fields="channel origin first records",
        folds="peer",
    ),
    warn(
        "link.unwanted-records",
        "The peer sent records that our `receive` does not select; they were skipped.",
        "Compare `send` there with `receive` here.",
        fields="channel records",
        folds="peer",
    ),
    warn(
        "link.acks-paused",
        "This node has no room for the peer's records; it acknowledges them once there is.",
        "Free space: see log.full.",
        folds="peer",
    ),
    error(
        "link.absent",
        "A peer's `[[peer]]` is missing. Its cursor is kept for 24 h of running time; what it is "
        "owed counts for the log's bounds until then.",
        "Restore its `[[peer]]`, or remove its cursor at once: `linkd peers --forget NAME`.",
        fields="records bytes",
    ),
    info("link.returned", "An absent peer is configured again; its link continues where it was."),
    error(
        "link.forgotten",
        "The cursor of a peer that is no longer configured was removed, and with it the records "
        "that it was owed.",
        "If the peer returns, it gets what is published from then on.",
        fields="records bytes",
    ),
    info("link.kicked", "`linkd kick`: the dialer retries at once."),
    warn("link.resynced", "An operator's `linkd resync` has moved the peer's cursor."),
    # Connections and the listener
    info("listener.started", "Peers can dial this address.", fields="tls"),
    info("listener.stopped", "Peers can no longer dial this address."),
    warn(
        "listener.rate-limited",
        "Too many connections at once: new ones are asked to retry later, those of strangers are "
        "dropped, or the oldest one without a hello is closed.",
        "Nothing after a restart of a hub; else see `[limits]` and who connects.",
        fields="pending",
        folds="reason",
    ),
    warn(
        "listener.addresses-lost",
        "The addresses of known peers cannot be kept over a restart, or their file was damaged: "
        "peers count as unknown until they have connected once.",
        "Nothing, unless it repeats: then look at the disk of `state_dir`.",
        folds="event",
    ),
    warn(
        "connection.refused",
        "A connection was closed: bad bytes, a wrong or late hello, an unknown name, a "
        "wrong proof.",
        "If `address` is one of yours, compare names and secrets; otherwise "
        "block it in the firewall. With `balancer`: correct the PROXY header that it sends.",
        fields="claimed close_code balancer",
        folds="peer reason balancer",
    ),
    error(
        "connection.protocol",
        "The peer broke the protocol; the connection was closed.",
        "Compare the versions of both ends; report it.",
        fields="close_code",
        folds="peer reason",
    ),
    info(
        "tls.loaded",
        "A changed certificate is in use for new connections.",
        fields="certificate expires_seconds days",
    ),
    error(
        "tls.reload-failed",
        "A certificate or key cannot be used; the previous one stays in use.",
        "Fix the file that `detail` names, then reload.",
        fields="certificate",
    ),
    warn(
        "tls.repaired",
        "A file of this node's own authority was missing or damaged; recreated from ca.key.",
        "Check the disk: `detail` describes what was wrong with the file.",
        fields="certificate",
    ),
    warn(
        "tls.expiring",
        "Our own certificate expires soon; after that peers refuse us.",
        "Renew it and reload.",
        fields="certificate expires_seconds days",
        folds="certificate",
    ),
)


LOG_EVENTS = (
    # The log and consumers
    info("log.opened", "The log is open.", fields="id epoch first next bytes open_seconds"),
    error(
        "log.damaged",
        "A file of the log cannot be read; it was quarantined and its readable records are kept.",
        "Keep the file for an examination and check the disk; every peer and consumer that was "
        "owed these records gets a gap notice.",
        fields="file first next",
    ),
    warn(
        "log.repaired",
        "An unfinished write at the end of the log was truncated: it had not been acknowledged "
        "to anyone.",
        fields="file bytes",
    ),
    info(
        "log.unclean-shutdown",
        "linkd was not stopped cleanly: the preallocated zeros after the newest records were "
        "truncated.",
        fields="file bytes",
    ),
    warn(
        "cursors.rebuilt",
        "The file of cursors beside the log was damaged or absent and was rebuilt from the log.",
        fields="file",
    ),
    error(
        "log.gone",
        "The log's file was deleted, or its directory replaced or mounted over, while linkd runs: "
        "publishes are refused.",
        "Restore the directory: linkd continues within a second. Or restart linkd: it starts with "
        "what is there.",
    ),
    warn(
        "log.clock-doubtful",
        "The wall clock is older than this version of linkd, or than when linkd last ran: how long "
        "the host was off is not known and does not count for the ttl of records.",
        "Correct the clock; a battery or NTP keeps it correct.",
    ),
    error(
        "log.full",
        "Publishes are refused: the log has reached its limit, or the disk is full.",
        "`linkd status` shows who is owed most; bring that link back, free space, or raise "
        "`log.max_bytes`.",
        fields="bytes max_bytes",
    ),
    info("log.space-available", "Publishes are accepted again.", fields="bytes max_bytes"),
    error(
        "log.disk-failed",
        "The disk refused a write or a sync; nothing unsaved was acknowledged.",
        "Check the disk (`dmesg`), its free space and the file's permissions.",
        fields="file",
        folds="reason",
    ),
    warn(
        "log.dropped",
        'Owed records were deleted, because of `when_full = "drop-oldest"` or a trim.',
        "Raise `log.max_bytes`, or bring back the link that lags.",
        fields="first next records",
        folds="peer",
    ),
    warn(
        "log.trimmed",
        "An operator's `linkd log trim` has deleted records.",
        fields="first next records",
    ),
    error(
        "log.stalled",
        "The disk has not finished a commit for this long. Links stay up, publishes wait for "
        "their answer, nothing is lost; `log.stall-ended` follows once the disk continues.",
        "Look for what blocks the disk: a frozen file system, a network mount, a failing device "
        "(`dmesg`).",
        fields="seconds",
    ),
    info("log.stall-ended", "The disk that was stalled finishes commits again."),
    warn(
        "log.slow",
        "A commit to disk took long; publishers wait for it.",
        "Look for what else uses the disk.",
        folds="event",
    ),
    info(
        "consumer.created",
        "A named consumer is new; from now on the log keeps what it has not acknowledged.",
        fields="owner consumer next",
    ),
    warn(
        "consumer.replaced",
        "Another client took over a consumer's name; the older one was disconnected.",
        "If it repeats, two programs use the same name.",
        fields="owner consumer",
        folds="owner consumer",
    ),
    error(
        "consumer.gap",
        "Records that a named consumer wanted are gone from the log.",
        "Restore them from their source if they matter.",
        fields="owner consumer first next records",
        folds="owner consumer",
    ),
    error(
        "consumer.passed-over",
        "A named consumer has not acknowledged more than its key's `kept_bytes`: the oldest "
        "records are no longer kept for it.",
        "Start its program; or raise `kept_bytes` of its `[[api.key]]`, or delete it.",
        fields="owner consumer first next",
        folds="owner consumer",
    ),
    error(
        "consumer.removed",
        "A named consumer was absent for `consumer_max_idle` and is no longer owed anything."
        " `info`: a `?resume=` consumer was absent for 10 minutes, or others needed its room.",
        "If its program still exists, start it and fetch what it missed from elsewhere.",
        fields="owner consumer next idle_seconds",
    ),
    info(
        "consumer.deleted",
        "`linkd consumers --delete` has removed a consumer.",
        fields="owner consumer next",
    ),
    info(
        "consumer.moved",
        "A named consumer has another owner or name.",
        fields="owner consumer next",
    ),
    error(
        "consumer.orphaned",
        "The key that owns named consumers is no longer configured; they keep their records "
        "until `consumer_max_idle`.",
        "Move each to another key (`linkd consumers --move`), or delete it.",
        fields="owner consumers records",
    ),
    warn(
        "ids.forgotten",
        "Ids were forgotten before `id_window`: a repeated publish with one of them is stored "
        "again. Logged at most once an hour for each owner.",
        "Raise `log.max_ids`, or have the owner use fewer ids.",
    ),
    warn(
        "producers.forgotten",
        "Producers of an owner, or their older numbers, were forgotten before `id_window`: it has "
        "more than its share of them.",
        "Have its programs keep their producers' names over restarts.",
    ),
)


NODE_EVENTS = (
    # The daemon
    info("node.starting", "The daemon starts.", fields="node version state_dir"),
    info("node.ready", "All sockets are listening.", fields="node peers start_seconds"),
    warn(
        "node.drain-started",
        "An operator drains the node (`linkd drain`): it takes no new links, and ends the others.",
        fields="links",
    ),
    info(
        "node.drained",
        "All links have ended. The node takes none until `linkd drain --undo` or a restart.",
        fields="drain_seconds",
    ),
    info("node.drain-undone", "An operator has ended the drain; links are taken again."),
    info("node.stopping", "A clean stop has begun; peers get a goodbye.", fields="signal"),
    info(
        "node.stopped",
        "The daemon has stopped; what it accepted is on disk.",
        fields="stop_seconds",
    ),
    info(
        "node.reloaded",
        "A new configuration is in force; `detail` lists what changed.",
        fields="changes",
    ),
    error(
        "node.reload-refused",
        "The new configuration has an error; the old one stays in force.",
        "Fix what `detail` names; `linkd check` shows the same error. Then reload again.",
    ),
    warn(
        "node.restart-needed",
        "A setting has changed that a reload cannot apply; its old value stays in force.",
        "Restart the service when it suits: `systemctl restart linkd`.",
        fields="setting",
    ),
    info(
        "node.network-changed",
        "Addresses or routes of this host have changed: dialers retry at once.",
        folds="event",
    ),
    info(
        "node.clock-set",
        "The wall clock of this host was set, or the host was suspended: dialers that wait for a "
        "certificate's date retry at once.",
        fields="step_seconds",
        folds="event",
    ),
    info("node.kicked", "Every dialer retries at once: SIGUSR1 or `linkd kick`."),
    warn(
        "node.loop-lag",
        "The daemon's loop woke late: a busy or frozen machine, or a slow disk.",
        "If it repeats, look for what else uses the processor; outages may be noticed late.",
        fields="late_seconds",
        folds="event",
    ),
    error(
        "node.stuck",
        "A dialer makes no progress; the watchdog is no longer fed, which restarts the service.",
        "Report it with the lines before it.",
        folds="event",
    ),
    error(
        "node.internal-error",
        "linkd itself broke a rule; the connection concerned was aborted.",
        "Report it with the surrounding lines.",
        fields="where",
        folds="where",
    ),
    error(
        "node.thread-died",
        "A thread of linkd has died of a bug, such as the one that writes the log. The daemon "
        "exits with code 1, so that the service manager restarts it.",
        "Report it with the surrounding lines.",
        fields="thread",
    ),
    error(
        "node.aborted",
        "A watchdog has ended the daemon (SIGABRT), since it made no progress: linkd's own after "
        "10 s, or the service manager's; `detail` has the stack.",
        "Report it with the lines before it.",
        fields="signal",
    ),
    error(
        "node.stop-hung",
        "A clean stop hung and the process ended without it: nothing acknowledged is lost, and the "
        "next run opens the log as after a crash. `detail` has the stack.",
        "Report it with the lines before it.",
        fields="signal stop_seconds",
    ),
    warn(
        "node.lines-dropped",
        "The reader of standard error was too slow or had stopped, and lines between `first` and "
        "`last` were dropped; the links went on.",
        "Check what reads the log: journald, a stopped terminal, a container's log.",
        fields="lines first last",
    ),
    # The API
    info("api.started", "Applications can call this address.", fields="tls"),
    warn(
        "api.socket-lost",
        "The file of the API's socket was removed or replaced; it is recreated within a second.",
        "Look for what removes it, such as a cleaner of temporary files.",
        folds="detail",
    ),
    warn(
        "api.refused",
        "A call was refused: no key, a wrong key, a foreign origin, a channel without permission.",
        "If `address` is one of yours, compare its key with `[[api.key]]`.",
        fields="caller status path",
        folds="reason caller",
    ),
    warn(
        "api.busy",
        "Too many connections to the API: a new one was refused.",
        "Look for a program that leaks connections; see `[limits]`.",
        fields="connections",
        folds="reason",
    ),
    error(
        "node.descriptors-short",
        "Nearly all descriptors that this process may open are in use: connections are refused and "
        "files can't be opened.",
        "Find what holds them (`ls -l /proc/PID/fd`); raise `LimitNOFILE=` in the unit.",
        fields="limit",
        folds="event",
    ),
    info(
        "node.descriptors-enough",
        "There are enough descriptors again.",
        fields="limit",
        folds="event",
    ),
    warn(
        "node.limits-held",
        "`[limits]` allows more connections than the descriptor limit: the API and new connections "
        "get these numbers, links and files come first.",
        "Raise `LimitNOFILE=` in the unit, or lower `[limits]`.",
        fields="limit api_connections pending",
    ),
    # Pairing and drills
    info(
        "pairing.invited",
        "A pairing code for a new peer was created.",
        fields="name expires_seconds",
    ),
    info("pairing.joined", "A new peer has joined with its code.", fields="name"),
    warn(
        "pairing.refused",
        "A code was wrong, used or expired.",
        "If the attempt was not yours, watch `address`.",
        fields="name",
        folds="reason",
    ),
    warn(
        "pairing.revoked",
        "A peer's certificate was revoked; its connection was closed.",
        fields="name",
    ),
    error(
        "pairing.not-revoked",
        "A revocation could not be written: the peer is refused until this daemon ends, and no "
        "longer.",
        "Make the file that `detail` names writable, then run `linkd revoke` again.",
        fields="name",
    ),
    error(
        "pairing.list-not-written",
        "The revocation list could not be written. The listener refuses what was revoked all the "
        "same; other programs that read the list do not.",
        "Make room, or make the file writable; it is tried again each hour.",
        fields="certificate",
        folds="event",
    ),
    error(
        "pairing.not-opened",
        "Pairing's state could not be read; the previous revocation list is in force.",
        "Correct the file that `detail` names, then restart.",
    ),
    info(
        "pairing.successor",
        "The pairing authority expires in `expires_seconds`; it has a successor from now on, which "
        "peers get with their next renewal.",
        fields="certificate expires_seconds",
    ),
    info(
        "pairing.trusts",
        "The hub sent other authorities with a renewal; they are trusted from now on.",
        fields="certificate",
    ),
    warn(
        "drill.started",
        "`linkd drill` injects a fault into the link to `peer`: what follows there is on purpose.",
        fields="drill",
    ),
    info(
        "drill.ended",
        "The fault is over; `verdict` is `pass` or `fail`, absent where the drill was aborted.",
        fields="drill verdict",
    ),
    # What libraries log
    warn(
        "library.warn",
        "Twisted or Autobahn warns.",
        "Report it if it repeats.",
        fields="namespace",
        folds="namespace detail",
    ),
    error(
        "library.error",
        "Twisted or Autobahn failed; the traceback follows.",
        "Report it.",
        fields="namespace",
        folds="namespace detail",
    ),
)


EVENTS: Mapping[str, EventSpec] = {
    row.name: row for row in (*NODE_EVENTS, *LINK_EVENTS, *LOG_EVENTS)
}
