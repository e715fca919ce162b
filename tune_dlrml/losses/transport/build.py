"""Alignment by optimal transport from its configurations."""

from torch import Tensor

from tune_dlrml.losses.dpo.geometry import dpo_geometry
from tune_dlrml.losses.preference import PairBatch, PureLoss
from tune_dlrml.losses.transport import function
from tune_dlrml.losses.transport.config import AotLoss, AotUnpairedLoss


class Ranked(PureLoss):
    """A function that ranks the pairs of a micro-batch, and takes each by itself with `alone`."""

    batch_coupled = True

    def at_start(self, pairs: PairBatch) -> Tensor:
        """Loss of each pair as a micro-batch of its own, shape (B,), in nats."""
        return self.function(*self._seen(pairs), **self.numbers, alone=True)


def build_aot(config: AotLoss) -> PureLoss:
    """Paired AOT as configured; of a pair alone it has DPO's shape."""
    return Ranked(function.aot, config.numbers(), dpo_geometry())


def build_aot_unpaired(config: AotUnpairedLoss) -> PureLoss:
    """Unpaired AOT as configured; of a pair alone it has DPO's shape."""
    return Ranked(function.aot_unpaired, config.numbers(), dpo_geometry())
