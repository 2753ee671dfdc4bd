"""From files to a checked Config."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from linkd.config.settings import DEFAULT_FILE, Config
from linkd.errors import ConfigError


def files(path: Path | None = None, environment: Mapping[str, str] | None = None) -> list[Path]:
    """Return the files that make up the configuration, in the order in which they are read.

    Args:
        path: The file named with `-c`; None: `LINKD_CONFIG`, else /etc/linkd/linkd.toml.
        environment: Where `LINKD_CONFIG` is looked up; None: the process's.
    """
    environment = os.environ if environment is None else environment
    main = path or Path(environment.get("LINKD_CONFIG") or DEFAULT_FILE)
    return [main, *sorted((main.parent / "linkd.d").glob("*.toml"))]


def load(paths: Sequence[Path] | None = None) -> Config:
    """Return the configuration in `paths`, or in the usual files.

    Raises:
        ConfigError: Which file, which key, what was expected and got.
    """
    tables: dict[str, Any] = {}
    for path in files() if paths is None else paths:
        for key, value in tomllib.loads(path.read_text()).items():
            tables[key] = (
                tables[key] + value if key in tables and isinstance(value, list) else value
            )
    try:
        return msgspec.convert(tables, Config, strict=True)
    except msgspec.ValidationError as error:
        raise ConfigError(str(error)) from None
