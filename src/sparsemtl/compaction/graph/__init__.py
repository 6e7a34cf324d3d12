"""The graph of a network and its canonical form, for which the rules are written."""
