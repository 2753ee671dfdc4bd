"""The configuration: one typed table of settings, read from TOML files, checked before use."""

from linkd.config.loading import Change, apply_live, changes, files, load
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
    "ReconnectSettings",
    "apply_live",
    "changes",
    "files",
    "load",
]
