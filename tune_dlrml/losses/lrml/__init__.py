"""The log-ratio modulated losses: DiscoPOP and dLRML."""
