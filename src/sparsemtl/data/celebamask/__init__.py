"""CelebAMask-HQ."""
