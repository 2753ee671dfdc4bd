"""The node: its links, its log, and who reads and publishes."""
