"""Photographs in folders named as their classes: listed, decoded, divided into splits without leaks."""
