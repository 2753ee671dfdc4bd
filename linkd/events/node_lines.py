"""What the daemon says of itself, its API and its libraries."""

from linkd.events.kind import kind

ROWS = (
    # The daemon
    kind("node.starting", "info", "node version state_dir", "The daemon starts."),
    kind("node.ready", "info", "node peers start_seconds", "All sockets listen."),
    kind("node.stopping", "info", "signal", "A clean stop has begun; peers are told goodbye."),
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
        "A new configuration is in force; `detail` says what changed.",
    ),
    kind(
        "node.reload-refused",
        "error",
        "",
        "The new configuration has an error; the old one stays in force.",
        "Mend what `detail` names; `linkd check` shows the same error. Then reload again.",
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
        "node.late",
        "warn",
        "late_seconds",
        "The daemon's loop woke late: a busy or frozen machine, or a slow disk.",
        "If it repeats, look for what else uses the processor; links may be noticed late.",
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
        "node.bug",
        "error",
        "where",
        "linkd itself broke a rule; the connection concerned was aborted.",
        "Report it with the lines around it.",
        folds="where",
    ),
    kind(
        "node.thread-died",
        "error",
        "thread",
        "A thread of linkd has ended by a mistake, such as the one that writes the log. The daemon "
        "ends with code 1, so that the service manager starts it again.",
        "Report it with the lines around it.",
    ),
    kind(
        "node.aborted",
        "error",
        "signal",
        "A watchdog has ended the daemon (SIGABRT), since it made no progress: linkd's own after "
        "10 s, or the service manager's; `detail` has the place where it was.",
        "Report it with the lines before it.",
    ),
    kind(
        "node.stop-hung",
        "error",
        "signal stop_seconds",
        "A clean stop hung and the process ended without it: nothing acknowledged is lost, and the "
        "next run opens the log as after a crash. `detail` has the place where it was.",
        "Report it with the lines before it.",
    ),
    kind(
        "node.lines-dropped",
        "warn",
        "lines first last",
        "The reader of standard error was too slow or had stopped, and lines between `first` and "
        "`last` were dropped; the links went on.",
        "Look at what reads the log: journald, a terminal that is stopped, a container's log.",
    ),
    # The API
    kind("api.started", "info", "tls", "Applications can call this address."),
    kind(
        "api.socket-lost",
        "warn",
        "",
        "The file of the API's socket was removed or replaced; it is made again within a second.",
        "Look for what removes it, such as a cleaner of temporary files.",
        folds="detail",
    ),
    kind(
        "api.refused",
        "warn",
        "caller status path",
        "A call was refused: no key, a wrong one, a foreign origin, a channel that it may not use.",
        "If `address` is one of yours, compare its key with `[[api.key]]`.",
        folds="reason caller",
    ),
    kind(
        "api.busy",
        "warn",
        "connections",
        "Too many connections to the API: a newcomer was refused.",
        "Look for a program that leaks connections; see `[limits]`.",
        folds="reason",
    ),
    kind(
        "node.descriptors-short",
        "error",
        "limit",
        "Nearly all descriptors that this process may open are in use: connections are refused and "
        "files can't be opened.",
        "Find who holds them (`ls -l /proc/PID/fd`); raise `LimitNOFILE=` in the unit.",
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
        "`[limits]` allows more connections than the limit of descriptors has room for: the API "
        "and newcomers get these, links and files come first.",
        "Raise `LimitNOFILE=` in the unit, or lower `[limits]`.",
    ),
    # Pairing and drills
    kind("pairing.invited", "info", "name expires_seconds", "A code for a new peer was made."),
    kind("pairing.joined", "info", "name", "A new peer has joined with its code."),
    kind(
        "pairing.refused",
        "warn",
        "name",
        "A code was wrong, used or expired.",
        "If nobody of yours tried, watch `address`.",
        folds="reason",
    ),
    kind(
        "pairing.revoked",
        "warn",
        "name",
        "A peer's certificate was revoked; its connection was ended.",
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
        "Pairing's state could not be read; the revocation list of before is in force.",
        "Correct the file that `detail` names, then restart.",
    ),
    kind(
        "pairing.successor",
        "info",
        "certificate expires_seconds",
        "The pairing authority ends in `expires_seconds`, and has a successor from now on, which "
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
        "`linkd drill` makes a fault on the link to `peer`: what follows there is on purpose.",
    ),
    kind(
        "drill.ended",
        "info",
        "drill verdict",
        "The fault is over; `verdict` is `pass` or `fail`, absent where the drill was broken off.",
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
