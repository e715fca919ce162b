"""The discovered losses from their configurations."""

from tune_dlrml.losses.discovered import function, geometry
from tune_dlrml.losses.discovered.config import AqflLoss, AqlLoss, CellLoss, DbaqlLoss, PadllLoss, PflLoss
from tune_dlrml.losses.preference import PureLoss


def build_dbaql(config: DbaqlLoss) -> PureLoss:
    """DBAQL as configured."""
    return PureLoss(function.dbaql, config.numbers(), geometry.dbaql_geometry(), statistic=0.0)


def build_aql(config: AqlLoss) -> PureLoss:
    """AQL as configured."""
    numbers = config.numbers()
    tau, quantile, rate = numbers["tau"], numbers["quantile"], numbers["quantile_rate"]
    shape = geometry.aql_geometry(tau, quantile, rate)
    return PureLoss(function.aql, numbers, shape, statistic=geometry.aql_start(quantile, rate))


def build_padll(config: PadllLoss) -> PureLoss:
    """PADLL as configured."""
    numbers = config.numbers()
    return PureLoss(function.padll, numbers, geometry.padll_geometry(numbers["decay"]))


def build_aqfl(config: AqflLoss) -> PureLoss:
    """AQFL as configured."""
    numbers = config.numbers()
    tau, rate, scale = numbers["tau"], numbers["quantile_rate"], numbers["distance_scale"]
    shape = geometry.aqfl_geometry(tau, rate, scale)
    return PureLoss(function.aqfl, numbers, shape, statistic=geometry.aqfl_start(rate))


def build_cell(config: CellLoss) -> PureLoss:
    """CELL as configured."""
    numbers = config.numbers()
    return PureLoss(function.cell, numbers, geometry.cell_geometry(numbers["alpha"]))


def build_pfl(config: PflLoss) -> PureLoss:
    """PFL as configured."""
    numbers = config.numbers()
    return PureLoss(function.pfl, numbers, geometry.pfl_geometry(numbers["focus_scale"]))
