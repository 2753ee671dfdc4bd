"""Deliberate faults with verdicts: see README.md beside this file."""
