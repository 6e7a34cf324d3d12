"""NYU-v2 in three layouts."""
