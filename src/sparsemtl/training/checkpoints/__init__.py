"""Checkpoints of a run, its best model so far, and its files."""
