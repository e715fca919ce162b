"""Log-probs of the frozen reference: computed once, kept on disk."""
