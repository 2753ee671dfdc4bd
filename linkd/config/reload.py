"""Compare two configurations: what applies at once, and what needs a restart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, get_type_hints

import msgspec

from linkd.config.settings import ApiSettings, Config, ListenSettings, Settings
from linkd.config.validation import quote


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
