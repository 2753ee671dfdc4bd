"""Every kind of fault, and how the faults of an act are made together."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from random import Random

from tests.chaos.acts import Act
from tests.chaos.crowds import CROWDS
from tests.chaos.faults import BASIC, Happened, Run, Scene
from tests.chaos.topology import TOPOLOGY

FAULTS: dict[str, Run] = {**BASIC, **TOPOLOGY, **CROWDS}


def perform(scene: Scene, act: Act) -> list[Happened]:
    """Make the faults of an act, all at once, and mend them; return what happened.

    Raises:
        Exception: The lab could not make or mend one; the others are mended.
    """
    done: list[Happened] = []
    wrong: list[Exception] = []

    def one(place: int, kind: str) -> None:
        rng = Random(f"{act.seed}/{place}")
        if place:
            time.sleep(rng.uniform(0.0, 1.0))
        try:
            happened = FAULTS[kind](replace(scene, rng=rng), act.seconds)
            back = happened.back if len(act.kinds) == 1 else None  # others may be in its way
            done.append(replace(happened, act=act.number, back=back))
        except Exception as error:  # raised below, once all have ended
            wrong.append(error)

    others = [
        threading.Thread(target=one, args=(place, kind))
        for place, kind in enumerate(act.kinds)
        if place
    ]
    for other in others:
        other.start()
    one(0, act.kinds[0])
    for other in others:
        other.join()
    if wrong:
        raise wrong[0]
    return done
