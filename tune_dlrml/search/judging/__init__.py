"""Judging of the trials' answers, in parallel to the training."""
