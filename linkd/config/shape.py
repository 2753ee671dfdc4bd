"""Whether a TOML document has the shape of the table of settings; which key has not."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from msgspec import inspect

from linkd.config.settings import Config

Trouble = tuple[tuple[str | int, ...], str]
"""Where, as keys and indexes, and what."""

_ROOT = inspect.type_info(Config)


def misshapen(tables: Mapping[str, Any]) -> list[Trouble]:
    """Return every unknown key, wrong type and impossible value in one file.

    A missing key is not looked for: another file may have it.
    """
    return list(_check(_ROOT, dict(tables), ()))


def missing(tables: Mapping[str, Any]) -> list[Trouble]:
    """Return every key that is required and absent once all files are merged."""
    return list(_missing(_ROOT, dict(tables), ()))


def shown(value: object) -> str:
    """Return a value as TOML would have it, shortened for a message."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value if len(value) <= 60 else value[:60] + "…", ensure_ascii=False)
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "an array of tables" if value and isinstance(value[0], dict) else "an array"
    return str(value)


def _check(kind: inspect.Type, value: object, place: tuple[str | int, ...]) -> Iterator[Trouble]:
    """Compare a value with its type."""
    if isinstance(kind, inspect.Metadata):
        yield from _check(kind.type, value, place)
    elif isinstance(kind, inspect.UnionType):
        yield from _check(_present(kind), value, place)
    elif isinstance(kind, inspect.StructType):
        yield from _check_table(kind, value, place)
    elif isinstance(kind, inspect.VarTupleType):
        if not isinstance(value, list):
            yield place, f"expected {expectation(kind)}, got {shown(value)}"
            return
        for index, item in enumerate(value):
            yield from _check(kind.item_type, item, (*place, index))
    elif not _fits(kind, value):
        yield place, f"expected {expectation(kind)}, got {shown(value)}{_meant(kind, value)}"


def _check_table(
    kind: inspect.StructType, value: object, place: tuple[str | int, ...]
) -> Iterator[Trouble]:
    """Compare a table's keys with the settings of its struct."""
    if not isinstance(value, dict):
        yield place, f"expected a table, got {shown(value)}"
        return
    known = {field.encode_name: field for field in kind.fields}
    for key, item in value.items():
        if key in known:
            yield from _check(known[key].type, item, (*place, key))
        else:
            yield (*place, key), f"unknown key; {_hint(key, tuple(known), place)}"


def _missing(kind: inspect.Type, value: object, place: tuple[str | int, ...]) -> Iterator[Trouble]:
    """Look for absent keys that have no default."""
    if isinstance(kind, inspect.Metadata):
        yield from _missing(kind.type, value, place)
    elif isinstance(kind, inspect.UnionType):
        yield from _missing(_present(kind), value, place)
    elif isinstance(kind, inspect.VarTupleType) and isinstance(value, list):
        for index, item in enumerate(value):
            yield from _missing(kind.item_type, item, (*place, index))
    elif isinstance(kind, inspect.StructType) and isinstance(value, dict):
        for field in kind.fields:
            if field.encode_name in value:
                yield from _missing(
                    field.type, value[field.encode_name], (*place, field.encode_name)
                )
            elif field.required:
                what = expectation(field.type)
                yield (*place, field.encode_name), f"missing: expected {what}"


def expectation(kind: inspect.Type) -> str:
    """Say in words what a setting takes."""
    if isinstance(kind, inspect.Metadata):
        return expectation(kind.type)
    if isinstance(kind, inspect.UnionType):
        return expectation(_present(kind))
    if isinstance(kind, inspect.LiteralType):
        return " or ".join(f'"{value}"' for value in kind.values)
    if isinstance(kind, inspect.VarTupleType):
        if isinstance(kind.item_type, inspect.StructType):
            return "an array of tables, each under [[…]]"
        return "an array of strings"
    if isinstance(kind, inspect.IntType | inspect.FloatType):
        return (
            f"{'a whole number' if isinstance(kind, inspect.IntType) else 'a number'}{_range(kind)}"
        )
    if isinstance(kind, inspect.BoolType):
        return "true or false"
    return "a table" if isinstance(kind, inspect.StructType) else "a string"


def _range(kind: inspect.IntType | inspect.FloatType) -> str:
    """Say in words which numbers are possible."""
    if kind.gt is not None:
        return f" above {kind.gt:g} and at most {kind.le:g}"
    low, high = kind.ge, kind.le
    if isinstance(kind, inspect.IntType):
        return f" from {low} to {high}"
    return f" from {low:g} to {high:g}"


def _fits(kind: inspect.Type, value: object) -> bool:
    """Tell whether a scalar is of its type and within its bounds; not a number is within none."""
    if isinstance(kind, inspect.BoolType):
        return isinstance(value, bool)
    if isinstance(kind, inspect.StrType):
        return isinstance(value, str)
    if isinstance(kind, inspect.LiteralType):
        return isinstance(value, str) and value in kind.values
    assert isinstance(kind, inspect.IntType | inspect.FloatType), kind
    allowed = int if isinstance(kind, inspect.IntType) else int | float
    if isinstance(value, bool) or not isinstance(value, allowed):
        return False
    low = True if kind.ge is None else value >= kind.ge
    above = True if kind.gt is None else value > kind.gt
    return low and above and (kind.le is None or value <= kind.le)


def _present(kind: inspect.UnionType) -> inspect.Type:
    """Return what an optional setting is where it is given."""
    return next(each for each in kind.types if not isinstance(each, inspect.NoneType))


def _meant(kind: inspect.Type, value: object) -> str:
    """Suggest the word that was meant among a setting's few."""
    if isinstance(kind, inspect.LiteralType) and isinstance(value, str):
        near = difflib.get_close_matches(value.lower(), [str(each) for each in kind.values], 1, 0.5)
        if near:
            return f'; did you mean "{near[0]}"?'
    return ""


def _hint(key: str, known: tuple[str, ...], place: tuple[str | int, ...]) -> str:
    """Say which key was meant, or where this one belongs, or what there is."""
    word = key.lower().replace("-", "_")
    longer = [name for name in known if len(word) > 2 and name.startswith(f"{word}_")]
    near = longer or difflib.get_close_matches(word, known, 1, 0.6)
    if near:
        return f"did you mean `{near[0]}`?"
    homes = [home for home in HOMES.get(key, ()) if home != _table(place)]
    if homes:
        return f"`{key}` belongs under {' or '.join(homes)}"
    return f"expected one of {', '.join(known)}"


def _table(place: tuple[str | int, ...]) -> str:
    """Return the heading under which a place lies."""
    words = ".".join(str(each) for each in place if isinstance(each, str))
    return f"[[{words}]]" if place and isinstance(place[-1], int) else f"[{words}]"


def tables() -> Iterator[tuple[str, type[msgspec.Struct]]]:
    """Yield every table's heading and its struct, in the order of the documentation."""
    assert isinstance(_ROOT, inspect.StructType)
    for field in _ROOT.fields:
        kind = _unwrap(field.type)
        yield from _tables(kind, field.encode_name)


def _tables(kind: inspect.Type, name: str) -> Iterator[tuple[str, type[msgspec.Struct]]]:
    """Yield a table and the tables within it."""
    array = isinstance(kind, inspect.VarTupleType)
    item = _unwrap(kind.item_type) if isinstance(kind, inspect.VarTupleType) else kind
    if isinstance(item, inspect.StructType):
        yield (f"[[{name}]]" if array else f"[{name}]"), item.cls
        for field in item.fields:
            yield from _tables(_unwrap(field.type), f"{name}.{field.encode_name}")


def _unwrap(kind: inspect.Type) -> inspect.Type:
    """Return a type without its notes and its None."""
    if isinstance(kind, inspect.Metadata):
        return _unwrap(kind.type)
    return _unwrap(_present(kind)) if isinstance(kind, inspect.UnionType) else kind


def _homes() -> dict[str, list[str]]:
    """Return under which headings each key is known."""
    homes: dict[str, list[str]] = {}
    for heading, struct in tables():
        for field in msgspec.structs.fields(struct):
            homes.setdefault(field.encode_name, []).append(heading)
    return homes


HOMES = _homes()
