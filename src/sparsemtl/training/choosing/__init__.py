"""Choice of what tasks share: affinities, candidates, and each task's best one."""
