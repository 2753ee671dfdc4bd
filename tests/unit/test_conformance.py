"""How the suite's index becomes lines and a verdict."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conformance.suite import good, lines


def case(behaviour: str, close: str = "OK", code: int | None = 1000) -> dict[str, Any]:
    return {"behavior": behaviour, "behaviorClose": close, "remoteCloseCode": code}


def test_counts_come_first_then_what_is_not_strictly_ok_in_order() -> None:
    index = {"10.1.1": case("FAILED", "UNCLEAN", None), "2.1": case("OK"), "7.1.6": case("OK")}
    index["9.1.1"] = case("INFORMATIONAL", "INFORMATIONAL")
    said = lines("ws", index)
    assert said[0].startswith("ws: 4 cases: 2 OK, 1 ")
    assert said[1:] == [
        "    9.1.1: INFORMATIONAL, close INFORMATIONAL (1000)",
        "    10.1.1: FAILED, close UNCLEAN (None)",
    ]


@pytest.mark.parametrize(
    ("one", "verdict"),
    [
        (case("OK"), True),
        (case("NON-STRICT"), True),
        (case("INFORMATIONAL", "INFORMATIONAL"), True),
        (case("OK", "WRONG CODE"), False),
        (case("FAILED"), False),
        (case("UNIMPLEMENTED"), False),
    ],
)
def test_one_failure_spoils_the_verdict(one: dict[str, Any], verdict: bool) -> None:
    assert good({"1.1": case("OK"), "1.2": one}) is verdict


def test_nothing_run_is_not_good() -> None:
    assert not good({})
