"""The local API: HTTP and WebSocket for applications, the commands, metrics and the dashboard."""
