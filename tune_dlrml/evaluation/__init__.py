"""Answers of a trained model, and their scores by judges and rewards."""
