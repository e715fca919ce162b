"""DPO and its next of kin from their configurations."""

from tune_dlrml.losses.base import drawn
from tune_dlrml.losses.dpo import function, geometry
from tune_dlrml.losses.dpo.config import (
    BetaDpoLoss,
    CdpoLoss,
    DpoLoss,
    DpopLoss,
    ExoPairLoss,
    HingeLoss,
    IpoLoss,
    RDpoLoss,
    RobustLoss,
    SigmoidNormLoss,
)
from tune_dlrml.losses.preference import PureLoss
from tune_dlrml.losses.running import RunningLoss


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


def build_cdpo(config: CdpoLoss) -> PureLoss:
    """Conservative DPO as configured."""
    return PureLoss(function.cdpo, config.numbers(), geometry.dpo_geometry())


def build_robust(config: RobustLoss) -> PureLoss:
    """Robust DPO as configured."""
    return PureLoss(function.robust, config.numbers(), geometry.dpo_geometry())


def build_exo_pair(config: ExoPairLoss) -> PureLoss:
    """EXO as configured."""
    numbers = config.numbers()
    return PureLoss(function.exo_pair, numbers, geometry.exo_pair_geometry(numbers["label_smoothing"]))


def build_beta_dpo(config: BetaDpoLoss) -> PureLoss:
    """Beta-DPO as configured."""
    numbers = {"beta": drawn(config.beta), "alpha": drawn(config.alpha)}
    return RunningLoss(
        function.beta_dpo,
        numbers,
        geometry.dpo_geometry(),
        keyword="threshold",
        of=lambda pairs: pairs.margin_B,
        momentum=drawn(config.momentum),
        statistic=0.0,
    )


def build_sigmoid_norm(config: SigmoidNormLoss) -> PureLoss:
    """Length-normalized DPO as configured."""
    return PureLoss(function.sigmoid_norm, config.numbers(), geometry.dpo_geometry())


def build_r_dpo(config: RDpoLoss) -> PureLoss:
    """Length-regularized DPO as configured."""
    return PureLoss(function.r_dpo, config.numbers(), geometry.dpo_geometry())


def build_dpop(config: DpopLoss) -> PureLoss:
    """DPO-positive as configured."""
    return PureLoss(function.dpop, config.numbers(), geometry.dpo_geometry())
