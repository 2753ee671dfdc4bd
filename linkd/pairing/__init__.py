"""Pairing: two nodes authenticate each other by one code, copied by a person; docs/security.md.

The hub's `PairingServer` issues codes and answers `POST /pair`; `join` is the other side;
`Authority` is the hub's small certificate authority; `Renewal` renews certificates before they
expire. Nothing here opens a port of its own.
"""
