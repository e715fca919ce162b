"""Losses without a reference, which look at the policy's own log-probabilities."""
