"""Losses that hold each completion of a pair against an anchor of its own."""
