"""The table of all settings: every key of linkd.toml with its type, default, bounds and meaning.

Defaults, checks, docs/configuration.md and what a reload may change all come from here. A key in
TOML is the attribute's name, but for the tables that may occur several times: `[[peer]]` is
`peers`, `[[channel]]` `channels`, `[[api.key]]` `api.keys`. Seconds are floats, sizes end in
`_bytes`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

WhenFull = Literal["reject", "drop-oldest"]
Delivery = Literal["durable", "volatile"]

NAME_PATTERN = r"^[a-z0-9][a-z0-9.-]{0,62}$"
CHANNEL_PATTERN = r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$"
CONSUMER_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
DEFAULT_FILE = Path("/etc/linkd/linkd.toml")
PATHS = frozenset(
    {
        "state_dir",
        "socket",
        "secret_file",
        "certificate",
        "key",
        "private_key",
        "ca",
        "client_ca",
        "proxy_secret_file",
        "bus_password_file",
        "bus_ca",
    }
)
"""Keys whose values are paths."""

MAX_BODY_BYTES = 16 * 1024 * 1024

Reload = Literal["live", "restart"]


def _meta(description: str, reload: Reload = "live", **bounds: Any) -> Meta:
    """Return the note on one setting: what it means, whether a reload applies it, its bounds."""
    return Meta(description=description, extra={"reload": reload}, **bounds)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """A table of settings."""


class NodeSettings(Settings, frozen=True, kw_only=True):
    """This node."""

    name: Annotated[
        str,
        _meta(
            "The name that peers know this node by: 1 to 63 of `a-z`, `0-9`, `.` and `-`.",
            "restart",
        ),
    ]
    state_dir: Annotated[
        str, _meta("Directory of the log and of keys; mode 0700, one daemon at a time.", "restart")
    ] = "/var/lib/linkd"


class ApiKey(Settings, frozen=True, kw_only=True):
    """Who may call over `api.http`."""

    name: Annotated[str, _meta("The caller's name in the log and in events.")]
    secret_file: Annotated[
        str, _meta("File with the key: at least 32 characters, mode 0600 or 0640.")
    ]
    publish: Annotated[
        tuple[str, ...], _meta("Patterns of the channels that it may publish on.")
    ] = ()
    subscribe: Annotated[tuple[str, ...], _meta("Patterns of the channels that it may read.")] = ()
    default_channel: Annotated[
        Annotated[str, Meta(pattern=CHANNEL_PATTERN)] | None,
        _meta("Where its clients of `/ws` publish that name no channel; absent: `api`'s."),
    ] = None
    consumers: Annotated[
        int,
        _meta(
            "Named consumers that it may have, and as many of `?resume=`; 0: none.",
            ge=0,
            le=1_000_000,
        ),
    ] = 100
    kept_bytes: Annotated[
        Annotated[int, Meta(ge=0, le=2**50)] | None,
        _meta(
            "Bytes of the log that its named consumers may keep from going; beyond that the oldest"
            " may go although they want it. Absent: half of `log.max_bytes`; no bound for a key"
            " that may publish and read everything."
        ),
    ] = None

    @property
    def is_for_everything(self) -> bool:
        """Whether it may publish and read everything: it then acts on links and the log too."""
        return ">" in self.publish and ">" in self.subscribe


class ApiSettings(Settings, frozen=True, kw_only=True):
    """The API for applications, the commands, metrics and the dashboard."""

    socket: Annotated[
        str, _meta("Path of the unix socket, mode 0660: file permissions guard it.", "restart")
    ] = "/run/linkd/linkd.sock"
    http: Annotated[
        str | None, _meta("`HOST:PORT` for HTTP and WebSocket callers; absent: none.", "restart")
    ] = None
    require_key: Annotated[
        bool, _meta("Callers over `http` need a key; false only on loopback.")
    ] = True
    certificate: Annotated[
        str | None, _meta("PEM file with the certificate chain for `http`; absent: no TLS.")
    ] = None
    private_key: Annotated[
        str | None,
        _meta("PEM file with the private key of `certificate` (`key` is taken by `[[api.key]]`)."),
    ] = None
    insecure: Annotated[
        bool, _meta("Allow `http` beyond loopback without a certificate (a VPN, a lab).")
    ] = False
    origins: Annotated[
        tuple[str, ...],
        _meta("Origins of web pages, beside the daemon's own, from which a browser may call."),
    ] = ()
    default_channel: Annotated[
        Annotated[str, Meta(pattern=CHANNEL_PATTERN)] | None,
        _meta(
            "Where clients of `/ws` publish that name no channel; absent: a channel that the key's"
            " `publish` names, else `default`."
        ),
    ] = None
    hosts: Annotated[
        tuple[str, ...], _meta("Host names, beside the address of `http`, that callers may use.")
    ] = ()
    keys: Annotated[tuple[ApiKey, ...], _meta("Who may call over `http`.")] = msgspec.field(
        default=(), name="key"
    )


class ListenSettings(Settings, frozen=True, kw_only=True):
    """Where peers dial this node; absent where none does."""

    address: Annotated[
        str, _meta("`HOST:PORT`, `[IPV6]:PORT` or `:PORT` for all addresses.", "restart")
    ]
    certificate: Annotated[
        str | None,
        _meta(
            "PEM file with the certificate chain; absent: one of this node's own authority, made at"
            " the start, with `key` and `client_ca`; no TLS on loopback, or where `insecure`."
        ),
    ] = None
    key: Annotated[str | None, _meta("PEM file with the private key of `certificate`.")] = None
    client_ca: Annotated[
        str | None, _meta("PEM file with the authorities that sign peers' certificates.")
    ] = None
    insecure: Annotated[bool, _meta("Listen without TLS beyond loopback (a VPN, a lab).")] = False
    proxy_protocol: Annotated[
        tuple[str, ...],
        _meta(
            "Addresses and networks of balancers. Their connections must begin with a PROXY header,"
            " version 1 or 2, and count as the address in it; from others a header is an error."
        ),
    ] = ()


class HeartbeatSettings(Settings, frozen=True, kw_only=True):
    """How soon a dead path is noticed.

    By the listener after `ping_interval + ping_timeout` of silence, by the dialer after twice the
    listener's `ping_interval`.
    """

    ping_interval: Annotated[
        float, _meta("Seconds between pings of the listening end.", "live", ge=1.0, le=60.0)
    ] = 5.0
    ping_timeout: Annotated[
        float,
        _meta(
            "Seconds beyond `ping_interval` that silence may last; at most `ping_interval`.",
            "live",
            ge=1.0,
            le=60.0,
        ),
    ] = 2.0
    client_timeout: Annotated[
        Annotated[float, Meta(ge=1.0, le=600.0)] | None,
        _meta(
            "Seconds beyond `ping_interval` that a client of `/ws` or `/v1/stream` may leave pings"
            " unanswered on a path that lives; `?timeout=` asks for less. Absent: `ping_timeout`"
            " for a program on `/ws`, 30 while it may be at work on a message, for browsers and"
            " linkd's own clients."
        ),
    ] = None


class ReconnectSettings(Settings, frozen=True, kw_only=True):
    """How a dialer comes back."""

    connect_timeout: Annotated[
        float,
        _meta("Seconds that an attempt may take, from name look-up to hello.", ge=1.0, le=60.0),
    ] = 5.0
    max_delay: Annotated[
        float, _meta("The longest delay in seconds after broken attempts.", ge=0.5, le=3600.0)
    ] = 15.0
    stable_after: Annotated[
        float,
        _meta("Seconds that a connection must be up before delays start over.", ge=0.0, le=3600.0),
    ] = 5.0


class PostgresqlSettings(Settings, frozen=True, kw_only=True):
    """The database of the log, where `log.engine` is `postgresql`."""

    dsn: Annotated[
        str,
        _meta(
            "How to connect, as libpq has it: `host=pg1,pg2 dbname=linkd user=linkd"
            " sslmode=verify-full`; without a password.",
            "restart",
        ),
    ]
    password_file: Annotated[
        str | None, _meta("File with the password of the database's user.", "restart")
    ] = None
    engine_timeout: Annotated[
        float,
        _meta(
            "Seconds that a publish waits for a database that does not answer, before it is"
            " answered with 503 `log-unavailable`.",
            "restart",
            ge=1.0,
            le=300.0,
        ),
    ] = 10.0
    synchronous: Annotated[
        Literal["required", "preferred", "single"],
        _meta(
            "Whether a synchronous standby must be configured there: `required` refuses a database"
            " without one, `preferred` warns, `single` is for a database that has none.",
            "restart",
        ),
    ] = "required"
    insecure: Annotated[
        bool,
        _meta("Allow other than `sslmode=verify-full` beyond this host (a VPN, a lab).", "restart"),
    ] = False


class LogSettings(Settings, frozen=True, kw_only=True):
    """The durable log."""

    engine: Annotated[
        Literal["segments", "postgresql"],
        _meta(
            "Where the log is stored: `segments` are append-only files in `state_dir`,"
            " `postgresql` is a database.",
            "restart",
        ),
    ] = "segments"
    postgresql: PostgresqlSettings | None = None
    max_bytes: Annotated[
        int, _meta("The log's bound on disk.", "restart", ge=16_777_216, le=2**50)
    ] = 10_737_418_240
    max_age: Annotated[
        float,
        _meta(
            "Seconds after which a record may be deleted, if no peer is still owed it.",
            "restart",
            ge=60.0,
            le=1e9,
        ),
    ] = 604_800.0
    min_free_bytes: Annotated[
        int,
        _meta(
            "Publishes are refused below so much free disk; before that, records go that nobody is "
            "owed.",
            "restart",
            ge=1_048_576,
            le=2**50,
        ),
    ] = 67_108_864
    when_full: Annotated[
        WhenFull,
        _meta(
            "`reject` refuses publishes, `drop-oldest` deletes owed records and reports the gap.",
            "restart",
        ),
    ] = "reject"
    max_body_bytes: Annotated[
        int,
        _meta(
            "The largest message published here; up to 16 MiB. What peers send may have 16 MiB.",
            "restart",
            ge=1024,
            le=MAX_BODY_BYTES,
        ),
    ] = 1_048_576
    segment_bytes: Annotated[
        int,
        _meta(
            "A log file is closed and the next begun at this size.",
            "restart",
            ge=1_048_576,
            le=2**31,
        ),
    ] = 67_108_864
    memory_bytes: Annotated[
        int,
        _meta(
            "The newest part of the log that is kept in memory.", "restart", ge=1_048_576, le=2**40
        ),
    ] = 33_554_432
    id_window: Annotated[
        float,
        _meta(
            "Seconds in which a repeated `id` is recognised.", "restart", ge=0.0, le=31_536_000.0
        ),
    ] = 86_400.0
    max_ids: Annotated[
        int, _meta("The most ids remembered; the oldest go first.", "restart", ge=1000, le=10**9)
    ] = 1_000_000
    consumer_max_idle: Annotated[
        float,
        _meta("Seconds after which an absent named consumer is removed.", ge=60.0, le=31_536_000.0),
    ] = 604_800.0


class ChannelSettings(Settings, frozen=True, kw_only=True):
    """How messages on some channels are treated; the first match wins, the default is durable."""

    name: Annotated[str, _meta("A channel or a pattern.")]
    delivery: Annotated[
        Delivery,
        _meta("`durable`: on disk first; `volatile`: sent if the link is up, else dropped."),
    ] = "durable"
    ttl: Annotated[
        Annotated[float, Meta(gt=0.0, le=1e9)] | None,
        _meta("Seconds after which a message is worthless; absent: never."),
    ] = None


class PeerSettings(Settings, frozen=True, kw_only=True):
    """Another node."""

    name: Annotated[str, _meta("The peer's `node.name`.")]
    dial: Annotated[
        tuple[str, ...],
        _meta("URLs, tried in turn: `wss://HOST:PORT/link`; absent: the peer dials this node."),
    ] = ()
    proxy: Annotated[
        str | None,
        _meta(
            "Dial through a proxy, which looks the peer's name up: `http://HOST:PORT` (CONNECT) or"
            " `socks5://HOST:PORT`; `environment`: as `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and"
            " `NO_PROXY` say. Absent: directly, whatever the environment says."
        ),
    ] = None
    proxy_secret_file: Annotated[
        str | None,
        _meta("File whose first line is `USER:PASSWORD` for the proxy, mode 0600 or 0640."),
    ] = None
    send: Annotated[tuple[str, ...], _meta("Patterns: what of this node's log goes to it.")] = ()
    receive: Annotated[
        tuple[str, ...],
        _meta("Patterns: what this node takes from it; at most 1,024, of 24 KiB together."),
    ] = ()
    relay: Annotated[
        bool,
        _meta("Take records from it that began at a third node; false: only what began there."),
    ] = True
    required: Annotated[bool, _meta("Counts for `/readyz` and `linkd status --check`.")] = False
    secret_file: Annotated[
        str | None, _meta("File with the shared secret: at least 32 characters, mode 0600 or 0640.")
    ] = None
    ca: Annotated[str | None, _meta("PEM file with the authority of the peer's certificate.")] = (
        None
    )
    certificate: Annotated[
        str | None, _meta("PEM file with this node's certificate for this peer.")
    ] = None
    key: Annotated[str | None, _meta("PEM file with the private key of `certificate`.")] = None
    insecure: Annotated[bool, _meta("Allow `ws://` beyond loopback (a VPN, a lab).")] = False
    compress: Annotated[bool, _meta("Compress what is sent with zstd, where both ends can.")] = (
        False
    )
    when_full: Annotated[
        WhenFull | None, _meta("Overrides `log.when_full` for what is owed to this peer.")
    ] = None


class LimitSettings(Settings, frozen=True, kw_only=True):
    """Bounds against floods; the defaults suit ten thousand peers."""

    hello_timeout: Annotated[
        float,
        _meta("Seconds in which an accepted connection must send its hello.", ge=1.0, le=60.0),
    ] = 5.0
    pending: Annotated[int, _meta("Connections without a hello, in all.", ge=1, le=1_000_000)] = (
        1024
    )
    pending_per_address: Annotated[
        int, _meta("Connections without a hello from one address.", ge=1, le=1_000_000)
    ] = 64
    handshakes_per_second: Annotated[
        Annotated[float, Meta(ge=1.0, le=1e6)] | None,
        _meta("A cap on new connections a second, in all; absent: as many as the event loop can."),
    ] = None
    handshakes_per_second_per_address: Annotated[
        float, _meta("New connections a second from one address.", ge=0.1, le=1e6)
    ] = 20.0
    header_bytes: Annotated[int, _meta("The largest head of a request.", ge=1024, le=1_048_576)] = (
        16_384
    )
    api_connections: Annotated[
        int, _meta("Connections to the API, in all.", ge=4, le=1_000_000)
    ] = 4096
    api_connections_per_address: Annotated[
        int, _meta("Connections to `api.http` from one address.", ge=1, le=1_000_000)
    ] = 256
    subscriptions: Annotated[
        int, _meta("Subscriptions of one API connection.", ge=1, le=100_000)
    ] = 256
    consumers: Annotated[int, _meta("Named consumers.", ge=1, le=1_000_000)] = 10_000
    publish_pending_bytes: Annotated[
        int,
        _meta(
            "Bytes of publishes that wait for the disk, per API connection; each publish counts "
            "for 1,024 more.",
            ge=1_048_576,
            le=2**34,
        ),
    ] = 33_554_432


class ClusterSettings(Settings, frozen=True, kw_only=True):
    """This instance of the node, where several serve one log in PostgreSQL."""

    instance: Annotated[
        str,
        _meta(
            "Name of this instance, such as `hub-a`; all have the same `node.name`.",
            "restart",
        ),
    ]
    bus: Annotated[
        str | None,
        _meta(
            "Redis for volatile messages, presence and wake-ups between instances:"
            " `rediss://redis.example.net:6379`, or with Sentinel"
            " `rediss+sentinel://s1:26379,s2:26379/linkd`. Without it volatile messages stay at the"
            " instance that has them.",
            "restart",
        ),
    ] = None
    bus_password_file: Annotated[
        str | None,
        _meta(
            "File with the password of Redis, read at each connection. Sentinels get none.",
            "restart",
        ),
    ] = None
    bus_ca: Annotated[
        str | None,
        _meta(
            "File with the certificates of the authorities that vouch for Redis, instead of the"
            " system's.",
            "restart",
        ),
    ] = None
    insecure: Annotated[
        bool,
        _meta(
            "Allow Redis without TLS or without a password beyond this host (a VPN, a lab).",
            "restart",
        ),
    ] = False


class Config(Settings, frozen=True, kw_only=True):
    """The whole configuration, checked."""

    node: NodeSettings
    api: ApiSettings = ApiSettings()
    listen: ListenSettings | None = None
    heartbeat: HeartbeatSettings = HeartbeatSettings()
    reconnect: ReconnectSettings = ReconnectSettings()
    log: LogSettings = LogSettings()
    cluster: ClusterSettings | None = None
    limits: LimitSettings = LimitSettings()
    channels: tuple[ChannelSettings, ...] = msgspec.field(default=(), name="channel")
    peers: tuple[PeerSettings, ...] = msgspec.field(default=(), name="peer")

    def peer(self, name: str) -> PeerSettings | None:
        """Return the peer of that name, if there is one."""
        return next((peer for peer in self.peers if peer.name == name), None)
