"""Wire formats: records, messages between nodes, frames between a client and its node."""
