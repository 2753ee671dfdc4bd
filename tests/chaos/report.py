"""What came of a campaign: its figures, and whether every promise was kept."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tests.chaos.acts import Plan
from tests.chaos.checker import Verdict
from tests.chaos.faults import Happened

BOUNDS = {"ping-timeout": (6.9, 7.2), "silence": (9.9, 10.2)}
"""Seconds of silence after which the listener and the dialer give a connection up."""

BACK_SECONDS = 21.0
"""After a fault a link is up again within the longest wait between attempts (15 s), one attempt
(5 s) and the second that a busy machine may take."""

AGAIN_SECONDS = 1.5
"""Who has lost its power is linked again so soon after its start, whatever the hub still holds."""


@dataclass
class Report:
    """What came of it."""

    plan: Plan
    seconds: float = 0.0
    happened: list[Happened] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    audit: list[str] = field(default_factory=list)
    consumed: int = 0
    doubtful: int = 0
    refused: int = 0
    noticed: list[tuple[str, str, float]] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    bugs: list[str] = field(default_factory=list)
    undrained: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    began: float = 0.0
    back: list[tuple[int, float]] = field(default_factory=list)
    """Acts after which all links were awaited, and how many seconds that took."""

    overdue: list[str] = field(default_factory=list)
    late_records: int = 0
    """Records behind later ones which a new path explains, over all logs."""

    uncounted: list[str] = field(default_factory=list)
    tails: list[tuple[int, int]] = field(default_factory=list)
    """Offsets [first, next) that the hub told its database to have lost."""

    @property
    def good(self) -> bool:
        """Whether every promise was kept."""
        kept = all(verdict.good for verdict in self.verdicts)
        amiss = (
            self.audit,
            self.outside,
            self.bugs,
            self.undrained,
            self.overdue,
            self.uncounted,
        )
        return kept and not any(amiss)

    def published(self) -> int:
        """Return how many records were acknowledged, each counted once."""
        return sum({v.publisher: v.acked for v in self.verdicts}.values())

    def lines(self) -> list[str]:
        """Return it for people."""
        kinds = Counter(happened.kind for happened in self.happened)
        lost = sum(len(v.lost) for v in self.verdicts)
        twice = sum(len(v.twice) for v in self.verdicts)
        disorder = sum(v.out_of_order for v in self.verdicts)
        said = [
            f"seed {self.plan.seed}, {self.plan.edges} edge(s), {self.plan.flavour}"
            f"{' ' + self.plan.broken if self.plan.broken else ''}, {len(self.happened)} faults in"
            f" {self.seconds:.0f} s: "
            + ", ".join(f"{n} {kind}" for kind, n in kinds.most_common()),
            f"{self.published()} records acknowledged ({self.doubtful} in doubt, {self.refused}"
            f" refused), {self.consumed} read by the named consumer in spite of its deaths",
            f"lost {lost}, twice {twice}, out of order {disorder}; behind later ones, as a new path"
            f" explains: {self.late_records}",
        ]
        if self.tails:
            told = ", ".join(f"{first} to {end - 1}" for first, end in self.tails)
            excused = sum(v.excused for v in self.verdicts if v.log == "hub")
            said.append(f"lost by the database, and told: offsets {told}; {excused} records")
        for reason, bound in BOUNDS.items():
            times = sorted(seconds for _, why, seconds in self.noticed if why == reason)
            if times:
                said.append(
                    f"{reason}: {len(times)} times, {times[0]:.3f} to {times[-1]:.3f} s, median"
                    f" {times[len(times) // 2]:.3f} s (bound {bound[0]} to {bound[1]} s)"
                )
        if self.back:
            took = sorted(seconds for _, seconds in self.back)
            said.append(
                f"all links were up again {len(took)} times after the last fault had ended: median"
                f" {took[len(took) // 2]:.2f} s, at most {took[-1]:.2f} s (bound {BACK_SECONDS} s)"
            )
        if power := sorted(h.back for h in self.happened if h.back is not None):
            said.append(
                f"who had lost its power was linked again {len(power)} times, {power[0]:.2f} to"
                f" {power[-1]:.2f} s after its start (bound {AGAIN_SECONDS} s)"
            )
        for what in ("audit", "outside", "bugs", "undrained", "overdue", "uncounted"):
            said += [f"{what}: {line}" for line in getattr(self, what)]
        if not self.good:
            said += [f"late: {line}" for line in self.late]
        said.append("GOOD" if self.good else "NOT GOOD")
        return said
