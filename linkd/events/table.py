"""Every line that linkd logs: its name, its fields, its level, what it means and what to do."""

from __future__ import annotations

from collections.abc import Mapping

from linkd.events import link_lines, log_lines, node_lines
from linkd.events.kind import Kind

KINDS: Mapping[str, Kind] = {
    row.name: row for row in (*node_lines.ROWS, *link_lines.ROWS, *log_lines.ROWS)
}
