"""Metrics per kind of task."""
