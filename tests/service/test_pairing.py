"""Two hosts with the unit, paired from nothing by the two commands that an operator types."""

from __future__ import annotations

import time

import pytest

from tests.service.conftest import API, Pair, wait_link
from tests.support import figures

pytestmark = [pytest.mark.service, pytest.mark.slow]

HUB = f"""
[node]
name = "hub"
{API}
[listen]
address = "0.0.0.0:443"
"""
EDGE = f"""
[node]
name = "edge"
{API}
"""


def test_paired_from_nothing_under_the_unit(bare: Pair) -> None:
    bare.hub.write("/etc/linkd/linkd.toml", HUB)
    bare.edge.write("/etc/linkd/linkd.toml", EDGE)
    try:
        begun = time.monotonic()
        for machine in bare:
            machine.run("linkd", "check")
            started = machine.run("systemctl", "restart", "linkd.service", check=False)
            assert started.returncode == 0, machine.journal()[-3000:]
        invited = bare.hub.run("linkd", "invite", "edge", check=False)
        assert invited.returncode == 0, invited.stderr
        code = invited.stdout.split()[2]
        joined = bare.edge.run("linkd", "join", code, check=False)
        assert joined.returncode == 0, joined.stderr + bare.hub.journal()[-2000:]
        figures.tell(f"paired under the unit in {time.monotonic() - begun:.1f} s, starts included")
        written = bare.hub.sh("stat -c '%n %U %G %a' /etc/linkd/linkd.d/*")
        assert written == "/etc/linkd/linkd.d/edge.toml linkd linkd 640\n"
        written = bare.edge.sh("stat -c '%n %U %G %a' /etc/linkd/linkd.d/*")
        assert written == "/etc/linkd/linkd.d/hub.toml root linkd 640\n"
        for machine in bare:
            machine.run("systemctl", "reload", "linkd.service")
            machine.run("systemctl", "restart", "linkd.service")
        wait_link(bare.edge, "hub", "up", 20.0)
    finally:
        for machine in bare:
            machine.run("systemctl", "stop", "linkd.service", check=False)
            machine.run("sh", "-c", "rm -rf /etc/linkd/linkd.d/* /var/lib/linkd/*")
