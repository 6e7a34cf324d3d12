"""Parts of the architecture with an auxiliary network (DAMTL)."""
