"""A weighted sum of other losses."""
