"""The training step and its parts: losses of a batch, gradients, their combination, one update."""
