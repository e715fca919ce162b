"""A reward that a random model's completions differ in."""

from collections.abc import Sequence


def characters(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    return [float(len(text)) for text in completions]
