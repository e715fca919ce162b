"""The answers of a search's trials before its judges, beside the training."""
