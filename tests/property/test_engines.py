"""The properties of sessions, restores and trims, on the real engines."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import CAMPAIGN
from tests.property import test_restore as restores
from tests.property import test_session as sessions
from tests.property import test_trims as trims
from tests.support.postgresql import needs_postgresql
from tests.support.stored_log import Postgresql, Segments, stored_logs

pytestmark = needs_postgresql

ENGINES = (Segments, Postgresql)
few = settings(max_examples=200 if CAMPAIGN else 5, deadline=None)
seeds = st.integers(0, 2**32)


@few
@given(*sessions.TWO_NODES)
def test_two_nodes_keep_the_promise(todo, seed, window) -> None:
    for engine in ENGINES:
        with stored_logs(engine):
            sessions.two_nodes(todo, seed, window)


@few
@given(sessions.steps_and_trims, seeds)
def test_a_hub_and_two_edges_and_a_ring(todo, seed) -> None:
    for engine in ENGINES:
        with stored_logs(engine):
            sessions.ring(todo, seed)


@few
@given(sessions.steps, sessions.steps, sessions.steps, seeds, st.integers(0, 1))
def test_a_restored_node_goes_on(before, between, after, seed, which) -> None:
    for engine in ENGINES:
        with stored_logs(engine):
            restores.put_back(before, between, after, seed, which, True)


@few
@given(trims.steps, seeds, st.sampled_from([200, 1 << 20]))
def test_what_a_trim_takes_is_told_exactly(todo, seed, window) -> None:
    for engine in ENGINES:
        with stored_logs(engine):
            trims.trimmed(todo, seed, window)
