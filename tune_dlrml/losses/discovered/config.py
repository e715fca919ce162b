"""Configuration of the losses that DiscoPOP's search discovered. Imports no torch."""

from typing import ClassVar, Literal

from tune_dlrml.losses.base import TAU, Kind, Loss, SearchedNumber, SearchedPositive, SearchedShare

DISCOVERED = "arXiv 2406.08414, appendix on the discovered objectives"


class DbaqlLoss(Loss):
    """Dynamic blended adaptive quantile loss; batch-coupled."""

    kind: ClassVar[Kind] = "pairwise"
    source: ClassVar[str] = DISCOVERED
    couples_batch: ClassVar[bool] = True
    name: Literal["dbaql"] = "dbaql"
    beta: SearchedPositive = 0.05
    """Strength per nat: z = beta * margin."""
    tau: SearchedPositive = TAU
    """Temperature of the mixing coefficient."""
    temperature: SearchedPositive = 0.9
    """Flattens the logistic part and steepens the exponential one."""


class AqlLoss(Loss):
    """Adaptive quantile loss; batch-coupled."""

    kind: ClassVar[Kind] = "pairwise"
    trap_is_sought: ClassVar[bool] = True
    source: ClassVar[str] = DISCOVERED
    couples_batch: ClassVar[bool] = True
    name: Literal["aql"] = "aql"
    beta: SearchedPositive = 0.05
    """Strength per nat: z = beta * margin."""
    tau: SearchedPositive = TAU
    """Temperature of the mixing coefficient."""
    quantile: SearchedNumber = 0.5
    """Where the moving quantile starts."""
    quantile_rate: SearchedShare = 0.01
    """How far it moves towards the batch's."""


class PadllLoss(Loss):
    """Performance adaptive decay logistic loss."""

    kind: ClassVar[Kind] = "pairwise"
    source: ClassVar[str] = DISCOVERED
    name: Literal["padll"] = "padll"
    beta: SearchedPositive = 0.05
    """Strength per nat: z = beta * margin."""
    decay: SearchedPositive = 0.9
    """Scales the loss of every pair."""
    mismatch_penalty: SearchedShare = 0.5
    """Share that is subtracted from the loss of pairs that are ranked wrong."""


class AqflLoss(Loss):
    """Adaptive quantile feedback loss; batch-coupled."""

    kind: ClassVar[Kind] = "pairwise"
    trap_is_sought: ClassVar[bool] = True
    source: ClassVar[str] = DISCOVERED
    couples_batch: ClassVar[bool] = True
    name: Literal["aqfl"] = "aqfl"
    beta: SearchedPositive = 0.05
    """Strength per nat: z = beta * margin."""
    tau: SearchedPositive = TAU
    """Temperature of the mixing coefficient."""
    quantile_rate: SearchedShare = 0.05
    """Weight of the batch's mean in the adaptive quantile."""
    distance_scale: SearchedPositive = 0.1
    """How fast the mixing coefficient rises with the distance from that quantile."""


class CellLoss(Loss):
    """Combined exponential and logistic loss."""

    kind: ClassVar[Kind] = "pairwise"
    source: ClassVar[str] = DISCOVERED
    name: Literal["cell"] = "cell"
    beta: SearchedPositive = 0.05
    """Strength per nat: z = beta * margin."""
    alpha: SearchedShare = 0.5
    """Share of the exponential part."""


class PflLoss(Loss):
    """Policy focused loss."""

    kind: ClassVar[Kind] = "pairwise"
    source: ClassVar[str] = DISCOVERED
    name: Literal["pfl"] = "pfl"
    beta: SearchedPositive = 0.05
    """Strength per nat: z = beta * margin."""
    focus_scale: SearchedPositive = 2.0
    """Weight of pairs that the policy ranks wrong; those that it ranks right are divided by it."""
