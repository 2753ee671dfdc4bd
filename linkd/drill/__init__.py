"""Faults made on purpose, and verdicts."""
