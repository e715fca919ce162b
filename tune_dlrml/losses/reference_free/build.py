"""The losses without a reference from their configurations; none has a geometry, see `ReferenceFreeLoss`."""

from tune_dlrml.losses.preference import PureLoss
from tune_dlrml.losses.reference_free import function
from tune_dlrml.losses.reference_free.config import (
    AlphapoLoss,
    CpoLoss,
    OrpoLoss,
    SimperLoss,
    SimpoLoss,
    SlicLoss,
)


def build_simpo(config: SimpoLoss) -> PureLoss:
    """SimPO as configured."""
    return PureLoss(function.simpo, config.numbers(), None)


def build_cpo(config: CpoLoss) -> PureLoss:
    """CPO as configured."""
    return PureLoss(function.cpo, config.numbers(), None)


def build_orpo(config: OrpoLoss) -> PureLoss:
    """ORPO as configured."""
    return PureLoss(function.orpo, config.numbers(), None)


def build_slic(config: SlicLoss) -> PureLoss:
    """SLiC as configured."""
    return PureLoss(function.slic, config.numbers(), None)


def build_alphapo(config: AlphapoLoss) -> PureLoss:
    """AlphaPO as configured."""
    return PureLoss(function.alphapo, config.numbers(), None)


def build_simper(config: SimperLoss) -> PureLoss:
    """SimPER, which has nothing to configure."""
    return PureLoss(function.simper, config.numbers(), None)
