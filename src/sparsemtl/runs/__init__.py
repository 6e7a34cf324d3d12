"""Runs: from a configuration to a trained and tested model in a folder, with pretraining."""
