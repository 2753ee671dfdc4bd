"""What a page of metrics adds up to."""

from __future__ import annotations

from tests.chaos.sampler import total

PAGE = """# TYPE linkd_records_late_total counter
linkd_records_late_total{peer="hub"} 40
linkd_records_late_total{peer="edge-2"} 2.0
linkd_records_late_totally 7
linkd_log_next_offset 1000000
"""


def test_a_metric_is_added_up_over_its_labels() -> None:
    assert total(PAGE, "linkd_records_late_total") == 42
    assert total(PAGE, "linkd_log_next_offset") == 1_000_000
    assert total(PAGE, "linkd_records_unproven_total") == 0
