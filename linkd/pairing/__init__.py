"""Pairing: two nodes know each other by one code, copied by a person; docs/security.md.

The hub's `Pairing` makes codes and answers `POST /pair`; `join` is the other end; `Authority` is
the hub's small certificate authority; `Renewal` keeps certificates from ending. Nothing here opens
a port of its own.
"""

from linkd.pairing.authority import Authority, NotRevoked, prepare
from linkd.pairing.code import Code, decode_code, encode_code
from linkd.pairing.hub import Pairing
from linkd.pairing.issued import Issued
from linkd.pairing.joining import HubUnreachable, Joining, join
from linkd.pairing.local import local_call
from linkd.pairing.renewal import Renewal
from linkd.pairing.terms import Hooks, PairedPeer, PairingRefused

__all__ = [
    "Authority",
    "Code",
    "Hooks",
    "HubUnreachable",
    "Issued",
    "Joining",
    "NotRevoked",
    "PairedPeer",
    "Pairing",
    "PairingRefused",
    "Renewal",
    "decode_code",
    "encode_code",
    "join",
    "local_call",
    "prepare",
]
