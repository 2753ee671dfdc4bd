"""Write the tables of docs/protocol.md from the messages themselves.

    python -m docs.protocol_tables

rewrites the text between `<!-- NAME -->` and `<!-- end -->`; tests/unit/test_protocol_doc.py
fails while that would change anything.
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
from msgspec import inspect

from linkd.pairing import messages as pairing
from linkd.protocol import peer, records

DOCUMENT = Path(__file__).with_name("protocol.md")

STRUCTS: dict[str, type[msgspec.Struct]] = {
    each.__name__: each
    for each in (
        peer.Hello,
        peer.Generation,
        peer.EpochStart,
        peer.Cursor,
        peer.EpochEnd,
        peer.BatchMessage,
        peer.Part,
        peer.Volatile,
        peer.Ack,
        peer.Resend,
        peer.GapNotice,
        peer.Probe,
        peer.Probed,
        peer.Goodbye,
        records.Origin,
        records.EncodedRecord,
        pairing.AuthorityRequest,
        pairing.JoinRequest,
        pairing.RenewalRequest,
        pairing.AuthorityReply,
        pairing.JoinReply,
        pairing.RenewalReply,
        pairing.RefusalReply,
    )
}

MEANINGS: dict[str, str] = {
    "Generation.boot": "Random, new at every start of the dialer.",
    "Generation.counter": "Grows with every connection of that boot.",
    "EpochStart.epoch": "The epoch's random name.",
    "EpochStart.first": "The first offset in it.",
    "EpochEnd.epoch": "The epoch's name.",
    "EpochEnd.next": "Everything of that epoch below has come.",
    "Origin.node": "Where they were published.",
    "Origin.log": "The id of that node's log.",
    "Origin.epoch": "The epoch of that log.",
    "Origin.first": "The offset of the first record there; the others follow without holes.",
    "Origin.after": "The offset of the record before it on its channel in that epoch; 0 if there"
    " is none, nil if it is not known.",
    "Part.records": "The next bytes of the records of the last `batch`.",
    "Volatile.channel": "The records' channel.",
    "Volatile.count": "Number of records.",
    "Volatile.records": "Encoded records side by side.",
    "Volatile.time": "Unix seconds of publication.",
    "Volatile.ttl": "Seconds of life left, or nil.",
    "Volatile.node": "Where they were published.",
    "Volatile.run": "Random, new at every start of that node.",
    "Volatile.sequence": "1, 2, 3, … within that run.",
    "Volatile.presence": "The records are for nodes: who is there on the channel at `node`.",
    "Ack.next": "Everything below is on the disk of who sends this.",
    "Probe.padding": "Whatever.",
    "Probed.size": "Bytes of its padding.",
    "Resend.next": "Where the next step begins.",
    "GapNotice.previous": "Where the receiver's cursor must be.",
    "GapNotice.next": "The receiver's new position in the log.",
    "GapNotice.epoch": "The epoch of the sender's log just below `next`.",
    "AuthorityReply.certificate": "The authenticating certificate, PEM: an authority's or its own.",
    "AuthorityReply.node": "The hub's name, unproved.",
    "RenewalReply.certificate": "The new certificate, PEM, for the same key.",
    "RenewalReply.authorities": "As in `JoinReply`; the node trusts them from now on, instead of"
    " the previous ones, if one of them has signed the hub's current certificate.",
    "RefusalReply.error": "One word.",
    "RefusalReply.message": "One sentence for people.",
}
"""Of fields whose docstring speaks of all of them at once."""

_ARGUMENT = re.compile(r"^\s{4}(\w+): (.*)$")


def table(struct: type[msgspec.Struct]) -> str:
    """Return the table of one struct: place, field, type with bounds, default, meaning."""
    info = inspect.type_info(struct)
    assert isinstance(info, inspect.StructType)
    meanings = _meanings(struct)
    lines = ["| place | field | type | default | meaning |", "|---|---|---|---|---|"]
    if not info.array_like:
        lines = ["| field | type | meaning |", "|---|---|---|"]
        if info.tag_field is not None:
            lines.append(f'| `{info.tag_field}` | string | `"{info.tag}"` |')
    shift = 0 if info.tag is None else 1
    if info.array_like and info.tag is not None:
        lines.append(f'| 0 | tag | string | | `"{info.tag}"` |')
    for place, field in enumerate(info.fields):
        meaning = meanings.get(field.name) or MEANINGS[f"{struct.__name__}.{field.name}"]
        meaning = re.sub(r"\bNone\b", "nil", meaning).replace("`Code.invitation`", "below")
        meaning = re.sub(
            r"`(join_proof|hub_proof|renewal_text)`( of all that)?", "see below", meaning
        )
        kind = kind_of(field.type)
        if info.array_like:
            default = _default(field)
            lines.append(f"| {place + shift} | {field.name} | {kind} | {default} | {meaning} |")
        else:
            lines.append(f"| `{field.encode_name}` | {kind} | {meaning} |")
    return "\n".join(lines)


def kind_of(kind: inspect.Type) -> str:  # noqa: PLR0911  # one a type
    """Return a type and its bounds in words."""
    match kind:
        case inspect.IntType():
            return "integer" + _range(kind.ge, kind.le)
        case inspect.FloatType():
            return "number" + _range(kind.ge, kind.le)
        case inspect.StrType():
            return "string" + _length(kind.min_length, kind.max_length, "character")
        case inspect.BytesType() | inspect.MemoryViewType():
            return "bytes" + _length(kind.min_length, kind.max_length, "byte")
        case inspect.BoolType():
            return "boolean"
        case inspect.NoneType():
            return "nil"
        case inspect.StructType():
            return f"`{kind.cls.__name__}`"
        case inspect.VarTupleType():
            bounds = _length(kind.min_length, kind.max_length, "item")
            return f"array of {kind_of(kind.item_type)}{bounds}"
        case inspect.DictType():
            return "map of string to string" + _length(0, kind.max_length, "item")
        case inspect.UnionType():
            return " or ".join(kind_of(each) for each in kind.types)
        case _:
            raise TypeError(f"no words for {kind}")


def _range(low: float | None, high: float | None) -> str:
    if low is None and high is None:
        return ""
    shown = "2^62" if high == 2**62 else f"{high:g}"
    return f", {low:g} to {shown}"


def _length(low: int | None, high: int | None, what: str) -> str:
    if low and high:
        return f", {low} to {high} {what}s"
    return f", at most {high} {what}s" if high else ""


def _default(field: inspect.Field) -> str:
    if field.required:
        return ""
    value = field.default
    if value is msgspec.NODEFAULT:
        value = field.default_factory() if callable(field.default_factory) else None
    if value is None:
        return "nil"
    if value in ((), b"", ""):
        return "empty"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _meanings(struct: type[msgspec.Struct]) -> dict[str, str]:
    """Return the description of each field in the struct's docstring."""
    _, _, arguments = (struct.__doc__ or "").partition("Args:\n")
    meanings: dict[str, str] = {}
    last = None
    for line in arguments.splitlines():
        bare = line[4:] if line.startswith(" " * 8) else line
        match = _ARGUMENT.match(bare)
        if match and not bare.startswith(" " * 5):
            last = match[1]
            meanings[last] = match[2]
        elif last is not None and line.strip():
            meanings[last] += " " + line.strip()
    return meanings


def rewritten(text: str) -> str:
    """Return the document with its tables as they should be.

    Raises:
        KeyError: It names a struct that is not one of `STRUCTS`.
    """

    def fill(match: re.Match[str]) -> str:
        return f"<!-- {match[1]} -->\n{table(STRUCTS[match[1]])}\n<!-- end -->"

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- end -->", fill, text, flags=re.DOTALL)


def main() -> None:
    """Rewrite the document."""
    DOCUMENT.write_text(rewritten(DOCUMENT.read_text()))


if __name__ == "__main__":
    main()
