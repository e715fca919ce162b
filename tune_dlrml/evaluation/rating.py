"""The verdict in a judge's own words.

Judges explain themselves before they decide, and may quote what they judge. So the last verdict in the text counts,
and one that a judge only thinks of (`<think>`) does not.
"""

import re
from typing import Literal

LOWEST, HIGHEST = 1.0, 10.0

_RATING = re.compile(r"\[\[\s*([0-9]+(?:\.[0-9]+)?)\s*\]\]")
_PAIR = re.compile(r"\[\[\s*([ABC])\s*\]\]")
_THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)


def rating(words: str) -> float | None:
    """The last `[[x]]` with 1 <= x <= 10; None if there is none.

    Whatever else stands in double brackets is passed over: `[[11]]`, `[[0]]`, `[[NaN]]`, `[[8/10]]`.
    """
    ratings = [float(found) for found in _RATING.findall(_said(words))]
    return next((x for x in reversed(ratings) if LOWEST <= x <= HIGHEST), None)


def pair_verdict(words: str) -> Literal["A", "B", "tie"] | None:
    """The last of `[[A]]`, `[[B]]` and `[[C]]`, where C is a tie; None if there is none."""
    verdicts = _PAIR.findall(_said(words))
    if not verdicts:
        return None
    return {"A": "A", "B": "B", "C": "tie"}[verdicts[-1]]  # type: ignore[return-value]


def _said(words: str) -> str:
    """The words without thoughts; some chat templates open a thought in the prompt, so that it has an end only."""
    behind = words.rpartition("</think>")[2] if "<think>" not in words else words
    return _THOUGHT.sub("", behind)
