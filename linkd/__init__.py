"""linkd keeps a resilient link between servers."""

__version__ = "0.1.0"
