"""The losses that DiscoPOP's search discovered."""
