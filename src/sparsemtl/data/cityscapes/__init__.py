"""Cityscapes in two layouts."""
