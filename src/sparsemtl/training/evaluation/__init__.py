"""Metrics per task over a split, and the epoch that they select."""
