"""Parts of the auxiliary network (DAMTL)."""
