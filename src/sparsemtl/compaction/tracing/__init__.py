"""Tracing: a module's calls, recorded with real tensors as a graph."""
