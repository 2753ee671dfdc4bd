"""The catalogue of log events: name, fields, level, meaning and remedy of each."""

from __future__ import annotations

from collections.abc import Mapping
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


def kind(
    name: str, level: Level, fields: str, meaning: str, action: str = "Nothing.", folds: str = ""
) -> EventSpec:
    """Return a row; `fields` and `folds` are words separated by spaces."""
    return EventSpec(name, level, tuple(fields.split()), meaning, action, tuple(folds.split()))


_LINK_DOWN = "noticed_after_seconds delay_seconds attempts"
_FIX = "Read `detail`, fix the cause on this host or the peer, then run `linkd kick PEER`."

LINK_EVENTS = (
    # Links
    kind("link.connecting", "debug", "", "An attempt has begun."),
    kind("link.opening", "debug", "", "TCP is connected; TLS, upgrade and hello are in progress."),
    kind(
        "link.resuming",
        "debug",
        "",
        "The peer has sent its hello; both ends compare their positions.",
    ),
    kind(
        "link.up",
        "info",
        "outage_seconds attempts replayed_records peer_version",
        "The link is up. `outage_seconds` counts from the last byte received before.",
    ),
    kind(
        "link.waiting",
        "warn",
        _LINK_DOWN,
        "The link is down and will be dialed again, by us or by the peer.",
        "If it stays: `linkd status PEER`; docs/operations.md has the runbook.",
        folds="peer reason",
    ),
    kind(
        "link.rejected",
        "error",
        _LINK_DOWN,
        "The peer refuses us, or we the peer: identity, certificate, path or protocol.",
        _FIX,
        folds="peer reason detail",
    ),
    kind(
        "link.diverged",
        "error",
        "",
        "The two logs no longer have anything in common, as after a restore from a backup; "
        "nothing is sent.",
        "`linkd resync PEER` shows what would be sent again or lost; then repeat it with `--yes`.",
    ),
    kind(
        "link.stopped", "info", "", "The link has ended: its peer was removed, or the daemon stops."
    ),
    kind(
        "link.drained",
        "info",
        "drained_seconds replayed_records",
        "All records that waited during an outage are on the peer's disk.",
    ),
    kind(
        "link.replaced",
        "info",
        "",
        "The peer reconnected and took over the session of its older connection.",
    ),
    kind(
        "link.cloned-host",
        "error",
        "",
        "Two hosts use the same name and take over from each other, or the peer claims another "
        "node's log as its own: a cloned host. It is refused.",
        "Give one of them another `node.name` and an empty `state_dir`.",
        folds="peer",
    ),
    kind(
        "link.gap",
        "error",
        "first next records",
        "Records that the peer was owed are gone from the log: `first` to `next` - 1.",
        "Restore them from their source if they matter; raise `log.max_bytes`.",
    ),
    kind(
        "link.records-lost",
        "error",
        "first next records",
        "A log is older than it was before: these offsets are lost on the end that `detail` names.",
        "Find out why the disk went back in time; fetch the records from the other end.",
    ),
    kind(
        "link.large-messages-lost",
        "warn",
        "",
        "Several connections were lost while they sent the same records. A probe of 1,100 bytes "
        "reached the peer, one of 16 KiB did not: something on the path drops large packets.",
        "Find where the MTU is smaller and allow ICMP there, or lower the interface's MTU. "
        "docs/operations.md.",
        folds="peer",
    ),
    kind(
        "link.nothing-passes",
        "warn",
        "",
        "No channel that this node's `send` selects is in the peer's `receive`, so the peer gets "
        "nothing of what is published here, although the link is up.",
        "Compare `send` and `receive` of both nodes' [[peer]], see `detail`; or empty `send` here.",
        folds="peer",
    ),
    kind(
        "link.clock-skew",
        "warn",
        "skew_seconds",
        "The wall clocks of the two hosts differ by more than 5 s. The link does not depend on it; "
        "the times of records, `ttl` and certificates do.",
        "Synchronise both clocks (chrony, systemd-timesyncd). docs/operations.md.",
        folds="peer",
    ),
    kind(
        "link.ack-overdue",
        "error",
        "",
        "The peer received records 30 s ago or earlier, could acknowledge them (a peer without "
        "room reports that) and has not. The link resumes from what both ends have on disk.",
        "Nothing is lost. If it repeats, report it with the surrounding lines of both hosts.",
        folds="peer",
    ),
    kind(
        "link.left-out",
        "warn",
        "",
        "Too many records of peers wait for this node's disk: new ones are discarded, and "
        "requested again once there is room.",
        "Nothing is lost. Free space (see log.full), or use a faster disk.",
        folds="peer",
    ),
    kind(
        "link.out-of-step",
        "error",
        "",
        "A batch arrived that does not start at this node's cursor in the peer's log; storing "
        "it would have left a hole. The link resumes from what both ends have on disk.",
        "Nothing is lost. It is a bug of linkd here or on the peer: report it with the "
        "surrounding lines of both hosts.",
        folds="peer",
    ),
    kind(
        "link.new-log",
        "warn",
        "",
        "The peer's log, or ours as the peer knew it, has been replaced: a new or emptied "
        "state directory.",
        "If nobody emptied it on purpose, look for the old `state_dir`: only it has the records "
        "that were still owed.",
    ),
    kind(
        "link.duplicate-records",
        "info",
        "channel records",
        "Records arrived a second time, or in a loop, and were skipped.",
        "Nothing, unless it grows: look at `send` and `receive` of the hosts in the ring.",
        folds="peer",
    ),
    kind(
        "link.relay-refused",
        "error",
        "channel records",
        "One end sends records that come from a third node, and the other's `relay` is false: they "
        "are skipped. Logged once per connection, then counted.",
        "Set `relay = true` in the `[[peer]]` of the node that forwards them, at the node that "
        "`detail` names; or narrow its `send`.",
    ),
    kind(
        "link.false-origin",
        "error",
        "channel records",
        "The peer sent records whose origin offset cannot exist: they were skipped.",
        "Look at that peer: it forges records, or its disk is damaged. docs/security.md.",
        folds="peer",
    ),
    kind(
        "link.late-records",
        "warn",
        "channel origin first",
        "The peer sent records of an origin after later ones had arrived over another path; "
        "they are stored. Logged once per link, then counted by `linkd_records_late_total`.",
        "Nothing, where a path was added, removed or widened.",
    ),
    kind(
        "link.unproven-records",
        "error",
        "channel origin first records",
        "Records arrived that this node may already have, but it no longer knows; they were "
        "stored, perhaps a second time.",
        "Look for a path whose backlog is weeks old, or for a node with about 1,000,000 channels.",
        folds="peer",
    ),
    kind(
        "link.unwanted-records",
        "warn",
        "channel records",
        "The peer sent records that our `receive` does not select; they were skipped.",
        "Compare `send` there with `receive` here.",
        folds="peer",
    ),
    kind(
        "link.acks-paused",
        "warn",
        "",
        "This node has no room for the peer's records; it acknowledges them once there is.",
        "Free space: see log.full.",
        folds="peer",
    ),
    kind(
        "link.absent",
        "error",
        "records bytes",
        "A peer's `[[peer]]` is missing. Its cursor is kept for 24 h of running time; what it is "
        "owed counts for the log's bounds until then.",
        "Restore its `[[peer]]`, or remove its cursor at once: `linkd peers --forget NAME`.",
    ),
    kind(
        "link.returned",
        "info",
        "",
        "An absent peer is configured again; its link continues where it was.",
    ),
    kind(
        "link.forgotten",
        "error",
        "records bytes",
        "The cursor of a peer that is no longer configured was removed, and with it the records "
        "that it was owed.",
        "If the peer returns, it gets what is published from then on.",
    ),
    kind("link.kicked", "info", "", "`linkd kick`: the dialer retries at once."),
    kind(
        "link.resynced",
        "warn",
        "",
        "An operator's `linkd resync` has moved the peer's cursor.",
    ),
    # Connections and the listener
    kind("listener.started", "info", "tls", "Peers can dial this address."),
    kind("listener.stopped", "info", "", "Peers can no longer dial this address."),
    kind(
        "listener.rate-limited",
        "warn",
        "pending",
        "Too many connections at once: new ones are asked to retry later, or the oldest one "
        "without a hello is closed.",
        "Nothing after a restart of a hub; else see `[limits]` and who connects.",
        folds="reason",
    ),
    kind(
        "listener.addresses-lost",
        "warn",
        "",
        "The addresses of known peers cannot be kept over a restart, or their file was damaged: "
        "peers count as unknown until they have connected once.",
        "Nothing, unless it repeats: then look at the disk of `state_dir`.",
        folds="event",
    ),
    kind(
        "connection.refused",
        "warn",
        "claimed close_code",
        "A connection was closed: bad bytes, a wrong or late hello, an unknown name, a "
        "wrong proof.",
        "If `address` is one of yours, compare names and secrets; else a firewall.",
        folds="peer reason",
    ),
    kind(
        "connection.protocol",
        "error",
        "close_code",
        "The peer broke the protocol; the connection was closed.",
        "Compare the versions of both ends; report it.",
        folds="peer reason",
    ),
    kind(
        "tls.loaded",
        "info",
        "certificate expires_seconds days",
        "A changed certificate is in use for new connections.",
    ),
    kind(
        "tls.reload-failed",
        "error",
        "certificate",
        "A certificate or key cannot be used; the previous one stays in use.",
        "Fix the file that `detail` names, then reload.",
    ),
    kind(
        "tls.repaired",
        "warn",
        "certificate",
        "A file of this node's own authority was missing or damaged; recreated from ca.key.",
        "Check the disk: `detail` describes what was wrong with the file.",
    ),
    kind(
        "tls.expiring",
        "warn",
        "certificate expires_seconds days",
        "Our own certificate expires soon; after that peers refuse us.",
        "Renew it and reload.",
        folds="certificate",
    ),
)


LOG_EVENTS = (
    # The log and consumers
    kind("log.opened", "info", "id epoch first next bytes open_seconds", "The log is open."),
    kind(
        "log.damaged",
        "error",
        "file first next",
        "A file of the log cannot be read; it was quarantined and its readable records are kept.",
        "Keep the file for an examination and check the disk; every peer and consumer that was "
        "owed these records gets a gap notice.",
    ),
    kind(
        "log.repaired",
        "warn",
        "file bytes",
        "An unfinished write at the end of the log was truncated: it had not been acknowledged "
        "to anyone.",
    ),
    kind(
        "log.unclean-shutdown",
        "info",
        "file bytes",
        "linkd was not stopped cleanly: the preallocated zeros after the newest records were "
        "truncated.",
    ),
    kind(
        "cursors.rebuilt",
        "warn",
        "file",
        "The file of cursors beside the log was damaged or absent and was rebuilt from the log.",
    ),
    kind(
        "log.gone",
        "error",
        "",
        "The log's file was deleted, or its directory replaced or mounted over, while linkd runs: "
        "publishes are refused.",
        "Restore the directory: linkd continues within a second. Or restart linkd: it starts with "
        "what is there.",
    ),
    kind(
        "log.clock-doubtful",
        "warn",
        "",
        "The wall clock is older than this version of linkd, or than when linkd last ran: how long "
        "the host was off is not known and does not count for the ttl of records.",
        "Correct the clock; a battery or NTP keeps it correct.",
    ),
    kind(
        "log.full",
        "error",
        "bytes max_bytes",
        "Publishes are refused: the log has reached its limit, or the disk is full.",
        "`linkd status` shows who is owed most; bring that link back, free space, or raise "
        "`log.max_bytes`.",
    ),
    kind("log.space-available", "info", "bytes max_bytes", "Publishes are accepted again."),
    kind(
        "log.disk-failed",
        "error",
        "file",
        "The disk refused a write or a sync; nothing unsaved was acknowledged.",
        "Check the disk (`dmesg`), its free space and the file's permissions.",
        folds="reason",
    ),
    kind(
        "log.dropped",
        "warn",
        "first next records",
        'Owed records were deleted, because of `when_full = "drop-oldest"` or a trim.',
        "Raise `log.max_bytes`, or bring back the link that lags.",
        folds="peer",
    ),
    kind(
        "log.trimmed",
        "warn",
        "first next records",
        "An operator's `linkd log trim` has deleted records.",
    ),
    kind(
        "log.stalled",
        "error",
        "seconds",
        "The disk has not finished a commit for this long. Links stay up, publishes wait for "
        "their answer, nothing is lost; `log.stall-ended` follows once the disk continues.",
        "Look for what blocks the disk: a frozen file system, a network mount, a failing device "
        "(`dmesg`).",
    ),
    kind("log.stall-ended", "info", "", "The disk that was stalled finishes commits again."),
    kind(
        "log.slow",
        "warn",
        "",
        "A commit to disk took long; publishers wait for it.",
        "Look for what else uses the disk.",
        folds="event",
    ),
    kind(
        "consumer.created",
        "info",
        "owner consumer next",
        "A named consumer is new; from now on the log keeps what it has not acknowledged.",
    ),
    kind(
        "consumer.replaced",
        "warn",
        "owner consumer",
        "Another client took over a consumer's name; the older one was disconnected.",
        "If it repeats, two programs use the same name.",
        folds="owner consumer",
    ),
    kind(
        "consumer.gap",
        "error",
        "owner consumer first next records",
        "Records that a named consumer wanted are gone from the log.",
        "Restore them from their source if they matter.",
        folds="owner consumer",
    ),
    kind(
        "consumer.passed-over",
        "error",
        "owner consumer first next",
        "A named consumer has not acknowledged more than its key's `kept_bytes`: the oldest "
        "records are no longer kept for it.",
        "Start its program; or raise `kept_bytes` of its `[[api.key]]`, or delete it.",
        folds="owner consumer",
    ),
    kind(
        "consumer.removed",
        "error",
        "owner consumer next idle_seconds",
        "A named consumer was absent for `consumer_max_idle` and is no longer owed anything."
        " `info`: a `?resume=` consumer was absent for 10 minutes, or others needed its room.",
        "If its program still exists, start it and fetch what it missed from elsewhere.",
    ),
    kind(
        "consumer.deleted",
        "info",
        "owner consumer next",
        "`linkd consumers --delete` has removed a consumer.",
    ),
    kind(
        "consumer.moved",
        "info",
        "owner consumer next",
        "A named consumer has another owner or name.",
    ),
    kind(
        "consumer.orphaned",
        "error",
        "owner consumers records",
        "The key that owns named consumers is no longer configured; they keep their records "
        "until `consumer_max_idle`.",
        "Move each to another key (`linkd consumers --move`), or delete it.",
    ),
    kind(
        "ids.forgotten",
        "warn",
        "",
        "Ids were forgotten before `id_window`: a repeated publish with one of them is stored "
        "again. Logged at most once an hour for each owner.",
        "Raise `log.max_ids`, or have the owner use fewer ids.",
    ),
    kind(
        "producers.forgotten",
        "warn",
        "",
        "Producers of an owner, or their older numbers, were forgotten before `id_window`: it has "
        "more than its share of them.",
        "Have its programs keep their producers' names over restarts.",
    ),
)


NODE_EVENTS = (
    # The daemon
    kind("node.starting", "info", "node version state_dir", "The daemon starts."),
    kind("node.ready", "info", "node peers start_seconds", "All sockets listen."),
    kind("node.stopping", "info", "signal", "A clean stop has begun; peers get a goodbye."),
    kind(
        "node.stopped",
        "info",
        "stop_seconds",
        "The daemon has stopped; what it accepted is on disk.",
    ),
    kind(
        "node.reloaded",
        "info",
        "changes",
        "A new configuration is in force; `detail` lists what changed.",
    ),
    kind(
        "node.reload-refused",
        "error",
        "",
        "The new configuration has an error; the old one stays in force.",
        "Fix what `detail` names; `linkd check` shows the same error. Then reload again.",
    ),
    kind(
        "node.restart-needed",
        "warn",
        "setting",
        "A setting has changed that a reload cannot apply; its old value stays in force.",
        "Restart the service when it suits: `systemctl restart linkd`.",
    ),
    kind(
        "node.network-changed",
        "info",
        "",
        "Addresses or routes of this host have changed: dialers retry at once.",
        folds="event",
    ),
    kind(
        "node.clock-set",
        "info",
        "step_seconds",
        "The wall clock of this host was set, or the host was suspended: dialers that wait for a "
        "certificate's date retry at once.",
        folds="event",
    ),
    kind("node.kicked", "info", "", "Every dialer retries at once: SIGUSR1 or `linkd kick`."),
    kind(
        "node.loop-lag",
        "warn",
        "late_seconds",
        "The daemon's loop woke late: a busy or frozen machine, or a slow disk.",
        "If it repeats, look for what else uses the processor; outages may be noticed late.",
        folds="event",
    ),
    kind(
        "node.stuck",
        "error",
        "",
        "A dialer makes no progress; the watchdog is not fed any more, which restarts the service.",
        "Report it with the lines before it.",
        folds="event",
    ),
    kind(
        "node.internal-error",
        "error",
        "where",
        "linkd itself broke a rule; the connection concerned was aborted.",
        "Report it with the surrounding lines.",
        folds="where",
    ),
    kind(
        "node.thread-died",
        "error",
        "thread",
        "A thread of linkd has died of a bug, such as the one that writes the log. The daemon "
        "exits with code 1, so that the service manager restarts it.",
        "Report it with the surrounding lines.",
    ),
    kind(
        "node.aborted",
        "error",
        "signal",
        "A watchdog has ended the daemon (SIGABRT), since it made no progress: linkd's own after "
        "10 s, or the service manager's; `detail` has the stack.",
        "Report it with the lines before it.",
    ),
    kind(
        "node.stop-hung",
        "error",
        "signal stop_seconds",
        "A clean stop hung and the process ended without it: nothing acknowledged is lost, and the "
        "next run opens the log as after a crash. `detail` has the stack.",
        "Report it with the lines before it.",
    ),
    kind(
        "node.lines-dropped",
        "warn",
        "lines first last",
        "The reader of standard error was too slow or had stopped, and lines between `first` and "
        "`last` were dropped; the links went on.",
        "Check what reads the log: journald, a stopped terminal, a container's log.",
    ),
    # The API
    kind("api.started", "info", "tls", "Applications can call this address."),
    kind(
        "api.socket-lost",
        "warn",
        "",
        "The file of the API's socket was removed or replaced; it is recreated within a second.",
        "Look for what removes it, such as a cleaner of temporary files.",
        folds="detail",
    ),
    kind(
        "api.refused",
        "warn",
        "caller status path",
        "A call was refused: no key, a wrong key, a foreign origin, a channel without permission.",
        "If `address` is one of yours, compare its key with `[[api.key]]`.",
        folds="reason caller",
    ),
    kind(
        "api.busy",
        "warn",
        "connections",
        "Too many connections to the API: a new one was refused.",
        "Look for a program that leaks connections; see `[limits]`.",
        folds="reason",
    ),
    kind(
        "node.descriptors-short",
        "error",
        "limit",
        "Nearly all descriptors that this process may open are in use: connections are refused and "
        "files can't be opened.",
        "Find what holds them (`ls -l /proc/PID/fd`); raise `LimitNOFILE=` in the unit.",
        folds="event",
    ),
    kind(
        "node.descriptors-enough",
        "info",
        "limit",
        "There are enough descriptors again.",
        folds="event",
    ),
    kind(
        "node.limits-held",
        "warn",
        "limit api_connections pending",
        "`[limits]` allows more connections than the descriptor limit: the API and new connections "
        "get these numbers, links and files come first.",
        "Raise `LimitNOFILE=` in the unit, or lower `[limits]`.",
    ),
    # Pairing and drills
    kind(
        "pairing.invited",
        "info",
        "name expires_seconds",
        "A pairing code for a new peer was created.",
    ),
    kind("pairing.joined", "info", "name", "A new peer has joined with its code."),
    kind(
        "pairing.refused",
        "warn",
        "name",
        "A code was wrong, used or expired.",
        "If the attempt was not yours, watch `address`.",
        folds="reason",
    ),
    kind(
        "pairing.revoked",
        "warn",
        "name",
        "A peer's certificate was revoked; its connection was closed.",
    ),
    kind(
        "pairing.not-revoked",
        "error",
        "name",
        "A revocation could not be written: the peer is refused until this daemon ends, and no "
        "longer.",
        "Make the file that `detail` names writable, then run `linkd revoke` again.",
    ),
    kind(
        "pairing.list-not-written",
        "error",
        "certificate",
        "The revocation list could not be written. The listener refuses what was revoked all the "
        "same; other programs that read the list do not.",
        "Make room, or make the file writable; it is tried again each hour.",
        folds="event",
    ),
    kind(
        "pairing.not-opened",
        "error",
        "",
        "Pairing's state could not be read; the previous revocation list is in force.",
        "Correct the file that `detail` names, then restart.",
    ),
    kind(
        "pairing.successor",
        "info",
        "certificate expires_seconds",
        "The pairing authority expires in `expires_seconds`; it has a successor from now on, which "
        "peers get with their next renewal.",
    ),
    kind(
        "pairing.trusts",
        "info",
        "certificate",
        "The hub sent other authorities with a renewal; they are trusted from now on.",
    ),
    kind(
        "drill.started",
        "warn",
        "drill",
        "`linkd drill` injects a fault into the link to `peer`: what follows there is on purpose.",
    ),
    kind(
        "drill.ended",
        "info",
        "drill verdict",
        "The fault is over; `verdict` is `pass` or `fail`, absent where the drill was aborted.",
    ),
    # What libraries log
    kind(
        "library.warn",
        "warn",
        "namespace",
        "Twisted or Autobahn warns.",
        "Report it if it repeats.",
        folds="namespace detail",
    ),
    kind(
        "library.error",
        "error",
        "namespace",
        "Twisted or Autobahn failed; the traceback follows.",
        "Report it.",
        folds="namespace detail",
    ),
)


EVENTS: Mapping[str, EventSpec] = {
    row.name: row for row in (*NODE_EVENTS, *LINK_EVENTS, *LOG_EVENTS)
}
