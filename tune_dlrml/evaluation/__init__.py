"""What a trained model answers, and what judges and rewards say of it."""
