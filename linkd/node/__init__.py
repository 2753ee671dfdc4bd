"""The node: its links, its log, publishers and subscriptions."""

from linkd.node.link_driver import LinkDriver
from linkd.node.node import Node, Stores

__all__ = ["LinkDriver", "Node", "Stores"]
