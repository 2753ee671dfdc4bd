"""The life of a link: its connection, its state, takeover, and when to dial again.

Pure: inputs and `now` go in, effects come out. The driver performs the effects in their order and
calls `handle(Deadline(), now)` at `deadline`.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Literal, NamedTuple, get_args

import msgspec

from linkd.core.backoff import Backoff
from linkd.errors import FailureKind, LocalProtocolError, Reason
from linkd.protocol.peer import Generation
from linkd.status import LinkState


class Start(msgspec.Struct, frozen=True):
    """The node has started, or the peer was added."""


class Stop(msgspec.Struct, frozen=True):
    """The node stops, or the peer was removed."""

    detail: str


class RetryNow(msgspec.Struct, frozen=True):
    """An operator wants an attempt now."""


class NetworkChanged(msgspec.Struct, frozen=True):
    """Addresses or routes of this host have changed."""


class Deadline(msgspec.Struct, frozen=True):
    """The deadline may have come."""


class AttemptBegan(msgspec.Struct, frozen=True):
    """The dialer has begun an attempt, or tries the next address of it."""


class Opening(msgspec.Struct, frozen=True):
    """The attempt has a TCP connection; TLS and the handshake follow."""


class FailedAttempt(msgspec.Struct, frozen=True):
    """The attempt has failed; the fields are those of `linkd.errors.AttemptFailed`."""

    kind: FailureKind
    reason: Reason
    detail: str
    retry_after: float | None = None
    return_spread: float | None = None


class Greeted(msgspec.Struct, frozen=True):
    """A connection whose peer has proved its identity and sent its hello.

    Args:
        connection: Its key.
        generation: Chosen by the end that dialed.
        log: The peer's log id.
        dialed: We dialed it.
        address: The other end, for logs.
    """

    connection: int
    generation: Generation
    log: str
    dialed: bool
    address: str


class Resumed(msgspec.Struct, frozen=True):
    """The two ends agree on where each log resumes; `owed`: the peer lacks some of our log."""

    connection: int
    owed: bool = False


class Acknowledged(msgspec.Struct, frozen=True):
    """The peer has acknowledged something on the live connection."""


class Diverged(msgspec.Struct, frozen=True):
    """The two logs have nothing in common."""

    detail: str


class Resynced(msgspec.Struct, frozen=True):
    """An operator has chosen where to resume (`linkd resync`); `Resumed` follows."""


class Lost(msgspec.Struct, frozen=True):
    """A connection that completed the handshake has ended.

    Args:
        connection: Its key.
        reason: One word of `Reason`.
        detail: One sentence.
        retry_after: Seconds that the peer asked us to stay away, or None.
        silent: It was ended for silence.
        return_spread: Seconds over which dialers are to come back, as its listener announced, or
            None.
    """

    connection: int
    reason: Reason
    detail: str
    retry_after: float | None = None
    silent: bool = False
    return_spread: float | None = None


Input = (
    Start
    | Stop
    | RetryNow
    | NetworkChanged
    | Deadline
    | AttemptBegan
    | Opening
    | FailedAttempt
    | Greeted
    | Resumed
    | Acknowledged
    | Diverged
    | Resynced
    | Lost
)


class Dial(msgspec.Struct, frozen=True):
    """Begin an attempt after so many seconds; replaces what was scheduled or is under way."""

    after: float


class StopDialing(msgspec.Struct, frozen=True):
    """Drop what is scheduled or under way."""


class Adopt(msgspec.Struct, frozen=True):
    """This connection is the link's now; begin the session on it. Always the last effect."""

    connection: int


class Abort(msgspec.Struct, frozen=True):
    """End a connection at once."""

    connection: int
    reason: Reason
    detail: str


class Refuse(msgspec.Struct, frozen=True):
    """Close, with a reason, a connection that never became the link's."""

    connection: int
    reason: Reason
    detail: str
    retry_after: float | None = None


class Changed(msgspec.Struct, frozen=True):
    """The link's state has changed."""

    old: LinkState
    new: LinkState
    reason: Reason | None
    detail: str | None


Effect = Dial | StopDialing | Adopt | Abort | Refuse | Changed


CLONE_TAKEOVERS = 3
"""Two boots that take over from each other this often within CLONE_WINDOW run on two hosts.

A peer that merely restarts takes over once: its old boot never comes back.
"""

CLONE_WINDOW = 60.0

CLONE_MEMORY = 600.0
"""A clone stays refused for this many seconds after its last attempt, if the other is connected."""


class Refusal(NamedTuple):
    """Why a newcomer does not become the link's connection."""

    reason: Reason
    detail: str


class Takeovers:
    """Judge newcomers against the live connection, and remember who took over from whom.

    Args:
        name: This node's name.
        peer: The peer's name.
    """

    __slots__ = ("_clones", "_name", "_peer", "_recent")

    def __init__(self, name: str, peer: str) -> None:
        self._name = name
        self._peer = peer
        self._recent: deque[tuple[float, str, str]] = deque(maxlen=16)
        self._clones: dict[str, float] = {}

    def judge(self, live: Greeted, new: Greeted, now: float) -> Refusal | None:
        """Return why `new` is refused, or None: it takes over from `live`.

        Args:
            live: The link's connection.
            new: The newcomer.
            now: Seconds on the injected monotonic clock.
        """
        if new.log != live.log:
            return Refusal(
                "duplicate",
                f"another log ({new.log}) under the name of {self._peer} while one ({live.log}) is"
                f" connected: {live.address} is connected, {new.address} was refused",
            )
        if new.dialed != live.dialed:
            return self._both_dial(live)
        if new.generation.boot == live.generation.boot:
            if new.generation.counter > live.generation.counter:
                return None
            return Refusal("replaced", f"a newer connection of {self._peer} is already there")
        return self._other_boot(live, new, now)

    def _both_dial(self, live: Greeted) -> Refusal | None:
        """Keep what the lesser name dialed: both ends decide alike, without a message."""
        if live.dialed == (self._name < self._peer):
            lesser = min(self._name, self._peer)
            return Refusal("replaced", f"both ends dial; the connection dialed by {lesser} stays")
        return None

    def _other_boot(self, live: Greeted, new: Greeted, now: float) -> Refusal | None:
        """Let another boot of the peer take over, unless two of them fight."""
        old_boot, new_boot = live.generation.boot, new.generation.boot
        known = self._clones.get(new_boot)
        pair = {old_boot, new_boot}
        while self._recent and now - self._recent[0][0] >= CLONE_WINDOW:
            self._recent.popleft()
        fights = sum({old, new} == pair for _, old, new in self._recent)
        if (known is not None and now < known) or fights >= CLONE_TAKEOVERS - 1:
            self._clones = {boot: until for boot, until in self._clones.items() if now < until}
            if len(self._clones) < 64:
                self._clones[new_boot] = now + CLONE_MEMORY
            return Refusal(
                "duplicate",
                f"two hosts use the name {self._peer} and take over from each other:"
                f" {live.address} is connected, {new.address} was refused; give one of them another"
                " name and an empty state_dir",
            )
        self._recent.append((now, old_boot, new_boot))
        return None


Kind = Literal[
    "start",
    "stop",
    "retry-now",
    "deadline",
    "began",
    "opening",
    "failed",
    "failed-rejected",
    "greeted",
    "refused",
    "resumed",
    "acknowledged",
    "diverged",
    "resynced",
    "lost",
    "lost-rejected",
    "late",
]
"""Kinds of inputs, distinguished where they lead to different states."""

STATES: Final[tuple[LinkState, ...]] = get_args(LinkState)
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

TABLE: Final[dict[tuple[LinkState, Kind], LinkState]] = {
    ("stopped", "start"): "waiting",
    ("connecting", "stop"): "stopped",
    ("connecting", "retry-now"): "waiting",
    ("connecting", "opening"): "opening",
    ("connecting", "failed"): "waiting",
    ("connecting", "failed-rejected"): "rejected",
    ("connecting", "greeted"): "resuming",
    ("opening", "stop"): "stopped",
    ("opening", "failed"): "waiting",
    ("opening", "failed-rejected"): "rejected",
    ("opening", "greeted"): "resuming",
    ("resuming", "stop"): "stopped",
    ("resuming", "resumed"): "up",
    ("resuming", "diverged"): "diverged",
    ("resuming", "greeted"): "resuming",
    ("resuming", "lost"): "waiting",
    ("resuming", "lost-rejected"): "rejected",
    ("up", "stop"): "stopped",
    ("up", "diverged"): "diverged",
    ("up", "greeted"): "resuming",
    ("up", "lost"): "waiting",
    ("up", "lost-rejected"): "rejected",
    ("waiting", "stop"): "stopped",
    ("waiting", "retry-now"): "waiting",
    ("waiting", "began"): "connecting",
    ("waiting", "failed"): "waiting",
    ("waiting", "failed-rejected"): "rejected",
    ("waiting", "greeted"): "resuming",
    ("rejected", "stop"): "stopped",
    ("rejected", "retry-now"): "rejected",
    ("rejected", "began"): "connecting",
    ("rejected", "failed"): "waiting",
    ("rejected", "failed-rejected"): "rejected",
    ("rejected", "greeted"): "resuming",
    ("diverged", "stop"): "stopped",
    ("diverged", "resynced"): "resuming",
    ("diverged", "greeted"): "resuming",
    ("diverged", "lost"): "waiting",
    ("diverged", "lost-rejected"): "rejected",
}
"""The next state for each state and kind of input; docs/link-states.md is drawn from it."""

_EVERYWHERE: Final[tuple[Kind, ...]] = ("deadline", "acknowledged", "refused", "late")
_CONNECTED: Final[tuple[LinkState, ...]] = ("resuming", "up", "diverged")
_ATTEMPT: Final[tuple[Kind, ...]] = ("retry-now", "began", "opening", "failed", "failed-rejected")

IGNORED: Final[frozenset[tuple[LinkState, Kind]]] = frozenset(
    # These change no state anywhere; a late input of an older connection is one of them.
    [(state, kind) for state in STATES for kind in _EVERYWHERE]
    # While a connection lives, our own attempts don't count: both ends may dial.
    + [(state, kind) for state in _CONNECTED for kind in _ATTEMPT]
    # Stopping and attempts cross; a stopped link stays so.
    + [("stopped", kind) for kind in ("stop", *_ATTEMPT)]
    # An attempt reports each address; retrying does not cut off a TCP connection that is open.
    + [
        ("connecting", "began"),
        ("opening", "began"),
        ("opening", "opening"),
        ("opening", "retry-now"),
    ]
)
"""Pairs that change no state; any other pair outside TABLE is a bug and raises."""

_TRYING: Final[tuple[LinkState, ...]] = ("connecting", "opening", "resuming")
_REJECTING: Final[tuple[Reason, ...]] = ("rejected", "duplicate", "tls")


class Link:
    """One link's connections.

    Args:
        name: This node's name.
        peer: The peer's name.
        backoff: The delays of our dialer; None where the peer dials us.

    Attributes:
        state: As people see it.
        since: When the link went up, or last left `up`; if it was never up, when it started.
            Seconds on the injected monotonic clock.
        reason: Why the link last left `up`; None if it was never up.
        detail: The same in one sentence.
        attempt_reason: Why the last attempt failed; None once the link is up.
        attempt_detail: The same in one sentence.
        attempt_began: When the attempt under way began, monotonic seconds; None without one.
        connection: The key of the live connection, or None.
        attempts: Attempts since the last connection was up.
        deadline: When `Deadline` is due, or None.
    """

    def __init__(self, name: str, peer: str, backoff: Backoff | None) -> None:
        self.state: LinkState = "stopped"
        self.since = 0.0
        self.reason: Reason | None = None
        self.detail: str | None = None
        self.attempt_reason: Reason | None = None
        self.attempt_detail: str | None = None
        self.attempt_began: float | None = None
        self.attempts = 0
        self.deadline: float | None = None
        self._name = name
        self._peer = peer
        self._backoff = backoff
        self._takeovers = Takeovers(name, peer)
        self._live: Greeted | None = None
        self._was_up = False
        self._attempting = False  # our own attempt is under way
        self._retry = False  # an operator wanted another one while it was in its handshake
        self._up_since: float | None = None
        self._unproved = False  # the peer was owed records, and none was acknowledged yet
        self._effects: list[Effect] = []

    @property
    def connection(self) -> int | None:
        """The key of the live connection."""
        return None if self._live is None else self._live.connection

    def handle(self, input: Input, now: float) -> list[Effect]:
        """Take one input.

        Args:
            input: What happened.
            now: Seconds on the injected monotonic clock.

        Raises:
            LocalProtocolError: It can't happen in this state.
        """
        self._effects = []
        self._note_attempt(input)
        refusal = self._refusal(input, now)
        kind = self._kind(input, refusal)
        new = TABLE.get((self.state, kind))
        if new is None and (self.state, kind) not in IGNORED:
            raise LocalProtocolError(f"link to {self._peer}: {kind} in state {self.state}")
        if refusal is not None and isinstance(input, Greeted):
            self._effects.append(Refuse(input.connection, refusal.reason, refusal.detail))
        elif kind in ("deadline", "acknowledged"):
            self._settle(now, isinstance(input, Acknowledged))
        elif new is not None:
            self._act(input, new, now)
        return self._effects

    def _note_attempt(self, input: Input) -> None:
        """Note whether an attempt of ours is under way, even while a connection is alive."""
        if isinstance(input, AttemptBegan):
            self._attempting = True
        elif isinstance(input, FailedAttempt) or (isinstance(input, Greeted) and input.dialed):
            self._attempting = False
        elif isinstance(input, RetryNow) and self.state == "opening":
            self._retry = True

    def _kind(self, input: Input, refusal: Refusal | None) -> Kind:
        """Classify an input; what comes from another connection than the live one is `late`."""
        if isinstance(input, Lost | Resumed) and input.connection != self.connection:
            return "late"
        if isinstance(input, Greeted):
            return "greeted" if refusal is None else "refused"
        if isinstance(input, FailedAttempt):
            return "failed-rejected" if input.kind == "rejected" else "failed"
        if isinstance(input, Lost):
            return "lost-rejected" if input.reason in _REJECTING else "lost"
        return _INPUT_KINDS[type(input)]

    def _refusal(self, input: Input, now: float) -> Refusal | None:
        """Return why a newcomer is refused, or None."""
        if not isinstance(input, Greeted):
            return None
        if self.state == "stopped":
            return Refusal("stopped", f"{self._name} is stopping")
        if self._live is None:
            return None
        return self._takeovers.judge(self._live, input, now)

    def _act(self, input: Input, new: LinkState, now: float) -> None:
        """Perform an input that changes the state, and enter the new state."""
        if isinstance(input, Greeted):
            self._adopt(input, new, now)
        elif isinstance(input, FailedAttempt):
            self._failed(input, new, now)
        elif isinstance(input, Lost):
            self._lost(input, new, now)
        elif isinstance(input, Resumed):
            self._resumed(input, new, now)
        elif isinstance(input, Stop):
            self._forget()
            self._stop_dialing()
            self._retry = False
            self.reason, self.detail = "stopped", input.detail
            self._enter(new, "stopped", input.detail, now)
        elif isinstance(input, Diverged):
            self._up_since = self.deadline = None
            self.detail = input.detail
            self._enter(new, None, input.detail, now)
        elif isinstance(input, Start | RetryNow | NetworkChanged):
            self._dial(0.0)
            self._enter(new, None, None, now)
        else:
            if isinstance(input, AttemptBegan):
                self.attempts += 1
                self.attempt_began = now
            self._enter(new, None, None, now)

    def _enter(
        self, state: LinkState, reason: Reason | None, detail: str | None, now: float
    ) -> None:
        """Set the state; no other code does.

        Args:
            state: The new one.
            reason: Why the link is not up, or why an attempt failed, if known.
            detail: The same in one sentence.
            now: Monotonic seconds.
        """
        old, self.state = self.state, state
        if old == state:
            return
        if state == "up":
            self.attempt_reason = self.attempt_detail = None
        if state not in _TRYING:
            self.attempt_began = None
        if "up" in (old, state) or "stopped" in (old, state):
            self.since = now
        self._effects.append(Changed(old, state, reason, detail))

    def _adopt(self, new: Greeted, state: LinkState, now: float) -> None:
        """Make a newcomer the live connection; the older one goes at once.

        `Adopt` comes last: the session must begin only after the old connection was aborted, for
        both would otherwise feed the same session.
        """
        old, self._live = self._live, new
        self._retry = False
        self._up_since = self.deadline = None
        if old is not None:
            detail = f"taken over by a newer connection from {new.address}"
            self._effects.append(Abort(old.connection, "replaced", detail))
            self.reason, self.detail = "replaced", detail
        if self._needs_no_dialing(new):
            self._stop_dialing()
        if old is None:
            self._enter(state, None, None, now)
        else:
            self._enter(state, "replaced", self.detail, now)
        self._effects.append(Adopt(new.connection))

    def _needs_no_dialing(self, new: Greeted) -> bool:
        """Return whether our dialer must stop for a connection that the peer dialed.

        An attempt of the lesser name goes on: both ends let it replace what the peer dialed.
        """
        if self._backoff is None or new.dialed:
            return False
        return self.state in ("waiting", "rejected") or self._name > self._peer

    def _resumed(self, input: Resumed, state: LinkState, now: float) -> None:
        """The link is up; it proves stable later."""
        self._was_up = True
        self._up_since = now
        self._unproved = input.owed
        if self._backoff is not None:
            self.deadline = now + self._backoff.stable_after
        self._enter(state, None, None, now)

    def _settle(self, now: float, acknowledged: bool) -> None:
        """Start the delays over once the connection has proved stable."""
        self._unproved = self._unproved and not acknowledged
        if self.deadline is not None and now >= self.deadline:
            self.deadline = None
        if self._stable(now) and self._backoff is not None:
            self._backoff.reset()

    def _stable(self, now: float) -> bool:
        """Return whether the live connection stayed up long enough and carried what was owed.

        A path that drops large messages lets hellos and pings through: such a connection comes up
        again and again without an acknowledgement, and must not reset the delays.
        """
        if self._backoff is None or self._up_since is None or self._unproved:
            return False
        return now - self._up_since >= self._backoff.stable_after

    def _failed(self, input: FailedAttempt, state: LinkState, now: float) -> None:
        self.attempt_reason, self.attempt_detail = input.reason, input.detail
        if self._backoff is not None:
            after = self._backoff.failed(input.kind, input.retry_after, input.return_spread)
            # What failed may be put right meanwhile, an expired certificate for example.
            self._dial(0.0 if self._retry else after)
        self._retry = False
        self._enter(state, input.reason, input.detail, now)

    def _lost(self, input: Lost, state: LinkState, now: float) -> None:
        """The live connection has ended: dial again, or wait to be dialed.

        An attempt of ours that is under way goes on: if both ends dial, the peer may have ended
        this connection because it has just accepted that attempt.
        """
        self._settle(now, acknowledged=False)
        stable = self._stable(now)
        if self._was_up:
            self.reason, self.detail = input.reason, input.detail
        else:
            self.attempt_reason, self.attempt_detail = input.reason, input.detail
        self._forget()
        backoff = self._backoff
        if backoff is not None and not self._attempting:
            if state == "rejected":
                after = backoff.rejected()
            elif input.retry_after is not None:
                after = backoff.sent_away(input.retry_after, input.return_spread)
            else:
                after = backoff.lost(input.silent, stable, input.return_spread)
            self._dial(after)
        self._enter(state, input.reason, input.detail, now)

    def _forget(self) -> None:
        self._live = None
        self._up_since = self.deadline = None
        if self._was_up:
            self._was_up = False
            self.attempts = 0

    def _dial(self, after: float) -> None:
        if self._backoff is not None:
            self._attempting = False
            self._effects.append(Dial(after))

    def _stop_dialing(self) -> None:
        if self._backoff is not None:
            self._attempting = False
            self._effects.append(StopDialing())


_INPUT_KINDS: Final[dict[type, Kind]] = {
    Start: "start",
    Stop: "stop",
    RetryNow: "retry-now",
    NetworkChanged: "retry-now",
    Deadline: "deadline",
    AttemptBegan: "began",
    Opening: "opening",
    Acknowledged: "acknowledged",
    Diverged: "diverged",
    Resynced: "resynced",
    Resumed: "resumed",
}
