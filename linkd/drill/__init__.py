"""Faults made on purpose, and verdicts: see README.md beside this file."""
