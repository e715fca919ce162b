"""`doctor`: every check of a search that is possible before it starts, and an estimate of its cost."""
