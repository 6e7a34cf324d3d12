"""Plans: how the networks of several tasks are computed together."""
