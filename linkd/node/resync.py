"""What a resync of one peer would do, in words for an operator, and doing it."""

from __future__ import annotations

from twisted.internet.defer import Deferred, succeed

from linkd import events
from linkd.errors import LinkdError
from linkd.log.engine import Appended, Log
from linkd.node.driver import LinkDriver


def resync(node: str, log: Log, driver: LinkDriver, confirmed: bool) -> Deferred[str]:
    """Forget how far node `node` has the peer's log, where confirmed; fire with what that means.

    The peer then goes by its own notes.
    """
    told = _told(node, log, driver)
    if not confirmed:
        return succeed(told)
    done: Deferred[str] = Deferred()

    def settled(outcome: Appended | LinkdError) -> None:
        if isinstance(outcome, LinkdError):
            done.errback(outcome)
            return
        events.emit("link.resynced", peer=driver.peer, detail=told)
        driver.rejoin("the link begins anew after a resync")
        done.callback(told)

    log.set_cursor(driver.peer, None, settled)
    return done


def _told(node: str, log: Log, driver: LinkDriver) -> str:
    """Return what would be sent again or lost, and what the other direction needs."""
    peer, cursor = driver.peer, log.cursor(driver.peer)
    outbound = driver.carrier.session.outbound
    told = (
        f"this node has nothing of {peer}'s log yet"
        if cursor is None or cursor.next <= 1
        else f"this node has {peer}'s log {cursor.log} up to offset {cursor.next - 1}; after"
        f" a resync {peer} sends again from where its own notes stand: records that this node"
        " knows by their origin are left out, others may come a second time, and what is not"
        " there any more is lost"
    )
    return (
        f"{told}. By this node's notes {peer} has everything below offset {outbound.acked} of a log"
        f" whose next offset is {log.next} ({outbound.owed_records} records owed); to send from"
        f" there, run `linkd resync {node}` on {peer} too"
    )
