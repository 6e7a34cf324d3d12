"""Processes of a run, and the machine that they run on."""
