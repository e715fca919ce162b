"""The pairs of one data set with their places in the source, so that messages can name rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tune_dlrml.data.pairs import Pair

if TYPE_CHECKING:
    from tune_dlrml.data.tokens import TokenPair

PLACES_SHOWN = 3


@dataclass(frozen=True)
class Section:
    """The preference pairs of one key below `dataset`, each with its place in the source.

    Attributes:
        key: `dataset.train`, `dataset.eval` or `dataset.test`.
        pairs: At least one, all in the same format.
        places: Such as `row 7 (line 8)`, one for each pair.
        tokens: Of each pair; empty before tokenization.
    """

    key: str
    pairs: list[Pair]
    places: list[str]
    tokens: Sequence[TokenPair] = ()

    def without(self, left_out: Sequence[int]) -> Section:
        """The section without the pairs at these positions."""
        out = set(left_out)
        kept = [index for index in range(len(self.pairs)) if index not in out]
        pairs, places = [self.pairs[index] for index in kept], [self.places[index] for index in kept]
        return Section(self.key, pairs, places, [self.tokens[index] for index in kept] if self.tokens else ())

    def some_of_all(self, positions: Sequence[int]) -> str:
        """The number of these pairs, and the places of the first ones: `4 of 64 pairs (row 3, row 7, ...)`."""
        return f"{len(positions)} of {len(self.pairs)} pairs ({self.first_places(positions)})"

    def first_places(self, positions: Sequence[int]) -> str:
        """The places of the first of these pairs: `row 3, row 7, ...`."""
        shown = ", ".join(self.places[index] for index in positions[:PLACES_SHOWN])
        return shown + (", ..." if len(positions) > PLACES_SHOWN else "")
