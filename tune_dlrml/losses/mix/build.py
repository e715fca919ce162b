"""A weighted sum of losses from its configuration."""

from collections.abc import Sequence

from torch import Tensor, nn

from tune_dlrml.losses.base import drawn
from tune_dlrml.losses.mix.config import MixLoss
from tune_dlrml.losses.numeric import numeric_geometry
from tune_dlrml.losses.preference import PairBatch, PreferenceLoss
from tune_dlrml.losses.registry import build_loss
from tune_dlrml.losses.shape import Geometry


class WeightedSum(PreferenceLoss):
    """Sum of weight * loss over its parts, per pair, scaled like the first of them.

    Source: arXiv 2411.10442, mixed preference optimization, and the `loss_weights` of TRL's DPOTrainer.
    """

    def __init__(self, parts: Sequence[PreferenceLoss], weights: Sequence[float]) -> None:
        super().__init__(beta_kl=parts[0].beta_kl)
        self.parts = nn.ModuleList(parts)
        self.weights = weights
        self.batch_coupled = any(part.batch_coupled for part in parts)

    def forward(self, pairs: PairBatch) -> Tensor:
        """Loss of each pair, shape (B,)."""
        return self._sum([part(pairs) for part in self.parts])

    def at_start(self, pairs: PairBatch) -> Tensor:
        """Loss of each pair at the statistics of the first step, shape (B,)."""
        return self._sum([part.at_start(pairs) for part in self.parts])

    def observe(self, pairs: PairBatch) -> None:
        """Let every part take in a micro-batch."""
        for part in self.parts:
            part.observe(pairs)

    def geometry(self) -> Geometry:
        """Found numerically."""
        return numeric_geometry(self)

    def terms(self) -> list[tuple[float, PreferenceLoss]]:
        """Its parts with their weights."""
        return [*zip(self.weights, self.parts, strict=True)]

    def _sum(self, losses: Sequence[Tensor]) -> Tensor:
        first_B, *others = (weight * loss_B for weight, loss_B in zip(self.weights, losses, strict=True))
        return sum(others, start=first_B)


def build_mix(config: MixLoss) -> WeightedSum:
    """The sum as configured."""
    weights = [float(drawn(part.weight)) for part in config.parts]
    return WeightedSum([build_loss(part.loss) for part in config.parts], weights)
