"""Studies: grids of runs, and tables as in the papers."""
