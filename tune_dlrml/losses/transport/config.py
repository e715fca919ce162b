"""What a search-space file says of alignment by optimal transport. Imports no torch."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from tune_dlrml.losses.base import Kind, Loss, SearchedNoise, SearchedPositive

_SORTED = {"weighting": "it sorts the completions of a micro-batch, so that none of its losses is that of one pair"}


class AotLoss(Loss):
    """Alignment by optimal transport of the margins; batch-coupled."""

    kind: ClassVar[Kind] = "pairwise"
    source: ClassVar[str] = "arXiv 2406.05882, section 3"
    couples_batch: ClassVar[bool] = True
    refuses: ClassVar[Mapping[str, str]] = _SORTED
    trl: ClassVar[str] = "aot"
    name: Literal["aot"] = "aot"
    beta: SearchedPositive = 0.1
    """Strength per nat."""
    label_smoothing: SearchedNoise = 0.0
    """Share of the pairs whose labels are taken to be swapped."""


class AotUnpairedLoss(Loss):
    """Alignment by optimal transport of chosen to rejected completions of the batch, whatever their pairs; coupled."""

    kind: ClassVar[Kind] = "pointwise"
    source: ClassVar[str] = "arXiv 2406.05882, section 3"
    couples_batch: ClassVar[bool] = True
    refuses: ClassVar[Mapping[str, str]] = _SORTED
    trl: ClassVar[str] = "aot_unpaired"
    name: Literal["aot_unpaired"] = "aot_unpaired"
    beta: SearchedPositive = 0.1
    """Strength per nat."""
    label_smoothing: SearchedNoise = 0.0
    """Share of the pairs whose labels are taken to be swapped."""
