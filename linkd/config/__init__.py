"""The configuration: one typed table of settings, read from TOML files, checked before use."""

from linkd.config.addresses import (
    ENVIRONMENT,
    ProxyUrl,
    Url,
    check_login_path,
    is_loopback,
    parse_address,
    parse_network,
    parse_proxy,
    parse_url,
)
from linkd.config.loading import UnreadableConfig, files, load
from linkd.config.reload import Change, apply_live, changes
from linkd.config.settings import (
    ApiKey,
    ApiSettings,
    ChannelSettings,
    Config,
    HeartbeatSettings,
    LimitSettings,
    ListenSettings,
    LogSettings,
    NodeSettings,
    PeerSettings,
    ReconnectSettings,
)

__all__ = [
    "ENVIRONMENT",
    "ApiKey",
    "ApiSettings",
    "Change",
    "ChannelSettings",
    "Config",
    "HeartbeatSettings",
    "LimitSettings",
    "ListenSettings",
    "LogSettings",
    "NodeSettings",
    "PeerSettings",
    "ProxyUrl",
    "ReconnectSettings",
    "UnreadableConfig",
    "Url",
    "apply_live",
    "changes",
    "check_login_path",
    "files",
    "is_loopback",
    "load",
    "parse_address",
    "parse_network",
    "parse_proxy",
    "parse_url",
]
