"""What a search-space file says of DPO and its next of kin, which look at the margin. Imports no torch."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tune_dlrml.domains import Choice, Range, Searchable
from tune_dlrml.losses.base import (
    ClosedForm,
    Kind,
    Loss,
    MarginLoss,
    SearchedFlag,
    SearchedNoise,
    SearchedPositive,
    SearchedShare,
)

SomeNoise = Annotated[float, Field(gt=0, lt=0.5)]
SearchedSomeNoise = Annotated[float | Range | Choice, Searchable(SomeNoise)]
NotNegative = Annotated[float, Field(ge=0)]
SearchedNotNegative = Annotated[float | Range | Choice, Searchable(NotNegative)]


class DpoLoss(MarginLoss):
    """Direct preference optimization."""

    kind: ClassVar[Kind] = "pairwise"
    source: ClassVar[str] = "arXiv 2305.18290, equation 7"
    trl: ClassVar[str] = "sigmoid"
    titles: ClassVar[Mapping[str, str]] = {"dpo": "DPO"}
    name: Literal["dpo"] = "dpo"
    beta: SearchedPositive = 0.1
    """Strength per nat: z = beta * margin."""

    def closed_form(self, c: float | None) -> ClosedForm | None:
        """softplus(-beta * margin), under the reverse KL."""
        if self.f_divergence is not None:
            return None
        from tune_dlrml.losses.dpo.geometry import dpo_geometry, dpo_value

        return ClosedForm(lambda margin: dpo_value(self.strength * margin), dpo_geometry())


class CdpoLoss(MarginLoss):
    """Conservative DPO: labels that are wrong now and then, smoothed."""

    kind: ClassVar[Kind] = "pairwise"
    source: ClassVar[str] = "E. Mitchell (2023), A note on DPO with noisy preferences and relationship to IPO"
    name: Literal["cdpo"] = "cdpo"
    beta: SearchedPositive = 0.1
    """Strength per nat: z = beta * margin."""
    label_smoothing: SearchedNoise = 0.1
    """Share of the pairs whose labels are taken to be swapped."""


class RobustLoss(MarginLoss):
    """Robust DPO: an unbiased estimate of DPO's loss under labels that are swapped at random."""

    kind: ClassVar[Kind] = "pairwise"
    source: ClassVar[str] = "arXiv 2403.00409, section 3.1"
    trl: ClassVar[str] = "robust"
    name: Literal["robust"] = "robust"
    beta: SearchedPositive = 0.1
    """Strength per nat: z = beta * margin."""
    label_smoothing: SearchedNoise = 0.1
    """Share of the pairs whose labels are taken to be swapped."""


class ExoPairLoss(MarginLoss):
    """Efficient exact optimization of a pair: the reverse KL to the smoothed preference."""

    kind: ClassVar[Kind] = "pairwise"
    source: ClassVar[str] = "arXiv 2402.00856, equation 16"
    trl: ClassVar[str] = "exo_pair"
    name: Literal["exo_pair"] = "exo_pair"
    beta: SearchedPositive = 0.1
    """Strength per nat: z = beta * margin."""
    label_smoothing: SearchedSomeNoise = 1e-3
    """Probability that the preference leaves to the rejected completion."""


class HingeLoss(MarginLoss):
    """Hinge loss on the scaled margin, as in SLiC."""

    kind: ClassVar[Kind] = "pairwise"
    source: ClassVar[str] = "arXiv 2305.10425, section 2, on log-ratios"
    trl: ClassVar[str] = "hinge"
    name: Literal["hinge"] = "hinge"
    beta: SearchedPositive = 0.1
    """Strength per nat: z = beta * margin."""


class IpoLoss(MarginLoss):
    """Identity preference optimization."""

    kind: ClassVar[Kind] = "pairwise"
    source: ClassVar[str] = "arXiv 2310.12036, equation 17"
    trl: ClassVar[str] = "ipo"
    name: Literal["ipo"] = "ipo"
    beta: SearchedPositive = 0.1
    """Strength per nat: the margin is drawn to 1 / (2 * beta)."""
    length_normalized: SearchedFlag = False
    """Divides each log-ratio by the tokens of its completion, as TRL does; without it, it is the sum form
    of the DiscoPOP paper."""


class BetaDpoLoss(Loss):
    """DPO whose beta follows the margins of the batch; batch-coupled, keeps a running mean of the margins."""

    kind: ClassVar[Kind] = "pairwise"
    source: ClassVar[str] = "arXiv 2407.08639, equation 7, without its filter of the data"
    couples_batch: ClassVar[bool] = True
    name: Literal["beta_dpo"] = "beta_dpo"
    beta: SearchedPositive = 0.1
    """Strength per nat where the batch's mean margin is the running one."""
    alpha: SearchedNotNegative = 0.6
    """Share by which beta grows for each nat that the batch's mean margin lies above the running one."""
    momentum: SearchedShare = 0.9
    """Of the running mean: what it keeps of itself at each micro-batch."""


class SigmoidNormLoss(MarginLoss):
    """Length-normalized DPO, on log-ratios per token."""

    kind: ClassVar[Kind] = "pairwise"
    source: ClassVar[str] = "arXiv 2411.15124, length-normalized DPO"
    trl: ClassVar[str] = "sigmoid_norm"
    name: Literal["sigmoid_norm"] = "sigmoid_norm"
    beta: SearchedPositive = 5.0
    """Strength per nat and token: z = beta * the margin of the log-ratios per token."""


class RDpoLoss(Loss):
    """Length-regularized DPO: a completion is paid for what it is longer than the other."""

    kind: ClassVar[Kind] = "pairwise"
    source: ClassVar[str] = "arXiv 2403.19159, length-regularized DPO"
    name: Literal["r_dpo"] = "r_dpo"
    beta: SearchedPositive = 0.1
    """Strength per nat: z = beta * margin."""
    alpha: SearchedNotNegative = 0.05
    """Penalty of a reward per token of its completion."""


class DpopLoss(Loss):
    """DPO-positive: a chosen completion that becomes less likely than it was under the reference is penalized."""

    kind: ClassVar[Kind] = "pointwise"
    source: ClassVar[str] = "arXiv 2402.13228, DPO-positive"
    name: Literal["dpop"] = "dpop"
    beta: SearchedPositive = 0.3
    """Strength per nat: z = beta * margin."""
    penalty: SearchedNotNegative = 50.0
    """Nats of margin for each nat that the chosen completion has lost; the paper's lambda."""
