"""Configuration of KTO. Imports no torch."""

from typing import ClassVar, Literal

from tune_dlrml.losses.base import Kind, Loss, SearchedFlag, SearchedPositive


class KtoLoss(Loss):
    """KTO in its pair form, with the KL of each half estimated from the batch."""

    kind: ClassVar[Kind] = "pointwise"
    source: ClassVar[str] = "arXiv 2402.01306, equation 7"
    couples_batch: ClassVar[bool] = True
    name: Literal["kto"] = "kto"
    beta: SearchedPositive = 0.1
    """Strength per nat of each log-ratio."""
    desirable_weight: SearchedPositive = 1.0
    """Of the chosen half."""
    undesirable_weight: SearchedPositive = 1.0
    """Of the rejected half."""
    kl_gradient: SearchedFlag = True
    """Lets the gradient through the batch's estimates of KL, as TRL's `kto_pair` and DiscoPOP do."""
