"""What a campaign does, written down before it is done: the same plan, the same acts. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

Flavour = Literal["plain", "tls", "clocks", "tight", "paths", "postgresql", "cluster"]
FLAVOURS: tuple[Flavour, ...] = ("plain", "tls", "clocks", "tight", "paths")

TOGETHER = 0.2
"""The share of acts that are several faults at once."""

SETTLE = 0.4
"""The share of acts after which all links are awaited, and how long they take is judged."""

GROUPS: dict[str, dict[str, int]] = {
    "path": {
        "cut": 4,
        "one way in": 2,
        "one way out": 2,
        "loss": 2,
        "slow": 3,
        "large": 1,
        "drop.sh": 3,
        "reset": 3,
        "flap": 2,
        "dns": 3,
        "direct cut": 5,
    },
    "process": {
        "kill": 5,
        "absent": 2,
        "restart": 1,
        "freeze": 3,
        "disk": 3,
        "certificate": 3,
        "kick": 1,
        "starve": 4,
        "power": 6,
        "clock away": 9,
    },
    "topology": {"peer away": 4, "new path": 4, "wider path": 6, "path away": 4},
    "api": {"pipelined": 2, "subscriptions": 2, "mute readers": 2, "strangers": 2},
    "rest": {"consumer": 3, "clock": 3},
}
"""The kinds of faults, each with its weight. Of one group only one at a time is made."""

ONLY_IN: dict[str, tuple[Flavour, ...]] = {
    "dns": ("plain", "clocks", "tight"),
    "certificate": ("tls",),
    "clock": ("clocks",),
    "clock away": ("clocks",),
    "direct cut": ("paths",),
    "new path": ("paths",),
    "wider path": ("paths",),
    "path away": ("paths",),
    "starve": ("tight",),
    "power": ("tight",),
}
"""Kinds that need a topology that has what they spoil."""


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Args:
        seed: Of everything that is random.
        edges: 1 is a pair; `paths` needs 2.
        faults: How many acts; some are several faults.
        publishers: At each daemon.
        rate: Records a second of each publisher.
        longest: Seconds that a fault lasts at most.
        flavour: `plain`; `tls`: the links are encrypted and certificates end; `clocks`: all daemons
            live by wall clocks that are stepped; `tight`: the edges' logs are as small as can be,
            the hub dies while its disk is full, edges are back before the hub misses them; `paths`:
            the first two edges are linked directly too, beside the hub that relays; `postgresql`:
            the hub's log is in a database, and other faults are made (database.py); `cluster`:
            three hubs share it (cluster.py).
        broken: The name of a build broken on purpose (see broken.py); empty: the build as it is.
    """

    seed: int
    edges: int = 1
    faults: int = 200
    publishers: int = 2
    rate: float = 400.0
    longest: float = 14.0
    flavour: Flavour = "plain"
    broken: str = ""


@dataclass(frozen=True)
class Act:
    """One act: wait, make faults, mend them.

    Args:
        number: Its place in the plan, from 0.
        kinds: One fault, or several at once.
        pause: Seconds to wait before.
        seconds: How long the faults last at most.
        seed: Of what the faults choose: whom, which way, how bad.
        settle: Wait afterwards until all links are up.
    """

    number: int
    kinds: tuple[str, ...]
    pause: float
    seconds: float
    seed: int
    settle: bool


def kinds(group: str, flavour: Flavour) -> list[str]:
    """Return the kinds of a group that a flavour allows, each as often as it weighs."""
    return [
        kind
        for kind, weight in GROUPS[group].items()
        if flavour in ONLY_IN.get(kind, (flavour,))
        for _ in range(weight)
    ]


def script(plan: Plan) -> list[Act]:
    """Return the acts of a plan."""
    rng = Random(f"{plan.seed}/{plan.flavour}")
    each = [kind for group in GROUPS for kind in kinds(group, plan.flavour)]
    acts = []
    for number in range(plan.faults):
        chosen: Sequence[str] = [rng.choice(each)]
        if rng.random() < TOGETHER:
            groups = rng.sample(sorted(GROUPS), rng.choice([2, 3]))
            chosen = [rng.choice(kinds(group, plan.flavour)) for group in groups]
        acts.append(
            Act(
                number,
                tuple(chosen),
                rng.uniform(0.0, 2.0),
                rng.uniform(0.1, plan.longest),
                rng.getrandbits(32),
                rng.random() < SETTLE,
            )
        )
    return acts
