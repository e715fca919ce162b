"""A loss that a language model wrote: a function within a small language, whose text is all there is of it."""
