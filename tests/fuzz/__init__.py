"""Fuzzing: whatever comes in, a value or a documented error comes out. `scripts/fuzz` runs it."""
