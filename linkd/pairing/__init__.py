"""Pairing: two nodes authenticate each other by one code, copied by a person; docs/security.md.

The hub's `PairingServer` issues codes and answers `POST /pair`; `join` is the other side;
`Authority` is the hub's small certificate authority; `Renewal` renews certificates before they
expire. Nothing here opens a port of its own.
"""

from linkd.pairing.ca import Authority, Issued, NotRevoked, prepare
from linkd.pairing.client import HubUnreachable, Joining, Renewal, join
from linkd.pairing.messages import (
    Code,
    PairedPeer,
    PairingHooks,
    PairingRefused,
    decode_code,
    encode_code,
)
from linkd.pairing.server import PairingServer, local_call

__all__ = [
    "Authority",
    "Code",
    "HubUnreachable",
    "Issued",
    "Joining",
    "NotRevoked",
    "PairedPeer",
    "PairingHooks",
    "PairingRefused",
    "PairingServer",
    "Renewal",
    "decode_code",
    "encode_code",
    "join",
    "local_call",
    "prepare",
]
