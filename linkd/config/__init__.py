"""The configuration: one typed table of settings, read from TOML files, checked before anything starts."""

from linkd.config.loading import files, load
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
    "ChannelSettings",
    "Config",
    "HeartbeatSettings",
    "LimitSettings",
    "ListenSettings",
    "LogSettings",
    "NodeSettings",
    "PeerSettings",
    "ReconnectSettings",
    "files",
    "load",
]
