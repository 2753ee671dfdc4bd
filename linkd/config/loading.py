"""From files to a checked Config; what differs between two, and what a reload applies."""

from __future__ import annotations

import codecs
import errno
import os
import re
import stat
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import msgspec

from linkd.config.settings import DEFAULT_FILE, PATHS, ApiSettings, Config, ListenSettings, Settings
from linkd.config.validation import (
    Problem,
    missing,
    quote,
    rule_errors,
    shape_errors,
    with_own_authority,
)
from linkd.errors import ConfigError, Unavailable, is_passing

_MOST_FILE_BYTES = 16 * 1024 * 1024
_MARKS = {"UTF-8": codecs.BOM_UTF8, "UTF-16": codecs.BOM_UTF16_LE, "UTF-16 BE": codecs.BOM_UTF16_BE}


class UnreadableConfig(ConfigError, OSError):
    """A file of the configuration is not there, or this user may not read it."""


def files(path: Path | None = None, environment: Mapping[str, str] | None = None) -> list[Path]:
    """Return the files that make up the configuration, in the order in which they are read.

    Files whose names begin with a dot don't count: editors and file servers put their own there
    (`.#edge.toml`, a dangling link; `._edge.toml`, not text).

    Args:
        path: The file named with `-c`; None: `LINKD_CONFIG`, else /etc/linkd/linkd.toml.
        environment: Where `LINKD_CONFIG` is looked up; None: the process's.

    Raises:
        UnreadableConfig: `linkd.d` is there and can't be read: its peers must not be
            forgotten silently.
        Unavailable: The same, for a reason that may pass.
    """
    environment = os.environ if environment is None else environment
    main = path or Path(environment.get("LINKD_CONFIG") or DEFAULT_FILE)
    folder = main.parent / "linkd.d"
    try:
        return [main, *sorted(path for path in folder.iterdir() if _counts(path.name))]
    except (FileNotFoundError, NotADirectoryError):
        return [main]
    except OSError as error:
        if not os.access(main, os.R_OK):
            return [main]  # loading the file reports the error
        raise _unreadable(folder, error) from None


def _counts(name: str) -> bool:
    """Return whether a file in `linkd.d` is a part of the configuration."""
    return name.endswith(".toml") and not name.startswith(".")


def _unreadable(path: Path, error: OSError) -> UnreadableConfig | Unavailable:
    """Return the error of a file or directory that can't be read."""
    if path.parent.name == "linkd.d" and not os.path.lexists(path):
        return Unavailable(f"{path}: it was removed while linkd read its files: try again")
    kind = Unavailable if is_passing(error) else UnreadableConfig
    return kind(f"{path}: can't be read: {error.strerror}")


def open_file(path: str, flags: int) -> int:
    """Open a file, an `opener`; not a named pipe, which would block until it has a writer.

    Raises:
        OSError: It can't be opened, or is a named pipe.
    """
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "expected a file, got a named pipe")
    return descriptor


def load(paths: Sequence[Path] | None = None) -> Config:
    """Return the configuration in `paths`, or in the usual files.

    Relative paths in it are made absolute: a secret or certificate that systemd has put into
    `$CREDENTIALS_DIRECTORY` is taken from there, else from beside the first file or from
    `credentials` beside it. A listener without a certificate gets the node's own
    (`rules.with_own_authority`).

    Args:
        paths: Files in the order in which they are read; None: `files()`.

    Raises:
        ConfigError: One line for each error: file, key, what was expected and got.
        UnreadableConfig: A file can't be read.
        Unavailable: A file can't be read, for a reason that may pass.
    """
    chosen = list(files() if paths is None else paths)
    merged = _Merged(chosen[0])
    # The main file may be a pipe, as in `linkd check -c <(…)`.
    openers = [None, *[open_file] * len(chosen)]
    parsed = ((path, _parse(path, opener)) for path, opener in zip(chosen, openers, strict=False))
    problems = [line for path, tables in parsed for line in merged.add(path, tables)]
    if not problems:
        problems = [merged.line(problem) for problem in missing(merged.tables)]
    if problems:
        raise ConfigError("\n".join(problems))
    tables = _absolute(merged.tables, chosen[0].absolute().parent)
    config = with_own_authority(msgspec.convert(tables, Config))
    problems = [merged.line(problem) for problem in rule_errors(config)]
    if problems:
        raise ConfigError("\n".join(problems))
    return config


def _parse(path: Path, opener: Callable[[str, int], int] | None) -> dict[str, Any]:
    """Read one file as TOML."""
    try:
        with open(path, "rb", opener=opener) as file:
            content = file.read(_MOST_FILE_BYTES + 1)
    except OSError as error:
        raise _unreadable(path, error) from None
    if len(content) > _MOST_FILE_BYTES:
        raise ConfigError(f"{path}: expected at most {_MOST_FILE_BYTES} bytes")
    mark = next((name for name, sign in _MARKS.items() if content.startswith(sign)), None)
    if mark is not None:
        raise ConfigError(
            f"{path}: it begins with a byte order mark (BOM) of {mark}:"
            " save it as UTF-8 without one"
        )
    try:
        return tomllib.loads(content.decode())
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}: expected UTF-8, got other bytes in line {line}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}{_line_of(content, str(error))}") from None
    except RecursionError:
        raise ConfigError(f"{path}: not TOML that linkd reads: nested too deep") from None


def _line_of(content: bytes, error: str) -> str:
    """Return the line that an error of tomllib names, and which sign in it is not what it seems."""
    found = re.search(r"at line (\d+)", error)
    if found is None:
        return ""
    line = content.decode().split("\n")[int(found[1]) - 1].strip()
    hint = ""
    if any(sign in line for sign in "“”„‘’"):
        hint = "; use straight quotes"
    elif "\N{NO-BREAK SPACE}" in line:
        hint = "; it has a no-break space: type a plain one"
    elif error.startswith("Invalid value"):
        hint = "; a text needs quotes, a truth value is true or false"
    return f": {quote(line)}{hint}"


class _Merged:
    """The tables of all files in one, and which file each key is from."""

    def __init__(self, first: Path) -> None:
        self.tables: dict[str, Any] = {}
        self._first = first
        self._scalars: dict[tuple[str | int, ...], Path] = {}
        self._items: dict[tuple[str | int, ...], list[tuple[Path, int]]] = {}

    def add(self, path: Path, tables: dict[str, Any]) -> list[str]:
        """Merge one file's tables; return its errors, one a line."""
        problems = [f"{path}: {_key(place)}: {what}" for place, what in shape_errors(tables)]
        return problems or list(self._merge(path, self.tables, tables, ()))

    def _merge(
        self, path: Path, into: dict[str, Any], tables: dict[str, Any], place: tuple[str, ...]
    ) -> list[str]:
        """Merge tables, append arrays of tables; any other duplicate is an error."""
        problems: list[str] = []
        for key, value in tables.items():
            here = (*place, key)
            if isinstance(value, dict):
                self._scalars.setdefault(here, path)
                problems += self._merge(path, into.setdefault(key, {}), value, here)
            elif isinstance(value, list) and value and isinstance(value[0], dict):
                into.setdefault(key, []).extend(value)
                self._items.setdefault(here, []).extend((path, i) for i in range(len(value)))
            elif key in into and into[key] != []:
                earlier = self._scalars[here]
                problems.append(f"{path}: {_key(here)}: {earlier} has set it already")
            else:
                into[key] = value
                self._scalars[here] = path
        return problems

    def line(self, problem: Problem) -> str:
        """Return an error as `FILE: KEY: what`; an index counts within its file, from 0."""
        place, what = problem
        path, local_place, name = self._first, list(place), ""
        for length in range(1, len(place) + 1):
            part = place[:length]
            path = self._scalars.get(part, path)
            index = place[length] if length < len(place) else None
            if part in self._items and isinstance(index, int):
                path, local_place[length] = self._items[part][index]
                name = self._name_of(part, index)
        return f"{path}: {_key(local_place)}{name}: {what}"

    def _name_of(self, array: tuple[str | int, ...], index: int) -> str:
        """Return ` (NAME)` of an item of an array of tables, where it has one."""
        table: Any = self.tables
        for key in array:
            table = table[key]
        name = table[index].get("name")
        return f" ({quote(name)})" if name else ""


def _key(place: Sequence[str | int]) -> str:
    """Return `peer[2].dial[0]`."""
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _absolute(value: Any, base: Path, key: str = "") -> Any:
    """Return the tables with every path in them absolute."""
    if isinstance(value, dict):
        return {name: _absolute(item, base, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_absolute(item, base) for item in value]
    if key not in PATHS or not isinstance(value, str) or value[:1] in ("", "/", "$"):
        return value
    return next(filter(os.path.isfile, _places(value, base)), str(base / value))


def _places(name: str, base: Path) -> Iterator[str]:
    """Yield the possible places of a relative file name; source: systemd.exec(5), LoadCredential=.

    The unit loads the directory /etc/linkd/credentials as `secret`: systemd calls each file in it
    `secret_NAME`. Outside the service the same name finds the same file.
    """
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    if credentials:
        yield str(Path(credentials) / name)
        yield str(Path(credentials) / f"secret_{name}")
    yield str(base / name)
    yield str(base / "credentials" / name)


class Change(msgspec.Struct, frozen=True):
    """One setting, or one item of an array of tables, that differs.

    Args:
        key: As in the file: `heartbeat.ping_interval`, `peer "hub"`.
        live: A reload applies it; else it waits for a restart.
        detail: For people: `5.0 -> 2.0`, `added`, `removed`, `dial, send changed`.
    """

    key: str
    live: bool
    detail: str

    def __str__(self) -> str:
        return f"{self.key}: {self.detail}"


def changes(old: Config, new: Config) -> list[Change]:
    """Return what differs, in the order of the table of settings; nothing where nothing does."""
    return list(_differences(old, new, ""))


def apply_live(old: Config, new: Config) -> Config:
    """Return `new` with everything that needs a restart left as in `old`."""
    kept: Config = _keep(old, new)
    return kept


def needs_restart(struct: type[msgspec.Struct], field: str) -> bool:
    """Return whether a setting of a table is read at start only."""
    hint = get_type_hints(struct, include_extras=True)[field]
    notes = [note.extra or {} for note in getattr(hint, "__metadata__", ())]
    return {"reload": "restart"} in notes


def _needs_restart(struct: type[msgspec.Struct], field: str, before: object, after: object) -> bool:
    """Return whether a change needs a restart; so does turning a socket's TLS on or off."""
    socket = struct in (ListenSettings, ApiSettings)
    turns = socket and field in ("certificate", "key", "private_key")
    return needs_restart(struct, field) or (turns and (before is None) != (after is None))


def _differences(old: Settings, new: Settings, place: str) -> Iterator[Change]:
    """Compare two tables of one struct."""
    for field in msgspec.structs.fields(old):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if before == after:
            continue
        key = f"{place}{field.encode_name}"
        if isinstance(before, Settings) and isinstance(after, Settings):
            yield from _differences(before, after, f"{key}.")
        elif isinstance(before, Settings) or isinstance(after, Settings):
            yield Change(f"[{key}]", False, "removed" if after is None else "added")
        elif _named(before) or _named(after):
            yield from _items(key, before, after)
        else:
            live = not _needs_restart(type(old), field.name, before, after)
            yield Change(key, live, f"{_format(before)} -> {_format(after)}")


def _items(key: str, before: Sequence[Any], after: Sequence[Any]) -> Iterator[Change]:
    """Compare arrays of tables by their names."""
    old, new = {item.name: item for item in before}, {item.name: item for item in after}
    for name in old.keys() - new.keys():
        yield Change(f"{key} {quote(name)}", True, "removed")
    for name, item in new.items():
        if name not in old:
            yield Change(f"{key} {quote(name)}", True, "added")
        elif item != old[name]:
            names = [
                field.encode_name
                for field in msgspec.structs.fields(item)
                if getattr(item, field.name) != getattr(old[name], field.name)
            ]
            yield Change(f"{key} {quote(name)}", True, f"{', '.join(names)} changed")
    shared = [name for name in old if name in new]
    if shared != [name for name in new if name in old]:
        yield Change(key, True, "another order")


def _keep(old: Any, new: Any) -> Any:
    """Return a table with the settings of `old` where they need a restart."""
    kept = {}
    for field in msgspec.structs.fields(new):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if before == after:
            continue
        if isinstance(before, Settings) and isinstance(after, Settings):
            kept[field.name] = _keep(before, after)
        elif isinstance(before or after, Settings) or _needs_restart(
            type(new), field.name, before, after
        ):
            kept[field.name] = before
    return msgspec.structs.replace(new, **kept)


def _named(value: object) -> bool:
    """Return whether a value is an array of tables."""
    return isinstance(value, tuple) and bool(value) and isinstance(value[0], Settings)


def _format(value: object) -> str:
    """Return a value for people."""
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return "[" + ", ".join(quote(item) for item in value) + "]"
    return quote(value)
