"""Training on slices: each task runs on its compacted network."""
