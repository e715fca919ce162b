"""What a search-space file says of the losses that look at each completion by itself. Imports no torch."""

from typing import ClassVar, Literal

from tune_dlrml.losses.base import Kind, Loss, SearchedFlag, SearchedPositive


class NcaPairLoss(Loss):
    """Noise contrastive alignment of a pair."""

    kind: ClassVar[Kind] = "pointwise"
    source: ClassVar[str] = "arXiv 2402.05369, section 4.1"
    trl: ClassVar[str] = "nca_pair"
    name: Literal["nca_pair"] = "nca_pair"
    beta: SearchedPositive = 0.01
    """Strength per nat of each log-ratio."""


class BcoPairLoss(Loss):
    """Binary classifier optimization of a pair; keeps a running mean of its rewards."""

    kind: ClassVar[Kind] = "pointwise"
    source: ClassVar[str] = "arXiv 2404.04656, section 4"
    trl: ClassVar[str] = "bco_pair"
    name: Literal["bco_pair"] = "bco_pair"
    beta: SearchedPositive = 0.01
    """Strength per nat of each log-ratio."""
    shifted: SearchedFlag = True
    """Takes the mean reward of all completions seen so far off each reward; without it, it is the loss of TRL 1.16."""


class SppoHardLoss(Loss):
    """Self-play preference optimization with probabilities of 1 and 0."""

    kind: ClassVar[Kind] = "pointwise"
    source: ClassVar[str] = "arXiv 2405.00675, equation 4.7"
    trl: ClassVar[str] = "sppo_hard"
    name: Literal["sppo_hard"] = "sppo_hard"
    beta: SearchedPositive = 0.001
    """Per nat: the chosen log-ratio is drawn to 1 / (2 * beta), the rejected one to -1 / (2 * beta)."""


class ApoZeroLoss(Loss):
    """Anchored preference optimization for chosen completions that are better than the model's own."""

    kind: ClassVar[Kind] = "pointwise"
    source: ClassVar[str] = "arXiv 2408.06266, equation 7"
    trl: ClassVar[str] = "apo_zero"
    name: Literal["apo_zero"] = "apo_zero"
    beta: SearchedPositive = 0.1
    """Strength per nat of each log-ratio."""


class ApoDownLoss(Loss):
    """Anchored preference optimization for chosen completions that are worse than the model's own."""

    kind: ClassVar[Kind] = "pointwise"
    source: ClassVar[str] = "arXiv 2408.06266, equation 8"
    trl: ClassVar[str] = "apo_down"
    name: Literal["apo_down"] = "apo_down"
    beta: SearchedPositive = 0.1
    """Strength per nat of each log-ratio, and of the margin."""
