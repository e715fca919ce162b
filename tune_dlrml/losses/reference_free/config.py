"""What a search-space file says of the losses without a reference. Imports no torch."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from tune_dlrml.losses.base import Kind, Loss, SearchedNumber, SearchedPositive
from tune_dlrml.losses.dpo.config import SearchedNotNegative


class ReferenceFreeLoss(Loss):
    """A loss of the policy's own log-probabilities.

    It has no place on a map of margins, and no geometry: two pairs of one margin to a reference differ in it.
    """

    needs_reference: ClassVar[bool] = False
    placing: ClassVar[tuple[str, ...]] = ()
    refuses: ClassVar[Mapping[str, str]] = {
        "ld_alpha": "it weighs log-ratios to a reference, of which this loss has none"
    }


class SimpoLoss(ReferenceFreeLoss):
    """Simple preference optimization: log-probabilities per token, and a margin that they must reach."""

    kind: ClassVar[Kind] = "pairwise"
    source: ClassVar[str] = "arXiv 2405.14734, equation 6"
    trl: ClassVar[str] = "CPOTrainer simpo"
    name: Literal["simpo"] = "simpo"
    beta: SearchedPositive = 2.0
    """Strength per nat and token."""
    gamma: SearchedNotNegative = 1.0
    """Reward by which the chosen completion is to exceed the rejected one."""


class CpoLoss(ReferenceFreeLoss):
    """Contrastive preference optimization, with the likelihood of the chosen completion beside it."""

    kind: ClassVar[Kind] = "pointwise"
    source: ClassVar[str] = "arXiv 2401.08417, section 3"
    trl: ClassVar[str] = "CPOTrainer sigmoid"
    name: Literal["cpo"] = "cpo"
    beta: SearchedPositive = 0.1
    """Strength per nat of the difference of the log-probabilities."""
    nll_weight: SearchedNotNegative = 1.0
    """Of the negative log-likelihood of the chosen completion, a mean over its tokens."""


class OrpoLoss(ReferenceFreeLoss):
    """Odds ratio preference optimization: fine-tuning on the chosen completion, and the odds ratio beside it."""

    kind: ClassVar[Kind] = "pointwise"
    source: ClassVar[str] = "arXiv 2403.07691, equations 6 and 7"
    trl: ClassVar[str] = "ORPOTrainer"
    name: Literal["orpo"] = "orpo"
    beta: SearchedNotNegative = 0.1
    """Weight of the odds ratio; the paper's lambda."""


class SlicLoss(ReferenceFreeLoss):
    """Sequence likelihood calibration: a hinge on log-probabilities, with the likelihood of the chosen completion."""

    kind: ClassVar[Kind] = "pointwise"
    source: ClassVar[str] = "arXiv 2305.10425, section 2"
    trl: ClassVar[str] = "CPOTrainer hinge"
    name: Literal["slic"] = "slic"
    delta: SearchedPositive = 1.0
    """Nats by which the chosen completion is to be more likely than the rejected one."""
    nll_weight: SearchedNotNegative = 0.5
    """Of the negative log-likelihood of the chosen completion, summed over its tokens; the paper's lambda."""


class AlphapoLoss(ReferenceFreeLoss):
    """SimPO with a reward of another shape than the logarithm of the likelihood."""

    kind: ClassVar[Kind] = "pairwise"
    source: ClassVar[str] = "arXiv 2501.03884, section 3"
    trl: ClassVar[str] = "CPOTrainer alphapo"
    name: Literal["alphapo"] = "alphapo"
    alpha: SearchedNumber = 0.25
    """Shape of the reward: 0 is SimPO's logarithm; above 0 it counts unlikely completions more, below 0 less."""
    beta: SearchedPositive = 2.5
    """Strength of the reward."""
    gamma: SearchedNotNegative = 0.1
    """Reward by which the chosen completion is to exceed the rejected one."""


class SimperLoss(ReferenceFreeLoss):
    """Perplexity optimization without a number to set."""

    kind: ClassVar[Kind] = "pointwise"
    source: ClassVar[str] = "arXiv 2502.00883, section 3"
    name: Literal["simper"] = "simper"
