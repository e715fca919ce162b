"""An OpenAI-compatible endpoint: its limits, requests and replies."""
