"""Every state with every kind of input is in the table, in IGNORED, or raises."""

from __future__ import annotations

from typing import Any

import pytest

from linkd.core import link as links
from linkd.core.link import (
    IGNORED,
    KINDS,
    STATES,
    TABLE,
    Acknowledged,
    AttemptBegan,
    Deadline,
    Diverged,
    FailedAttempt,
    Greeted,
    Link,
    Lost,
    Opening,
    Resumed,
    Resynced,
    RetryNow,
    Start,
    Stop,
)
from linkd.errors import LocalProtocolError
from linkd.protocol.peer import Generation

INPUTS: dict[str, Any] = {
    "start": Start(),
    "stop": Stop("over"),
    "retry-now": RetryNow(),
    "deadline": Deadline(),
    "began": AttemptBegan(),
    "opening": Opening(),
    "failed": FailedAttempt("broken", "refused", "no"),
    "failed-rejected": FailedAttempt("rejected", "rejected", "no"),
    "greeted": Greeted(2, Generation("boot", 2), "log", False, "192.0.2.7:1"),
    "refused": Greeted(2, Generation("boot", 2), "another log", False, "192.0.2.7:1"),
    "resumed": Resumed(1),
    "acknowledged": Acknowledged(),
    "diverged": Diverged("apart"),
    "resynced": Resynced(),
    "lost": Lost(1, "closed", "gone"),
    "lost-rejected": Lost(1, "rejected", "gone"),
    "late": Lost(99, "closed", "an older one"),
}
CONNECTED = ("resuming", "up", "diverged")


def link_in(state: str) -> Link:
    """Return a link in a state, by the table alone."""
    link = Link("hub", "edge", None)
    link.state = state  # type: ignore[assignment]
    if state in CONNECTED:
        link._live = Greeted(1, Generation("boot", 1), "log", False, "192.0.2.7:1")
    return link


def kind_met(state: str, kind: str) -> str:
    """Return which kind an input is in a state: without a connection nothing is lost."""
    if state not in CONNECTED:
        if kind in ("lost", "lost-rejected", "resumed"):
            return "late"
        if kind in ("refused", "greeted"):
            return "refused" if state == "stopped" else "greeted"
    return kind


def test_the_tables_speak_of_known_states_and_kinds_and_do_not_overlap() -> None:
    assert set(INPUTS) == set(KINDS)
    for state, kind in [*TABLE, *IGNORED]:
        assert state in STATES
        assert kind in KINDS
    assert set(TABLE.values()) <= set(STATES)
    assert not IGNORED & set(TABLE)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("kind", KINDS)
def test_each_pair_does_what_the_tables_say(state: str, kind: str) -> None:
    link = link_in(state)
    met: Any = (state, kind_met(state, kind))
    if met in TABLE:
        link.handle(INPUTS[kind], 10.0)
        assert link.state == TABLE[met]
    elif met in IGNORED:
        link.handle(INPUTS[kind], 10.0)
        assert link.state == state
    else:
        with pytest.raises(LocalProtocolError, match=state):
            link.handle(INPUTS[kind], 10.0)


def test_every_state_can_be_reached_and_left() -> None:
    reached = {"stopped"}
    while True:
        more = {new for (old, _), new in TABLE.items() if old in reached} - reached
        if not more:
            break
        reached |= more
    assert reached == set(STATES)
    for state in STATES:
        assert any(old == state and new != state for (old, _), new in TABLE.items())


def test_only_enter_sets_the_state() -> None:
    source = links.__spec__.loader.get_source("linkd.core.link")  # type: ignore[union-attr]
    assert source.count("self.state = ") == 1
    assert source.count("self.state: LinkState = ") == 1
    assert source.count("old, self.state = self.state, state") == 1
