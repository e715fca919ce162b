"""DPO, the hinge and IPO from their configurations."""

from tune_dlrml.losses.dpo import function, geometry
from tune_dlrml.losses.dpo.config import DpoLoss, HingeLoss, IpoLoss
from tune_dlrml.losses.preference import PureLoss


def build_dpo(config: DpoLoss) -> PureLoss:
    """DPO as configured."""
    return PureLoss(function.dpo, config.numbers(), geometry.dpo_geometry())


def build_hinge(config: HingeLoss) -> PureLoss:
    """The hinge loss as configured."""
    return PureLoss(function.hinge, config.numbers(), geometry.hinge_geometry())


def build_ipo(config: IpoLoss) -> PureLoss:
    """IPO as configured."""
    numbers = config.numbers()
    return PureLoss(function.ipo, numbers, geometry.ipo_geometry(numbers["beta"]))
