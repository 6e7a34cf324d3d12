"""Registries of classes by name, and the constraints on their parameters."""
