"""What a preference loss sees and what it owes.

Shape legend: B = preference pairs in the batch, N = points of a curve.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from tune_dlrml.losses.geometry import Geometry
from tune_dlrml.losses.mixing import LearnableMix


class PairBatch(NamedTuple):
    """What a preference loss may look at, each of shape (B,).

    Log-ratios are log-probabilities of the policy minus those of the reference, summed over the completion, in nats.
    Lengths are in tokens of the completion. `reference_margin_B` is the reference's own log-probability of the chosen
    completion minus that of the rejected one, in nats; None counts as a reference that is indifferent.
    """

    chosen_logratio_B: Tensor
    rejected_logratio_B: Tensor
    chosen_length_B: Tensor
    rejected_length_B: Tensor
    reference_margin_B: Tensor | None = None

    @property
    def margin_B(self) -> Tensor:
        """Margin of each pair, shape (B,), in nats: log-ratio of the chosen minus that of the rejected."""
        return self.chosen_logratio_B - self.rejected_logratio_B


class PreferenceLoss(nn.Module, ABC):  # type: ignore[misc]  # mypy skips torch, see pyproject.toml
    """A loss per pair: called with a `PairBatch` it returns a tensor of shape (B,), in nats.

    `beta_kl` scales the margin (DPO's beta), per nat; it is 1 for a loss without such a scale. `mix` is the learnable
    beta_mix, None if nothing is learnt. `batch_coupled` says that a pair's loss depends on the other pairs of its
    micro-batch, through statistics that carry a gradient of their own.
    """

    batch_coupled: ClassVar[bool] = False

    def __init__(self, *, beta_kl: float = 1.0, mix: LearnableMix | None = None) -> None:
        super().__init__()
        self.beta_kl = beta_kl
        self.mix = mix

    @abstractmethod
    def forward(self, pairs: PairBatch) -> Tensor:
        """Loss of each pair, shape (B,), in nats."""

    @abstractmethod
    def geometry(self) -> Geometry:
        """Shape of the loss over beta_kl * margin; at the present c if beta_mix is learnt.

        Of a batch-coupled loss it is the shape at the statistics of the first step, where every margin is 0.
        """

    def at_start(self, pairs: PairBatch) -> Tensor:
        """`forward`, but with the batch statistics of the first step, where every margin is 0; shape (B,), in nats."""
        return self(pairs)

    def curve(self, z_N: Tensor) -> tuple[Tensor, Tensor]:
        """Value (nats) and slope dL/dz of single pairs at z = beta_kl * margin, each of shape (N,), as `geometry` sees.

        The margin is split evenly: the chosen completion has gained what the rejected one has lost. Both are one token
        long and equally likely under the reference.
        """
        with torch.enable_grad():
            z_N = z_N.detach().clone().requires_grad_()
            half_N, one_N = z_N / (2 * self.beta_kl), torch.ones_like(z_N, requires_grad=False)
            value_N = self.at_start(PairBatch(half_N, -half_N, one_N, one_N))
            (slope_N,) = torch.autograd.grad(value_N.sum(), z_N)
        return value_N.detach(), slope_N


class MarginLoss(PreferenceLoss):
    """A pure function of the margin at fixed numbers.

    Args:
        function: Takes the margins (B,) and the numbers by keyword, and returns the losses (B,).
        numbers: Its keyword arguments, `beta` among them.
        geometry: Shape of the loss over beta * margin.
    """

    def __init__(self, function: Callable[..., Tensor], numbers: dict[str, Any], geometry: Geometry) -> None:
        super().__init__(beta_kl=numbers["beta"])
        self.function = function
        self.numbers = numbers
        self._geometry = geometry

    def forward(self, pairs: PairBatch) -> Tensor:
        """Loss of each pair, shape (B,), in nats."""
        return self.function(pairs.margin_B, **self.numbers)

    def geometry(self) -> Geometry:
        """The one given."""
        return self._geometry


class BatchCoupledMarginLoss(MarginLoss):
    """A function of the margin and of one statistic of the micro-batch.

    Args:
        function: As of `MarginLoss`; without the keyword `statistic` it takes that of its margins.
        numbers: As of `MarginLoss`.
        geometry: Shape of the loss at `statistic`.
        statistic: That of a batch in which every margin is 0.
    """

    batch_coupled = True

    def __init__(
        self, function: Callable[..., Tensor], numbers: dict[str, Any], geometry: Geometry, *, statistic: float
    ) -> None:
        super().__init__(function, numbers, geometry)
        self.statistic = statistic

    def at_start(self, pairs: PairBatch) -> Tensor:
        """Loss of each pair at the given statistic, shape (B,), in nats."""
        margin_B = pairs.margin_B
        return self.function(margin_B, **self.numbers, statistic=margin_B.new_tensor(self.statistic))
