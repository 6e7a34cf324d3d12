"""Studies: grids of runs, and their results in tables."""
