"""Options that many commands share, and how a client command finds its daemon."""

from __future__ import annotations

import argparse
import difflib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

if TYPE_CHECKING:
    from linkd.config import Config

DEFAULT_SOCKET: Final = "/run/linkd/linkd.sock"
MAX_TTL_SECONDS: Final = 1e9
MAX_WAIT_SECONDS: Final = 3600.0
"""As the daemon has them."""


EXAMPLES: Final = {
    "check": ("linkd check && systemctl reload linkd",),
    "status": ("linkd status --watch", "linkd status hub", "linkd status --check"),
    "instances": ("linkd instances",),
    "publish": (
        "linkd publish orders '{\"id\": 7}' --wait hub",
        "tail -F access.log | linkd publish web.log --lines",
    ),
    "subscribe": (
        "linkd subscribe orders --from earliest",
        "linkd subscribe 'orders.>' --consumer billing --json",
    ),
    "consumers": ("linkd consumers --delete billing",),
    "events": ("linkd events --follow",),
    "outages": ("linkd outages hub --since 7d --no-drills --no-planned",),
    "log": ("linkd log stat", "linkd log verify"),
    "token": ("linkd token --dashboard",),
    "drill": ("linkd drill --lab blackhole --show", "linkd drill blackhole --peer hub"),
    "drain": ("linkd drain && systemctl restart linkd", "linkd drain --undo"),
    "invite": ("linkd invite edge-1 --address hub.example.net --receive orders",),
    "join": ("linkd join CODE",),
    "report": ("sudo linkd report",),
    "completion": ('eval "$(linkd completion bash)"', "linkd completion fish | source"),
}
"""Lines to copy below the help of a command."""


class StrictParser(argparse.ArgumentParser):
    """A parser without abbreviated options: a new option must not break a script."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse; exit with the nearest option where an unknown one looks like a mistake in it.

        The parser of a command does this for its own options, before the outer one sees them.
        """
        found, rest = super().parse_known_args(args, namespace)
        for word in rest:
            name = word.partition("=")[0]
            near = difflib.get_close_matches(name, self._option_string_actions, 1)
            if name.startswith("--") and near:
                self.error(f"there is no option {name[:60]} (did you mean {near[0]}?)")
        return found, rest

    def error(self, message: str) -> NoReturn:
        """Exit with the error; name the nearest choice, or options that took an argument."""
        choice = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)$", message)
        if choice:
            near = difflib.get_close_matches(choice[1], re.findall(r"[\w-]+", choice[2]), 1)
            message += f"; did you mean {near[0]!r}?" if near else ""
        greedy = [one.option_strings[-1] for one in self._actions if one.nargs == "+"
                  and one.option_strings]  # fmt: skip
        if greedy and message.startswith("the following arguments are required: "):
            missing = message.partition(": ")[2]
            message += f" ({' and '.join(greedy)} take every word behind them: put {missing} first)"
        super().error(message)

    def format_help(self) -> str:
        """Return the help, with examples at the end."""
        examples = EXAMPLES.get(self.prog.removeprefix("linkd "), ())
        lines = ["", "examples:", *(f"  {line}" for line in examples)] if examples else []
        return super().format_help() + "".join(f"{line}\n" for line in lines)


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add `-c FILE`: allowed before or after the command's name."""
    parser.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="configuration file (default: LINKD_CONFIG, else /etc/linkd/linkd.toml)",
    )


def add_socket(parser: argparse.ArgumentParser) -> None:
    """Add `-c FILE` and `--socket PATH`."""
    add_config(parser)
    parser.add_argument(
        "--socket",
        metavar="PATH",
        default=argparse.SUPPRESS,
        help="the daemon's socket (default: LINKD_SOCKET, else from the configuration)",
    )


def seconds(text: str, most: float = MAX_TTL_SECONDS) -> float:
    """Return the seconds in `text`; for argparse.

    Raises:
        ArgumentTypeError: It is not a number above 0 and up to `most`.
    """
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0.0 < found <= most:
        raise argparse.ArgumentTypeError(
            f"expected seconds, above 0 and at most {most:,.0f}, got {text!r}"
        )
    return found


def wait_seconds(text: str) -> float:
    """Return how long to wait, in seconds, at most an hour; for argparse."""
    return seconds(text, MAX_WAIT_SECONDS)


def socket_path(arguments: argparse.Namespace) -> str:
    """Return the daemon's socket: `--socket`, `LINKD_SOCKET`, the configuration, the default path.

    A configuration named explicitly must be readable and valid. From the default one only the
    socket is needed: an error in it must not hide a daemon that runs on its previous version.

    Raises:
        ConfigError: The configuration can't be used.
    """
    named = getattr(arguments, "socket", None) or os.environ.get("LINKD_SOCKET")
    if named:
        return str(named)
    if config_path(arguments):
        return configuration(arguments).api.socket
    try:
        found = Path("/etc/linkd/linkd.toml").is_file()
    except OSError:
        found = False
    if not found or not os.access("/etc/linkd/linkd.toml", os.R_OK):
        return DEFAULT_SOCKET
    return _socket_in(Path("/etc/linkd/linkd.toml"))


def _socket_in(path: Path) -> str:
    """Return `api.socket` of a configuration that may be invalid, else the default."""
    import tomllib  # noqa: PLC0415 - most commands need no TOML reader

    try:
        api = tomllib.loads(path.read_text()).get("api", {})
    except (OSError, ValueError):
        return DEFAULT_SOCKET
    found = api.get("socket") if isinstance(api, dict) else None
    return found if isinstance(found, str) else DEFAULT_SOCKET


def configuration(arguments: argparse.Namespace) -> Config:
    """Return the configuration that `-c` or `LINKD_CONFIG` names, else the default one.

    Raises:
        ConfigError: It can't be used; the message names the file and key.
    """
    from linkd.config import files, load  # noqa: PLC0415 - most commands need no TOML reader
    from linkd.errors import ConfigError  # noqa: PLC0415

    try:
        return load(files(config_path(arguments)))
    except OSError as error:
        message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        raise ConfigError(message) from None


def config_path(arguments: argparse.Namespace) -> Path | None:
    """Return the file that `-c` or `LINKD_CONFIG` names; None: the usual one."""
    named = getattr(arguments, "config", None) or os.environ.get("LINKD_CONFIG")
    return Path(named) if named else None
