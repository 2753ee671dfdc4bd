"""Connections between nodes: Twisted and Autobahn, TLS, identity, name look-up."""
