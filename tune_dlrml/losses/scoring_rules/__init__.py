"""Strictly proper scoring rules of the next token."""
