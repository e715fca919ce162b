"""The losses that look at each completion by itself from their configurations."""

from tune_dlrml.losses.anchored import function, geometry
from tune_dlrml.losses.anchored.config import ApoDownLoss, ApoZeroLoss, NcaPairLoss, SppoHardLoss
from tune_dlrml.losses.preference import PureLoss


def build_nca_pair(config: NcaPairLoss) -> PureLoss:
    """NCA as configured."""
    return PureLoss(function.nca_pair, config.numbers(), geometry.nca_pair_geometry())


def build_sppo_hard(config: SppoHardLoss) -> PureLoss:
    """SPPO as configured."""
    numbers = config.numbers()
    return PureLoss(function.sppo_hard, numbers, geometry.sppo_hard_geometry(numbers["beta"]))


def build_apo_zero(config: ApoZeroLoss) -> PureLoss:
    """APO-zero as configured."""
    return PureLoss(function.apo_zero, config.numbers(), geometry.apo_zero_geometry())


def build_apo_down(config: ApoDownLoss) -> PureLoss:
    """APO-down as configured."""
    return PureLoss(function.apo_down, config.numbers(), geometry.apo_down_geometry())
