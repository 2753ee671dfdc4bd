"""A path that loses large messages is found out, and no other."""

from __future__ import annotations

from linkd.core.liveness import LARGE_BYTES, PROBE_AFTER, SMALL_BYTES, Path
from linkd.protocol.peer import Probe


def fallen(times: int, version: int = 2) -> Path:
    """Return a path on which so many connections fell with records under way."""
    path = Path()
    for number in range(times):
        assert path.began(version, 10.0 * number) is None
        assert not path.ended(unacknowledged=True, progress=False, now=10.0 * number + 7.0)
    return path


def size(probe: Probe | None) -> int:
    assert probe is not None
    return len(probe.padding)


def test_after_three_that_fell_two_probes_decide() -> None:
    path = fallen(PROBE_AFTER)
    assert size(path.began(2, 100.0)) == path.probing == SMALL_BYTES
    assert size(path.answered(SMALL_BYTES, 100.1)) == path.probing == LARGE_BYTES
    assert path.ended(unacknowledged=False, progress=False, now=107.0)
    assert path.narrow


def test_on_a_narrow_path_no_record_shares_a_packet_with_the_hello() -> None:
    path = fallen(PROBE_AFTER)
    path.began(2, 100.0)
    path.answered(SMALL_BYTES, 100.1)
    assert path.ended(unacknowledged=False, progress=False, now=107.0)
    for begun in (110.0, 120.0):
        assert size(path.began(2, begun)) == path.probing == SMALL_BYTES
        assert path.answered(SMALL_BYTES, begun + 0.1) is None
        assert path.probing == 0
        assert not path.ended(unacknowledged=True, progress=False, now=begun + 7.0), "it is known"
    assert path.began(1, 130.0) is None


def test_a_path_that_carries_both_is_well() -> None:
    path = fallen(PROBE_AFTER)
    path.began(2, 100.0)
    assert path.answered(LARGE_BYTES, 100.0) is None, "not asked yet"
    path.answered(SMALL_BYTES, 100.1)
    assert path.answered(SMALL_BYTES, 100.2) is None
    assert path.answered(LARGE_BYTES, 113.0) is None
    assert path.probing == 0
    assert not path.ended(unacknowledged=True, progress=False, now=120.0)
    assert not path.narrow
    assert path.began(2, 130.0) is None, "it begins to count again"


def test_what_proves_nothing() -> None:
    path = fallen(PROBE_AFTER)
    path.began(2, 100.0)
    assert not path.ended(unacknowledged=False, progress=False, now=110.0), "nothing passes"
    path.began(2, 120.0)
    path.answered(SMALL_BYTES, 120.1)
    assert not path.ended(unacknowledged=False, progress=False, now=121.0), "it fell too soon"
    assert not path.narrow
    assert path.began(1, 130.0) is None, "a peer of version 1 knows no probes"
    path.ended(unacknowledged=True, progress=True, now=140.0)
    assert path.began(2, 150.0) is None, "it carried something"
    for _ in range(PROBE_AFTER):
        assert path.began(2, 200.0) is None
        path.ended(unacknowledged=True, progress=False, now=200.9)
        assert path.began(2, 200.0) is None
        path.ended(unacknowledged=False, progress=False, now=300.0)
    assert path.began(2, 400.0) is None, "short ones and those without records do not count"
