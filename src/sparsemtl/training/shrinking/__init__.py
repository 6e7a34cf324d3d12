"""Small networks out of a trained model, to a budget."""
