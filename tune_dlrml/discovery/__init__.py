"""Losses that a language model proposes: what a reply holds, and the cheap questions that come before training."""
