"""An OpenAI-compatible endpoint: what may be asked of it, and what it replies."""
