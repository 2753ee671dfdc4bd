"""The durable log: what a log promises (`engine`), files (`segments`), cursors, memory for tests."""
