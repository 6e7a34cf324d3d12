"""Milliseconds of networks in several runtimes, and the forms that are fastest there."""
