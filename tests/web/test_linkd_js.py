"""linkd.js on a real daemon: wrong arguments, functions that fail, and faults without a pause."""

from __future__ import annotations

import pytest

from tests.support import figures
from tests.support.daemon import Daemon, peer
from tests.support.ports import free_port
from tests.web.driver import Driver

pytestmark = [pytest.mark.web]


def test_no_argument_and_no_function_of_the_application_stops_other_calls() -> None:
    port = free_port()
    away = peer("hub", f"ws://127.0.0.1:{free_port()}/link")
    with (
        Daemon("edge-1", f'http = "127.0.0.1:{port}"\nrequire_key = false\n{away}'),
        Driver("misuse.mjs", f"http://127.0.0.1:{port}") as seen,
    ):
        seen.wait(lambda said: "cases" in said, 25)
        assert seen.last("wrong") == []
        assert seen.last("cases") > 900
        assert seen.last("drops") == 0
        seen.wait(lambda said: "hooks" in said, 25)
        assert seen.last("wrong") == []
        figures.tell(f"linkd.js: {seen.last('cases')} wrong arguments, {seen.last('hooks')} hooks")
