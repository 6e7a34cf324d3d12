"""Comparison of the outputs of a network before and after."""
