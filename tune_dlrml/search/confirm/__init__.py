"""The best trials again, under new seeds."""
