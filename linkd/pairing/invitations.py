"""The invitations of a node: at whichever of its instances, each is used once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from linkd.errors import LinkdError
from linkd.pairing.messages import PairingRefused
from linkd.pairing.shared import (
    INVITATION,
    INVITED,
    JOINED,
    TAKEN_BACK,
    TRIES,
    Invitation,
    Joined,
    SharedRows,
    decode_invitation,
    decode_joined,
    encode,
)

MAX_INVITATIONS: Final = 256
MAX_WRONG_PROOFS: Final = 10
KEPT_SECONDS: Final = 3600.0
"""So long after its end a code is still known, for the message."""

USED: Final = "the code was used before, which is possible once: make a new one"
EXPIRED: Final = "the code has expired or was taken back: make a new one"


class Invitations:
    """Invitations by the hashes of their codes.

    Args:
        rows: Where they are.
        now: The seconds in which they end.
    """

    def __init__(self, rows: SharedRows, now: Callable[[], float]) -> None:
        self._rows = rows
        self._now = now

    def check_room(self) -> None:
        """Drop those that ended an hour ago; refuse another one if there are too many."""
        self.drop_ended()
        if len(self._rows.get(INVITATION)) + len(self._rows.get(JOINED)) >= MAX_INVITATIONS:
            raise PairingRefused(f"{MAX_INVITATIONS} codes are out: wait until some have ended")

    def add(self, key: str, invitation: Invitation) -> None:
        """Keep an invitation; an older one of its name is good no more."""
        self._rows.put(INVITATION, {key: encode(invitation)})
        self._rows.put(INVITED, {invitation.name: key.encode()})

    def take_back(self, name: str) -> None:
        """Let no code of a name be good any more."""
        self._rows.put(INVITED, {name: TAKEN_BACK})

    def open(self) -> list[Invitation]:
        """Return those that may still be used."""
        found = self._rows.get(INVITATION).items()
        pairs = [(key, decode_invitation(value)) for key, value in found]
        return [each for key, each in pairs if self.is_open(key, each)]

    def names(self) -> set[str]:
        """Return the names in all that are known, used or not."""
        return {each.name for each in self._all().values()}

    def _all(self) -> dict[str, Invitation]:
        used = {key: decode_joined(each) for key, each in self._rows.get(JOINED).items()}
        found = {key: each.invitation for key, each in used.items()}
        for key, value in self._rows.get(INVITATION).items():
            found[key] = decode_invitation(value)
        return found

    def find(self, key: str) -> Invitation | Joined | None:
        """Return an invitation of any instance, or how it was used."""
        if key not in self._rows.get(INVITATION):
            self._rows.refresh()
        used = self._rows.get(JOINED).get(key)
        if used is not None:
            return decode_joined(used)
        value = self._rows.get(INVITATION).get(key)
        return None if value is None else decode_invitation(value)

    def is_newest(self, key: str, name: str) -> bool:
        """Return whether no newer code was made for a name, and this one not taken back."""
        return self._rows.get(INVITED).get(name) == key.encode()

    def is_open(self, key: str, invitation: Invitation) -> bool:
        """Return whether an invitation may still be used."""
        return self._now() < invitation.ends and self.is_newest(key, invitation.name)

    def count_try(self, key: str) -> bool:
        """Count a try, before its proof is looked at; return False if all instances had too many.

        Of tries at the same time at several instances, no more than those of one would pass.
        """
        here = f"{key}/{self._rows.instance or ''}"
        tries = int(self._rows.get(TRIES).get(here, b"0")) + 1
        self._rows.put(TRIES, {here: b"%d" % tries})
        self._rows.refresh()
        counts = self._rows.get(TRIES).items()
        total = sum(int(value) for other, value in counts if other.partition("/")[0] == key)
        return total <= MAX_WRONG_PROOFS

    def use(self, key: str, invitation: Invitation, issue: Callable[[], str]) -> str:
        """Use an invitation up, at this instance alone; return the certificate that `issue` made.

        Raises:
            PairingRefused: It was used at another instance.
            LinkdError, OSError: `issue` failed; it can be used again.
        """
        if self._rows.take(INVITATION, key) is None:
            raise PairingRefused(USED)
        try:
            certificate = issue()
            self._rows.refresh()
        except (LinkdError, OSError):
            self._rows.note(INVITATION, key, encode(invitation))
            raise
        return certificate

    def drop_ended(self) -> None:
        """Drop those that ended an hour ago, and what is known of them."""
        limit, kept = self._now() - KEPT_SECONDS, self._all()
        for key, invitation in tuple(kept.items()):
            if invitation.ends < limit:
                del kept[key]
                self._drop(INVITATION, key)
                self._drop(JOINED, key)
        names = {each.name for each in kept.values()}
        for key in self._rows.get(TRIES):
            if key.partition("/")[0] not in kept:
                self._drop(TRIES, key)
        for name in self._rows.get(INVITED):
            if name not in names:
                self._drop(INVITED, name)

    def _drop(self, kind: str, key: str) -> None:
        if key in self._rows.get(kind):
            self._rows.note(kind, key, None)
