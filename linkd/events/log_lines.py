"""What is said of the durable log and of consumers."""

from linkd.events.kind import kind

ROWS = (
    # The log and consumers
    kind("log.opened", "info", "id epoch first next bytes open_seconds", "The log is open."),
    kind(
        "log.damaged",
        "error",
        "file first next",
        "A file of the log cannot be read; it was set aside and what is readable is kept.",
        "Keep the file for an examination, check the disk; the gap was told to all who "
        "are owed it.",
    ),
    kind(
        "log.repaired",
        "warn",
        "file bytes",
        "An unfinished write at the end of the log was cut off: nobody had been told that "
        "it was stored.",
    ),
    kind(
        "log.unclosed",
        "info",
        "file bytes",
        "linkd had not come to its end: the zeros that were made ready behind the newest records "
        "were cut.",
    ),
    kind(
        "log.rebuilt",
        "warn",
        "file",
        "The file of cursors beside the log was damaged or absent and was made again from the log.",
    ),
    kind(
        "log.gone",
        "error",
        "",
        "The log's file was deleted, or its directory replaced or mounted over, while linkd runs: "
        "publishes are refused.",
        "Put the directory back: linkd goes on within a second. Or restart linkd: it begins with "
        "what is there.",
    ),
    kind(
        "log.clock-doubtful",
        "warn",
        "",
        "The wall clock is older than this version of linkd, or than when linkd last ran: how long "
        "the host was off is not known and does not count for the ttl of records.",
        "Set the clock right; a battery for it, or NTP, keeps it right.",
    ),
    kind(
        "log.full",
        "error",
        "bytes max_bytes",
        "Publishes are refused: the log has reached its bound, or the disk has no room.",
        "`linkd status` shows who is owed most; bring that link back, make room, or raise "
        "`log.max_bytes`.",
    ),
    kind("log.room", "info", "bytes max_bytes", "Publishes are taken again."),
    kind(
        "log.disk-failed",
        "error",
        "file",
        "The disk refused a write or a sync; nothing unsaved was acknowledged.",
        "Check the disk (`dmesg`), its room and the file's permissions.",
        folds="reason",
    ),
    kind(
        "log.dropped",
        "warn",
        "first next records",
        'Owed records were deleted, as `when_full = "drop-oldest"` or a trim says.',
        "Raise `log.max_bytes`, or bring the link back that lags.",
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
        "The disk has not finished a commit for so long. Links stay up, what is published waits "
        "for its answer, nothing is lost; `log.moving` tells when it has gone on.",
        "Look for what holds the disk up: a frozen file system, a network mount, a failing device "
        "(`dmesg`).",
    ),
    kind("log.moving", "info", "", "The disk that was stalled finishes commits again."),
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
        "A named consumer is new; from now on what it has not acknowledged is kept.",
    ),
    kind(
        "consumer.replaced",
        "warn",
        "owner consumer",
        "Another client took a consumer's name; the older one was ended.",
        "If it repeats, two programs use one name.",
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
        "A named consumer was absent for `consumer_max_idle` and is owed nothing any more."
        " `info`: one of `?resume=` was absent for 10 minutes, or others needed its room.",
        "If its program still exists, start it and read what it missed from elsewhere.",
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
        "The owner of named consumers is no key of the configuration any more; they keep their "
        "records until `consumer_max_idle`.",
        "Move each to another key (`linkd consumers --move`), or delete it.",
    ),
    kind(
        "ids.forgotten",
        "warn",
        "",
        "Ids were forgotten before `id_window`: a repeated publish with one of them is stored "
        "again. Logged at most once an hour for each owner.",
        "Raise `log.max_ids`, or let the owner give fewer ids.",
    ),
    kind(
        "producers.forgotten",
        "warn",
        "",
        "Producers, or their older numbers, were forgotten before `id_window`: of an owner that "
        "has more than its share of them.",
        "Let its programs keep their producers' names over restarts.",
    ),
)
