"""`doctor`: every check of a search that can be made before it starts, and what it will cost."""
