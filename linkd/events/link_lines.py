"""What is said of links, of connections and of the listener."""

from linkd.events.kind import kind

_LINK_DOWN = "noticed_after_seconds delay_seconds attempts"
_MEND = "Read `detail`, mend it on this host or the peer, then `linkd kick PEER`."

ROWS = (
    # Links
    kind("link.connecting", "debug", "", "An attempt has begun."),
    kind("link.opening", "debug", "", "TCP stands; TLS, upgrade and hello are under way."),
    kind(
        "link.resuming",
        "debug",
        "",
        "The peer has said hello; the two ends compare how far they are.",
    ),
    kind(
        "link.up",
        "info",
        "outage_seconds attempts replayed_records peer_version",
        "The link is up. `outage_seconds` counts from the last byte heard before.",
    ),
    kind(
        "link.waiting",
        "warn",
        _LINK_DOWN,
        "The link is down and will be dialed again, by us or by the peer.",
        "If it stays: `linkd status PEER`; docs/operations.md, the page for 3 a.m.",
        folds="peer reason",
    ),
    kind(
        "link.rejected",
        "error",
        _LINK_DOWN,
        "The peer refuses us, or we the peer: identity, certificate, path or protocol.",
        _MEND,
        folds="peer reason detail",
    ),
    kind(
        "link.diverged",
        "error",
        "",
        "The two logs have nothing in common any more, as after a disk restored from a "
        "backup; nothing is sent.",
        "`linkd resync PEER` says what would be sent again or lost; then repeat it with `--yes`.",
    ),
    kind(
        "link.stopped", "info", "", "The link has ended: its peer was removed, or the daemon stops."
    ),
    kind(
        "link.drained",
        "info",
        "drained_seconds replayed_records",
        "All that waited during an outage is on the peer's disk.",
    ),
    kind(
        "link.replaced",
        "info",
        "",
        "The peer came back and took its session over from its older connection.",
    ),
    kind(
        "link.duplicate",
        "error",
        "",
        "Two hosts use one name and take over from each other, or the peer calls another node's"
        " log its own: a cloned host. It is refused.",
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
        "A log has come back older than it was: these offsets are lost on the end that "
        "`detail` names.",
        "Find out why the disk went back in time; fetch the records from the other end.",
    ),
    kind(
        "link.large-messages-lost",
        "warn",
        "",
        "Several connections fell with the same records under way. A probe of 1,100 bytes came to "
        "the peer, one of 16 KiB did not: something on the path loses large packets.",
        "Find where the MTU is smaller and let ICMP through there, or set the interface's MTU. "
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
        "The peer has had records for 30 s or more, could acknowledge them (a peer without room "
        "says so) and has not. The link rejoins from what both ends have on disk.",
        "Nothing is lost. If it repeats, report it, with the lines of both hosts around it.",
        folds="peer",
    ),
    kind(
        "link.left-out",
        "warn",
        "",
        "Too much of what peers sent waits for this node's disk: what comes is not kept, and asked "
        "for again once there is room.",
        "Nothing is lost. Make room: see log.full; or a faster disk.",
        folds="peer",
    ),
    kind(
        "link.out-of-step",
        "error",
        "",
        "A step came that does not begin where this node's cursor in the peer's log is; storing "
        "it would have left a hole. The link rejoins from what both ends have on disk.",
        "Nothing is lost. It is a mistake of linkd here or on the peer: report it, with the lines "
        "of both hosts around it.",
        folds="peer",
    ),
    kind(
        "link.new-log",
        "warn",
        "",
        "The peer's log, or ours as the peer knew it, is another one now: a new or emptied "
        "state directory.",
        "If nobody emptied it on purpose, look for the old `state_dir`: what was owed from it is "
        "only there.",
    ),
    kind(
        "link.refused-records",
        "info",
        "channel records",
        "Records came a second time, or in a loop, and were left out.",
        "Nothing, unless it grows: look at `send` and `receive` of the hosts in the ring.",
        folds="peer",
    ),
    kind(
        "link.relay-refused",
        "error",
        "channel records",
        "One end sends records that began at a third node, and the other's `relay` is false: they "
        "are left out. Once a connection, then counted.",
        "Set `relay = true` in the `[[peer]]` of the node that passes them on, at the node that "
        "`detail` names; or narrow its `send`.",
    ),
    kind(
        "link.false-origin",
        "error",
        "channel records",
        "The peer sent records with a place in a log that cannot exist: they were left out.",
        "Look at that peer: it forges records, or its disk is damaged. docs/security.md.",
        folds="peer",
    ),
    kind(
        "link.late-records",
        "warn",
        "channel origin first",
        "The peer brought records of an origin behind later ones, which came over another path; "
        "they are stored. Once a link, then `linkd_records_late_total` counts.",
        "Nothing, where a path was added, removed or widened.",
    ),
    kind(
        "link.unproven-records",
        "error",
        "channel origin first records",
        "Records came of which this node no longer knows whether it has them; they were stored, "
        "perhaps a second time.",
        "Look for a path whose backlog is weeks old, or for a node with some 1,000,000 channels.",
        folds="peer",
    ),
    kind(
        "link.unwanted-records",
        "warn",
        "channel records",
        "The peer sent what our `receive` does not take; it was left out.",
        "Compare `send` there with `receive` here.",
        folds="peer",
    ),
    kind(
        "link.withheld",
        "warn",
        "",
        "This node has no room for what the peer sends; it is not acknowledged until there is.",
        "Make room: see log.full.",
        folds="peer",
    ),
    kind(
        "link.absent",
        "error",
        "records bytes",
        "A peer's `[[peer]]` is missing. Its cursor is kept for 24 h of running time; what it is "
        "owed counts for the log's bounds until then.",
        "Put its `[[peer]]` back, or end it at once: `linkd peers --forget NAME`.",
    ),
    kind(
        "link.returned",
        "info",
        "",
        "An absent peer is configured again; its link goes on where it was.",
    ),
    kind(
        "link.forgotten",
        "error",
        "records bytes",
        "The cursor of a peer that was not configured any more has gone, and with it what it was "
        "owed.",
        "If it comes back, it gets what is published from then on.",
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
    kind("listener.stopped", "info", "", "Peers cannot dial this address any more."),
    kind(
        "listener.busy",
        "warn",
        "pending",
        "Too many connections at once: newcomers are asked to come back later, or the oldest that "
        "has not said hello is closed.",
        "Nothing after a restart of a hub; else see `[limits]` and who connects.",
        folds="reason",
    ),
    kind(
        "listener.addresses-lost",
        "warn",
        "",
        "From which addresses peers were greeted is not kept over a restart, or the file was "
        "damaged: peers count as strangers until they have come once.",
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
        "tls.kept",
        "error",
        "certificate",
        "A certificate or key cannot be used; the one before stays in use.",
        "Mend the file that `detail` names, then reload.",
    ),
    kind(
        "tls.repaired",
        "warn",
        "certificate",
        "A file of this node's own authority was missing or damaged, and made again from ca.key.",
        "Look at the disk: `detail` says what was wrong with the file.",
    ),
    kind(
        "tls.expiring",
        "warn",
        "certificate expires_seconds days",
        "Our own certificate ends soon; after that peers refuse us.",
        "Renew it and reload.",
        folds="certificate",
    ),
)
