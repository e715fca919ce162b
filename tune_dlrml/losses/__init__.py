"""Preference losses: their geometry, their evaluation, and the one value that is trained beside the policy."""
