"""Alignment by optimal transport."""
