"""What linkd logs: names and fields in one table, written as text for people or JSON for programs.

One line a change, one `emit` a line. Never a payload, a secret, or a line a record.
"""

from linkd.events.catalog import COMMON_FIELDS, EVENTS, Level, emit, unknown_fields
from linkd.events.observers import Observer, install, json_line, text_line

__all__ = [
    "COMMON_FIELDS",
    "EVENTS",
    "Level",
    "Observer",
    "emit",
    "install",
    "json_line",
    "text_line",
    "unknown_fields",
]
