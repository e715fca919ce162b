"""A search from its preparation to its end: warm-up, trials, confirmation, judging."""
