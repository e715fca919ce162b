"""Preference pairs through a model: batches, packed or padded, and the head that makes log-probs."""
