"""The drills of a throw-away pair: the fault and the expected result of each."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Final

import msgspec
from msgspec.structs import replace

from linkd.drill.deadman import DrillFailed
from linkd.drill.relay import Way
from linkd.drill.report import Bounds, Expectation, silent_for
from linkd.drill.testbed import HOUR_SECONDS, FilteredPath, Relay, Setup, Testbed

LOSS: Final = 0.05
SLOW_BYTES: Final = 4096.0
FLAP_DOWN: Final = 0.4
FLAP_UP: Final = 1.1
STEPS: Final = (("hub", 3600.0), ("edge", -3600.0), ("hub", -288.0), ("edge", 288.0))
CERTIFICATE_SECONDS: Final = 8.0
_RESET_SECONDS: Final = 0.5
_KEEP_FREE_KIB: Final = 1024

Action = Callable[[Testbed], None]
Expects = Callable[[Bounds, float], Expectation]
Duration = Callable[[Bounds], float]


class Drill(msgspec.Struct, frozen=True, kw_only=True):
    """One drill.

    Args:
        name: Its name on the command line.
        about: What is done, in one sentence.
        begin: Injects the fault; absent: it exists from the start, or `during` injects it.
        restore: Removes it; absent: heals the path.
        during: Called repeatedly while it lasts.
        lasts: Its duration in seconds, from the bounds in force.
        expects: The expected result, from the bounds and its duration.
        setup: The set-up of the pair.
        needs: Its requirements: `namespaces`, `libfaketime`.
    """

    name: str
    about: str
    expects: Expects
    lasts: Duration
    begin: Action = lambda _: None
    restore: Action = lambda pair: pair.path.heal()
    during: Action | None = None
    setup: Setup = Setup()
    needs: tuple[str, ...] = ()


def _block(way: Way) -> Action:
    return lambda pair: pair.path.block(way)


def _lose(pair: Testbed) -> None:
    if not isinstance(pair.path, FilteredPath):
        raise DrillFailed("packets can be lost only where there is a packet filter")
    pair.path.lose(LOSS)


def _slow(pair: Testbed) -> None:
    if not isinstance(pair.path, Relay):
        raise DrillFailed("only the relay can be slow")
    pair.path.slow(SLOW_BYTES)


def _flap(pair: Testbed) -> None:
    pair.path.block("both")
    time.sleep(FLAP_DOWN)
    pair.path.heal()
    time.sleep(FLAP_UP)


def _cut(pair: Testbed) -> None:
    """Reset open connections, and let new ones pass."""
    pair.path.reject()
    time.sleep(_RESET_SECONDS)
    pair.path.heal()


def _unknown(pair: Testbed) -> None:
    """Remove the hub's name, and reset open connections so that it must be looked up."""
    pair.network.name_known(False)
    _cut(pair)


def _step(pair: Testbed) -> None:
    for name, seconds in STEPS:
        pair.clocks[name].step(seconds)
        time.sleep(1.0)


def _unstep(pair: Testbed) -> None:
    for name, _ in STEPS:
        pair.clocks[name].step(0.0)


def _fill(pair: Testbed) -> None:
    """Fill the hub's disk up to the last megabyte."""
    state = pair.hub.directory / "state"
    pair.hub.host.sh(
        f"free=$(df -k --output=avail '{state}' | tail -n 1); "
        f"head -c $(( (free - {_KEEP_FREE_KIB}) * 1024 )) /dev/zero > '{state}/ballast'"
    )


def _empty(pair: Testbed) -> None:
    pair.hub.host.sh(f"rm -f '{pair.hub.directory / 'state' / 'ballast'}'")


def _expire(pair: Testbed) -> None:
    """Let the certificate expire, then reset connections so that it must be shown."""
    pair.certify(CERTIFICATE_SECONDS)
    time.sleep(CERTIFICATE_SECONDS + 1.0)
    _cut(pair)


def _renew(pair: Testbed) -> None:
    """Install a new certificate, reload the hub, and make the edge retry at once."""
    pair.certify(HOUR_SECONDS)
    time.sleep(1.0)
    pair.edge.daemon.kick("hub")


def _seconds(seconds: float) -> Duration:
    return lambda _bounds: seconds


def _slowest(times: float = 1.0, plus: float = 0.0) -> Duration:
    """Last as long as the slower end takes to notice, times a factor and plus a margin."""
    return lambda bounds: times * bounds.slowest + plus


_DEAD: Final = _slowest(plus=4.0)
"""How long a path must be dead for both ends to notice it."""


def _sees(expected: Expectation) -> Expects:
    """Expect the same for all bounds and durations."""
    return lambda _bounds, _seconds: expected


def _broken(expected: Expectation) -> Expects:
    """Expect the dialer back as after a refusal, a reset or a close."""
    return lambda bounds, _seconds: replace(expected, back=bounds.back_broken)


_BOTH: Final = Expectation(falls=("listener", "dialer"))
_STAYS: Final = _sees(Expectation(stays=True))


def _flapped(bounds: Bounds, _seconds: float) -> Expectation:
    """A connection may break, and then the ends must notice in time and reconnect."""
    return Expectation(back=bounds.back_attempt)


def _frozen(watching: str) -> Expects:
    """Only the end that is not frozen can notice in time."""

    def expects(bounds: Bounds, seconds: float) -> Expectation:
        falls = tuple(role for role in silent_for(bounds, seconds).falls if role == watching)
        return Expectation(falls=falls, undisturbed=(watching,), back=bounds.back_attempt)

    return expects


_WATCHING: Final = {"hub": "dialer", "edge": "listener"}
"""The role of the end that goes on where the other is killed or frozen."""


def _killing(name: str, end: str) -> Drill:
    """Return the drill that kills an end: only the other can notice."""
    watching = (_WATCHING[end],)
    return Drill(
        name=name,
        about=f"the {end} is killed by kill -9 and started again",
        begin=lambda pair: pair.node(end).kill(),
        restore=lambda pair: pair.start(end),
        lasts=_seconds(3.0),
        expects=_broken(Expectation(falls=watching, undisturbed=watching)),
    )


def _freezing(name: str, end: str) -> Drill:
    """Return the drill that stops an end's process."""
    return Drill(
        name=name,
        about=f"the {end}'s process is stopped; its kernel goes on answering",
        begin=lambda pair: pair.node(end).signal(signal.SIGSTOP),
        restore=lambda pair: pair.node(end).signal(signal.SIGCONT),
        lasts=_DEAD,
        expects=_frozen(_WATCHING[end]),
    )


_ALL = (
    Drill(
        name="blackhole",
        about="every packet is dropped, both ways",
        begin=_block("both"),
        lasts=_DEAD,
        expects=silent_for,
    ),
    Drill(
        name="oneway",
        about="packets pass from the dialer to the listener, and none back",
        begin=_block("down"),
        lasts=_DEAD,
        expects=silent_for,
    ),
    Drill(
        name="reset",
        about="every connection is reset, and new ones are refused",
        begin=lambda pair: pair.path.reject(),
        lasts=_seconds(3.0),
        expects=_broken(_BOTH),
    ),
    Drill(
        name="loss",
        about=f"{LOSS * 100:.0f} % of the packets are lost, each way",
        begin=_lose,
        lasts=_slowest(times=3),
        expects=_STAYS,
        needs=("namespaces",),
    ),
    Drill(
        name="slow",
        about=f"{SLOW_BYTES / 1024:.0f} KiB pass each way in a second",
        begin=_slow,
        lasts=_slowest(times=2),
        expects=_STAYS,
        setup=Setup(relay=True),
    ),
    Drill(
        name="flap",
        about=f"the path goes for {FLAP_DOWN} s and comes for {FLAP_UP} s, again and again",
        during=_flap,
        lasts=_slowest(times=2),
        expects=_flapped,
    ),
    Drill(
        name="dns",
        about="the connection is cut, and the hub's name has no address any more",
        begin=_unknown,
        restore=lambda pair: pair.network.name_known(True),
        lasts=lambda bounds: bounds.back_broken / 2,
        expects=_sees(replace(_BOTH, back=0.0)),  # the last good address serves
        setup=Setup(by_name=True),
        needs=("namespaces",),
    ),
    Drill(
        name="nameless",
        about="the edge starts while the hub's name has no address",
        restore=lambda pair: pair.network.name_known(True),
        lasts=_seconds(6.0),
        expects=_sees(Expectation(reason="dns")),
        setup=Setup(by_name=True, nameless=True),
        needs=("namespaces",),
    ),
    Drill(
        name="absent",
        about="the edge starts while there is no hub",
        restore=lambda pair: pair.start("hub"),
        lasts=_seconds(6.0),
        expects=_broken(Expectation(reason="refused")),
        setup=Setup(hub_absent=True),
    ),
    _killing("kill", "hub"),
    _killing("kill-edge", "edge"),
    _freezing("freeze", "hub"),
    _freezing("freeze-edge", "edge"),
    Drill(
        name="clock",
        about="the wall clocks step by an hour and by 288 s, forth and back",
        begin=_step,
        restore=_unstep,
        lasts=_slowest(plus=2.0),
        expects=_STAYS,
        setup=Setup(clocks=True),
        needs=("libfaketime",),
    ),
    Drill(
        name="disk",
        about="the hub's disk is full",
        begin=_fill,
        restore=_empty,
        lasts=_slowest(plus=2.0),
        expects=_STAYS,
        setup=Setup(small_disk=True),
        needs=("namespaces",),
    ),
    Drill(
        name="certificate",
        about="the hub's certificate expires; it is renewed, and the edge kicked",
        begin=_expire,
        restore=_renew,
        lasts=_seconds(5.0),
        expects=_sees(replace(_BOTH, reason="tls", back=4.0)),
        setup=Setup(tls=True),
    ),
)

DRILLS: Final = {drill.name: drill for drill in _ALL}
"""Every drill of a throw-away pair by its name, in the order in which `all` runs them."""
