"""The losses that look at each completion by itself from their configurations."""

import torch
from torch import Tensor

from tune_dlrml.losses.anchored import function, geometry
from tune_dlrml.losses.anchored.config import ApoDownLoss, ApoZeroLoss, BcoPairLoss, NcaPairLoss, SppoHardLoss
from tune_dlrml.losses.base import drawn
from tune_dlrml.losses.preference import PairBatch, PureLoss
from tune_dlrml.losses.running import RunningLoss


def build_nca_pair(config: NcaPairLoss) -> PureLoss:
    """NCA as configured."""
    return PureLoss(function.nca_pair, config.numbers(), geometry.nca_pair_geometry())


def build_bco_pair(config: BcoPairLoss) -> PureLoss:
    """BCO as configured."""
    numbers, shape = {"beta": drawn(config.beta)}, geometry.bco_pair_geometry()
    if not drawn(config.shifted):
        return PureLoss(function.bco_pair, numbers, shape)
    return RunningLoss(function.bco_pair, numbers, shape, keyword="shift", of=_log_ratios)


def _log_ratios(pairs: PairBatch) -> Tensor:
    return torch.cat([pairs.chosen_logratio_B, pairs.rejected_logratio_B])


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
