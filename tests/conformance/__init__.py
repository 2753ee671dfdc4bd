"""linkd's WebSockets held against RFC 6455: echoes of its real protocol classes."""
