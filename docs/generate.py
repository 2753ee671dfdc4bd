"""Write the pages that tables in the code make: `python docs/generate.py`.

With `--check` nothing is written: a page that is not current is named, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import inspect

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from linkd.config import Config
from linkd.config.loading import needs_restart
from linkd.config.validation import expectation, tables
from linkd.core.link import IGNORED, STATES, TABLE

DOCS = Path(__file__).resolve().parent

CONFIGURATION = """\
<!-- Made by docs/generate.py out of linkd/config/settings.py; don't edit it here. -->
# Configuration

linkd reads `/etc/linkd/linkd.toml`, then `/etc/linkd/linkd.d/*.toml` in the order of their
names, without those that begin with a dot;
`-c FILE` or `LINKD_CONFIG` names another file, with its own `linkd.d` beside it. Tables that may
occur several times (`[[peer]]`, `[[channel]]`, `[[api.key]]`) add up over all files; any other
setting occurs once, in one file. Samples: `conf/hub.toml`, `conf/edge.toml`, `conf/telemetry.toml`,
`conf/lab.toml`.

- Seconds are numbers (`5` or `2.5`), sizes are whole numbers of bytes and end in `_bytes`.
- A relative path starts at the directory of the first configuration file. Secrets and
  certificates are looked up in `$CREDENTIALS_DIRECTORY` first (systemd's `LoadCredential=`; also
  as `secret_NAME`, as the unit has it), and in `credentials` beside the first file last.
- A channel is words of letters, digits, `_` and `-` between dots, at most 255 bytes. In patterns
  `*` is one word and `>` is the rest.
- A secret is a file of at least 32 characters that only owner and group may read:
  `openssl rand -hex 32`.
- Without TLS nothing goes beyond loopback unless that table has `insecure = true`.

Editors complete and check the file with [linkd.schema.json](linkd.schema.json), a JSON schema: with
taplo by a first line such as `#:schema /opt/linkd/share/linkd.schema.json`.

`linkd check` reads all files, including those that they name, and prints the settings in force with
their defaults; or one line for each error, with exit code 2:

```
linkd: /etc/linkd/linkd.toml: peer[0].dail ("hub"): unknown key; did you mean `dial`?
linkd: /etc/linkd/linkd.d/b.toml: heartbeat.ping_interval: expected a number from 1 to 60, got "5"
```

An index counts within its file, from 0. `systemctl reload linkd` (SIGHUP) applies what the tables
below call *live*, leaves every link up that it doesn't touch, and names what needs a restart. A
file with an error is refused and the old configuration stays in force. Files of secrets and
certificates are read again at a reload.
"""


def configuration() -> str:
    """Return configuration.md."""
    return "\n".join([CONFIGURATION, *_settings()]).rstrip() + "\n"


class Setting(NamedTuple):
    """A key of a table, as the pages show it: Markdown within."""

    key: str
    expected: str
    default: str
    """In backticks, `required`, or empty where absent is a value of its own."""
    changes: str
    """`live` or `restart`."""
    meaning: str


def settings() -> Iterator[tuple[str, str, list[Setting]]]:
    """Yield the heading, the meaning and the keys of each table."""
    for heading, struct in tables():
        kind = inspect.type_info(struct)
        assert isinstance(kind, inspect.StructType)
        rows = [
            Setting(
                field.encode_name,
                expectation(field.type).replace('"', "`"),
                _default(field),
                "restart" if needs_restart(struct, field.name) else "live",
                _meaning(field.type),
            )
            for field in kind.fields
            if not _is_table(field.type)
        ]
        yield heading, " ".join((struct.__doc__ or "").split()), rows


def _settings() -> Iterator[str]:
    """Yield the lines of each table of settings."""
    for heading, meaning, rows in settings():
        yield from (f"## `{heading}`", "", meaning, "")
        yield "| key | value | default | changes | meaning |"
        yield "|---|---|---|---|---|"
        for row in rows:
            yield f"| `{row.key}` | {' | '.join(row[1:])} |"
        yield ""


def _is_table(kind: inspect.Type) -> bool:
    """Tell whether a setting is a table with a section of its own."""
    if isinstance(kind, inspect.Metadata):
        return _is_table(kind.type)
    if isinstance(kind, inspect.UnionType):
        return any(map(_is_table, kind.types))
    if isinstance(kind, inspect.VarTupleType):
        return _is_table(kind.item_type)
    return isinstance(kind, inspect.StructType)


def _meaning(kind: inspect.Type) -> str:
    """Return the description of a setting."""
    assert isinstance(kind, inspect.Metadata), kind
    return str((kind.extra_json_schema or {})["description"])


def _default(field: inspect.Field) -> str:
    """Return a default as TOML writes it."""
    if field.required:
        return "required"
    if field.default is None:
        return ""
    value = [] if field.default == () else field.default
    if isinstance(value, int) and not isinstance(value, bool) and value >= 10_000:
        return f"`{value:_}`"
    return f"`{json.dumps(value)}`"


LINK_STATES = """\
<!-- Made by docs/generate.py out of linkd/core/link.py; don't edit it here. -->
# The states of a link

```mermaid
stateDiagram-v2
    [*] --> stopped
{arrows}
```

`retry-now` is a kick or a change of this host's network, `greeted` a connection whose other end has
proved its identity and sent its hello; `failed-rejected` and `lost-rejected` are failures that an
operator must fix. A newer connection of the same peer takes over: from `up` to `resuming` and back.

| in state | these change nothing |
|---|---|
{ignored}

Any other pair of state and input is a bug in linkd and raises.
"""


def link_states() -> str:
    """Return the page on the states of a link."""
    between: dict[tuple[str, str], list[str]] = {}
    for (state, kind), new in TABLE.items():
        between.setdefault((state, new), []).append(kind)
    arrows = [f"    {old} --> {new}: {', '.join(kinds)}" for (old, new), kinds in between.items()]
    ignored = [
        f"| `{state}` | {', '.join(f'`{k}`' for s, k in sorted(IGNORED) if s == state)} |"
        for state in STATES
    ]
    return LINK_STATES.format(arrows="\n".join(arrows), ignored="\n".join(ignored))


def schema() -> str:
    """Return linkd.schema.json, which editors check a configuration by.

    It is for any one file: the required `[node]` may be in another one. TOML knows no null.
    """
    document = msgspec.json.schema(Config)
    del document["$defs"]["Config"]["required"]
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "linkd.toml",
        "$comment": "Made by docs/generate.py out of linkd/config/settings.py; don't edit it here.",
    }
    return json.dumps({**head, **_without_null(document)}, indent=1) + "\n"


def _without_null(node: Any) -> Any:
    """Return a schema without null, and with every table closed to unknown keys."""
    if isinstance(node, list):
        return [_without_null(item) for item in node]
    if not isinstance(node, dict):
        return node
    node = {key: _without_null(item) for key, item in node.items()}
    if isinstance(node.get("description"), str):  # a docstring: indented before Python 3.13
        node["description"] = cleandoc(node["description"])
    if isinstance(node.get("default"), dict) or node.get("default", "") is None:
        del node["default"]
    if node.get("type") == "object":
        node["additionalProperties"] = False
        node.pop("title", None)
    some = [item for item in node.pop("anyOf", []) if item != {"type": "null"}]
    return {**(some[0] if len(some) == 1 else {"anyOf": some} if some else {}), **node}


PAGES = {
    "configuration.md": configuration,
    "link-states.md": link_states,
    "linkd.schema.json": schema,
}


def stale() -> list[str]:
    """Return the pages that differ from the code."""
    return [
        name
        for name, page in PAGES.items()
        if not (DOCS / name).exists() or (DOCS / name).read_text() != page()
    ]


def main() -> int:
    """Write the pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if one is stale")
    if parser.parse_args().check:
        for name in (names := stale()):
            sys.stderr.write(f"docs/{name} is not current: run `python docs/generate.py`\n")
        return 1 if names else 0
    for name, page in PAGES.items():
        (DOCS / name).write_text(page())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
