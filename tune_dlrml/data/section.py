"""The pairs of one data set with the places they came from, so that a row that is left out can be named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tune_dlrml.data.pairs import COLUMNS, Pair

if TYPE_CHECKING:
    from datasets import Dataset

PLACES_SHOWN = 3


@dataclass(frozen=True)
class Section:
    """The preference pairs of one key below `dataset`, each with its place in the source.

    Attributes:
        key: `dataset.train`, `dataset.eval` or `dataset.test`.
        pairs: At least one, all in the same format.
        places: Such as `row 7 (line 8)`, one for each pair.
    """

    key: str
    pairs: list[Pair]
    places: list[str]

    def without(self, left_out: Sequence[int]) -> Section:
        """The section without the pairs at these positions."""
        out = set(left_out)
        kept = [index for index in range(len(self.pairs)) if index not in out]
        return Section(self.key, [self.pairs[index] for index in kept], [self.places[index] for index in kept])

    def some_of_all(self, positions: Sequence[int]) -> str:
        """How many of the pairs are meant, and the places of the first ones: `4 of 64 pairs (row 3, row 7, ...)`."""
        shown = ", ".join(self.places[index] for index in positions[:PLACES_SHOWN])
        more = ", ..." if len(positions) > PLACES_SHOWN else ""
        return f"{len(positions)} of {len(self.pairs)} pairs ({shown}{more})"

    def dataset(self) -> Dataset:
        """The pairs in TRL's conversational or plain format."""
        from datasets import Dataset, Features, Value

        text = Value("string")
        cell = text if isinstance(self.pairs[0]["chosen"], str) else [{"role": text, "content": text}]
        return Dataset.from_list(self.pairs, features=Features(dict.fromkeys(COLUMNS, cell)))
