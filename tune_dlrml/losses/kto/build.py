"""KTO from its configuration."""

from tune_dlrml.losses.kto import function, geometry
from tune_dlrml.losses.kto.config import KtoLoss
from tune_dlrml.losses.preference import PureLoss


def build_kto(config: KtoLoss) -> PureLoss:
    """KTO as configured; of a batch in which every margin is 0, both KL are 0."""
    numbers = config.numbers()
    shape = geometry.kto_geometry(numbers["desirable_weight"], numbers["undesirable_weight"])
    return PureLoss(function.kto, numbers, shape, statistic=(0.0, 0.0))
