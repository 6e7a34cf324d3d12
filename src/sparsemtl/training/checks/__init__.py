"""Check before training: one batch through everything, with what would go wrong later."""
