"""MT-Bench: its questions, the answers to them, and the scores."""
