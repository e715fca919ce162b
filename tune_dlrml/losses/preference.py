"""What a preference loss sees and what it owes.

Shape legend: B = preference pairs in the batch, N = points of a curve.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tune_dlrml.losses import divergences
from tune_dlrml.losses.base import FDivergence, drawn
from tune_dlrml.losses.dpo.function import per_token
from tune_dlrml.losses.learnt import Learnt
from tune_dlrml.losses.numeric import numeric_geometry
from tune_dlrml.losses.shape import Geometry


class PairBatch(NamedTuple):
    """What a preference loss may look at, each of shape (B,).

    Log-ratios are log-probabilities of the policy minus those of the reference, summed over the completion, in nats.
    Lengths are in tokens of the completion. `reference_margin_B` is the reference's own log-probability of the chosen
    completion minus that of the rejected one, in nats, and `reference_chosen_logps_B` and `reference_rejected_logps_B`
    are the two; None counts as 0, a reference that is indifferent, whose log-ratios are the policy's log-probabilities.
    """

    chosen_logratio_B: Tensor
    rejected_logratio_B: Tensor
    chosen_length_B: Tensor
    rejected_length_B: Tensor
    reference_margin_B: Tensor | None = None
    reference_chosen_logps_B: Tensor | None = None
    reference_rejected_logps_B: Tensor | None = None

    @property
    def margin_B(self) -> Tensor:
        """Margin of each pair, shape (B,), in nats: log-ratio of the chosen minus that of the rejected."""
        return self.chosen_logratio_B - self.rejected_logratio_B

    @property
    def policy_margin_B(self) -> Tensor:
        """Log-probability per token under the policy, chosen minus rejected, shape (B,), in nats a token."""
        chosen_B = per_token(self.chosen_logps_B, self.chosen_length_B)
        return chosen_B - per_token(self.rejected_logps_B, self.rejected_length_B)

    @property
    def chosen_logps_B(self) -> Tensor:
        """Log-probability of the chosen completion under the policy, shape (B,), in nats, summed over its tokens."""
        reference_B = self.reference_chosen_logps_B
        return self.chosen_logratio_B if reference_B is None else self.chosen_logratio_B + reference_B

    @property
    def rejected_logps_B(self) -> Tensor:
        """That of the rejected completion, shape (B,), in nats."""
        reference_B = self.reference_rejected_logps_B
        return self.rejected_logratio_B if reference_B is None else self.rejected_logratio_B + reference_B


OF_THE_PAIRS = (*PairBatch._fields, "margin_B", "chosen_logps_B", "rejected_logps_B")
"""What a function may look at, by the name of its argument."""


class PreferenceLoss(nn.Module, ABC):  # type: ignore[misc]  # mypy skips torch, see pyproject.toml
    """A loss per pair: called with a `PairBatch` it returns a tensor of shape (B,), in nats.

    `beta_kl` scales the margin (DPO's beta), per nat; it is 1 for a loss without such a scale. `mix` is what is
    learnt beside the policy, None if nothing is. `batch_coupled` says that a pair's loss depends on the other pairs of
    its micro-batch, through statistics that carry a gradient of their own.
    """

    batch_coupled: bool = False

    def __init__(self, *, beta_kl: float = 1.0, mix: Learnt | None = None) -> None:
        super().__init__()
        self.beta_kl = beta_kl
        self.mix = mix

    @abstractmethod
    def forward(self, pairs: PairBatch) -> Tensor:
        """Loss of each pair, shape (B,), in nats."""

    @abstractmethod
    def geometry(self) -> Geometry | None:
        """Shape of the loss over beta_kl * margin; at the present c if beta_mix is learnt.

        Of a batch-coupled loss it is the shape at the statistics of the first step, where every margin is 0. None for
        a loss without a reference, which is no function of the margin to one.
        """

    def observe(self, pairs: PairBatch) -> None:
        """Take in a micro-batch that is trained on, before its loss is computed; most losses remember nothing."""

    def under(self, divergence: FDivergence) -> "PreferenceLoss":
        """This loss with the scores of another divergence in place of log-ratios.

        Raises:
            NotImplementedError: It looks at more than the difference of two scores.
        """
        raise NotImplementedError

    def reported(self) -> dict[str, float]:
        """What every report says of the loss as it is now, by the names of metrics; empty when that is not finite."""
        return {} if self.mix is None else self.mix.reported()

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

    def terms(self) -> "list[tuple[float, PreferenceLoss]]":
        """The losses that it is a weighted sum of, each with its weight; itself unless it is a sum."""
        return [(1.0, self)]


DIVERGENCES: dict[str, Callable[..., Tensor]] = {
    "forward_kl": divergences.forward_kl,
    "js": divergences.js,
    "alpha": divergences.alpha_divergence,
}
"""What `kind` of an f-divergence stands for."""


class Divergent(NamedTuple):
    """Scores of completions under a divergence: a function of a log-ratio, and its keyword arguments."""

    function: Callable[..., Tensor]
    numbers: Mapping[str, Any]

    def scored(self, pairs: PairBatch) -> PairBatch:
        """The pairs with scores in place of their log-ratios."""
        chosen_B, rejected_B = (self.function(ratio_B, **self.numbers) for ratio_B in pairs[:2])
        return pairs._replace(chosen_logratio_B=chosen_B, rejected_logratio_B=rejected_B)


class PureLoss(PreferenceLoss):
    """A pure function of the pair at fixed numbers, one of which `mix` may hold instead.

    Args:
        function: Takes by position what it looks at, under the names of `PairBatch`, and the numbers by keyword, and
            returns the losses (B,). An indifferent reference is a margin of 0.
        numbers: Its keyword arguments; `beta` or `beta_kl` among them where it has a geometry.
        geometry: Shape of the loss over that times the margin; None for a loss without a reference.
        mix: What is learnt; the function takes it by its keyword.
        statistic: Of a function that is coupled over the micro-batch and takes its statistics as the keyword
            `statistic` too: their values where every margin is 0. None for one that scores every pair by itself.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        numbers: Mapping[str, Any],
        geometry: Geometry | None,
        *,
        mix: Learnt | None = None,
        statistic: float | tuple[float, ...] | None = None,
    ) -> None:
        strength = 1.0 if geometry is None else numbers["beta_kl"] if "beta_kl" in numbers else numbers["beta"]
        super().__init__(beta_kl=strength, mix=mix)
        self.function = function
        self.numbers = numbers
        self.statistic = statistic
        self.batch_coupled = type(self).batch_coupled or statistic is not None
        self.divergence: Divergent | None = None
        self._geometry = geometry
        self._looks_at = [name for name in inspect.signature(function).parameters if name in OF_THE_PAIRS]

    def forward(self, pairs: PairBatch) -> Tensor:
        """Loss of each pair, shape (B,)."""
        learnt = {} if self.mix is None else {self.mix.keyword: self.mix.value()}
        return self.function(*self._seen(pairs), **self.numbers, **learnt)

    def at_start(self, pairs: PairBatch) -> Tensor:
        """Loss of each pair at the statistics of the first step, shape (B,)."""
        if self.statistic is None:
            return self(pairs)
        statistic = pairs.chosen_logratio_B.new_tensor(self.statistic)
        return self.function(*self._seen(pairs), **self.numbers, statistic=statistic)

    def under(self, divergence: FDivergence) -> "PureLoss":
        """This loss, scoring completions under that divergence from now on."""
        numbers = {} if divergence.alpha is None else {"alpha": drawn(divergence.alpha)}
        self.divergence = Divergent(DIVERGENCES[divergence.kind], numbers)
        return self

    def geometry(self) -> Geometry | None:
        """The one given; under another divergence found numerically."""
        return self.reverse_kl_geometry() if self.divergence is None else numeric_geometry(self)

    def reverse_kl_geometry(self) -> Geometry | None:
        """The one given."""
        return self._geometry

    def _seen(self, pairs: PairBatch) -> list[Tensor | float]:
        if self.divergence is not None:
            pairs = self.divergence.scored(pairs)
        found = [getattr(pairs, name) for name in self._looks_at]
        return [0.0 if each is None else each for each in found]
