"""The text of `/metrics` is made in slices, once for all who ask within a second."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred

from linkd.api.metrics import PAGE_SECONDS, Metrics
from linkd.net.rate_limit import SLICE_SECONDS, FairShare
from linkd.status import LinkStatus
from tests.support.fake_node import FakeNode, link, make_config
from tests.support.step_clock import StepClock


class Bench:
    """Metrics of a node with some links, and what they were asked."""

    def __init__(self, directory: Path) -> None:
        self.clock = StepClock()
        self.share = FairShare(self.clock)
        self.node = FakeNode(make_config(directory), self.clock)
        self.metrics = Metrics(self.node)
        self.looked = 0
        self.error: Exception | None = None

    async def links(self) -> list[LinkStatus]:
        self.looked += 1
        if self.error is not None:
            raise self.error
        return [link(f"peer-{number}") for number in range(20)]

    def ask(self) -> tuple[list[Any], list[Any]]:
        """Ask for the text; return the lists that get it, or what went wrong."""
        found: list[Any] = []
        failed: list[Any] = []
        page = Deferred.fromCoroutine(self.metrics.page(self.links, self.share))
        page.addCallbacks(found.append, failed.append)
        self.page = page
        return found, failed


def test_scrapes_within_a_second_share_one_text(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    first, _ = bench.ask()
    second, _ = bench.ask()
    assert first == second
    assert b'linkd_link_up{peer="peer-19"} 1.0' in first[0]
    assert b'linkd_build_info{version="' in first[0]
    assert f'python="{platform.python_version()}"}} 1.0'.encode() in first[0]
    assert bench.looked == 1
    bench.clock.advance(PAGE_SECONDS)
    third, _ = bench.ask()
    assert len(third) == 1
    assert bench.looked == 2


def test_a_long_text_is_rendered_in_slices_although_a_scraper_leaves(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    lines = bench.metrics.lines

    def slow(*arguments: Any) -> Any:
        for line in lines(*arguments):
            bench.clock.rightNow += SLICE_SECONDS / 8
            yield line

    bench.metrics.lines = slow  # type: ignore[method-assign]
    _, gone = bench.ask()
    bench.page.cancel()
    other, _ = bench.ask()
    assert len(gone) == 1
    turns = 0
    while not other:
        bench.clock.advance(0)
        turns += 1
    assert turns > 3
    assert b"linkd_uptime_seconds" in other[0]
    assert bench.looked == 1


def test_a_mistake_fails_all_waiting_requests_and_is_not_kept(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.error = ValueError("a mistake")
    _, failed = bench.ask()
    assert failed[0].check(ValueError)
    bench.error = None
    found, _ = bench.ask()
    assert found
