"""EventSource in Chromium with a cookie session: it comes back after a restart, and resumes."""

from __future__ import annotations

import pytest

from linkd.drill.testbed import free_port
from tests.support import figures
from tests.support.daemon import Daemon
from tests.web.driver import Driver

pytestmark = [pytest.mark.web]

KEY = (
    '[[api.key]]\nname = "shop"\nsecret_file = "{secret}"\npublish = ["orders"]\n'
    'subscribe = ["orders"]\n'
)


def test_an_event_source_resumes_over_kills() -> None:
    port = free_port()
    with Daemon("edge-1", f'http = "127.0.0.1:{port}"\n{KEY}') as daemon:
        token = daemon.call("POST", "/v1/token", b'{"channel":"orders"}')["token"]
        with Driver("session_events.mjs", f"http://127.0.0.1:{port}", token) as seen:
            seen.wait(lambda said: said["status"] == 204 and said["opened"] == 1, 20)
            for number in range(30):
                daemon.call("POST", "/v1/channels/orders", b"%d" % number)
                if number in (9, 19):
                    seen.wait(lambda said, least=number: len(said["seen"]) > least, 5)
                    daemon.kill()
                    daemon.start()
            seen.wait(lambda said: len(said["seen"]) >= 30, 20)
            assert seen.last("seen") == list(range(30))
            assert seen.last("opened") == 3
            assert seen.last("wrong") == []
    figures.tell("EventSource in Chromium, cookie session, two kills: 30 of 30 in order")
