"""From a loss's configuration to a module that scores preference pairs.

Shape legend: B = preference pairs in the batch.
"""

from collections.abc import Callable
from typing import Any, Literal, TypeVar

from torch import Tensor

from tune_dlrml.config import losses as configured
from tune_dlrml.config.domains import Choice, Range
from tune_dlrml.config.losses import AnyLoss, DiscopopLoss, DlrmlLoss, LearnableBetaMix, Loss
from tune_dlrml.losses import discovered, functional
from tune_dlrml.losses import discovered_geometry as shapes
from tune_dlrml.losses.custom import build_custom
from tune_dlrml.losses.geometry import Geometry, dlrml_geometry, dpo_geometry, learned_geometry, shape_number
from tune_dlrml.losses.mixing import LearnableMix
from tune_dlrml.losses.preference import BatchCoupledMarginLoss, MarginLoss, PairBatch, PreferenceLoss

__all__ = [
    "LOSSES",
    "PER_PAIR",
    "Dlrml",
    "Dpo",
    "LearnableDlrml",
    "Numerics",
    "PairBatch",
    "PreferenceLoss",
    "build_loss",
]

Numerics = Literal["stable", "published"]
PER_PAIR: dict[Numerics, Callable[..., Tensor]] = {
    "stable": functional.dlrml,
    "published": functional.dlrml_published,
}
T = TypeVar("T")


class Dpo(MarginLoss):
    """`functional.dpo` at a fixed beta."""

    def __init__(self, *, beta_kl: float) -> None:
        super().__init__(functional.dpo, {"beta": beta_kl}, dpo_geometry())


class Ipo(PreferenceLoss):
    """`functional.ipo` at a fixed beta."""

    def __init__(self, *, beta: float, length_normalized: bool) -> None:
        super().__init__(beta_kl=beta)
        self.length_normalized = length_normalized

    def forward(self, pairs: PairBatch) -> Tensor:
        """Loss of each pair, shape (B,), in squared nats."""
        return functional.ipo(*pairs[:4], beta=self.beta_kl, length_normalized=self.length_normalized)

    def geometry(self) -> Geometry:
        """That of a parabola."""
        return shapes.ipo_geometry(self.beta_kl)


class Kto(PreferenceLoss):
    """`functional.kto` at fixed weights."""

    batch_coupled = True

    def __init__(self, *, beta: float, desirable_weight: float, undesirable_weight: float, kl_gradient: bool) -> None:
        super().__init__(beta_kl=beta)
        self.weights = {"desirable_weight": desirable_weight, "undesirable_weight": undesirable_weight}
        self.kl_gradient = kl_gradient

    def forward(self, pairs: PairBatch) -> Tensor:
        """Loss of each pair, shape (B,), without unit."""
        ratios = pairs.chosen_logratio_B, pairs.rejected_logratio_B
        return functional.kto(*ratios, beta=self.beta_kl, kl_gradient=self.kl_gradient, **self.weights)

    def at_start(self, pairs: PairBatch) -> Tensor:
        """Loss of each pair where both KL are 0, shape (B,), without unit."""
        ratios = pairs.chosen_logratio_B, pairs.rejected_logratio_B
        return functional.kto_at(*ratios, 0.0, 0.0, beta=self.beta_kl, **self.weights)

    def geometry(self) -> Geometry:
        """That of a sigmoid of half the margin."""
        return shapes.kto_geometry(**self.weights)


class Pfl(PreferenceLoss):
    """`discovered.pfl` at fixed numbers."""

    def __init__(self, *, beta: float, focus_scale: float) -> None:
        super().__init__(beta_kl=beta)
        self.focus_scale = focus_scale

    def forward(self, pairs: PairBatch) -> Tensor:
        """Loss of each pair, shape (B,), in nats."""
        reference_margin_B = 0.0 if pairs.reference_margin_B is None else pairs.reference_margin_B
        return discovered.pfl(pairs.margin_B, reference_margin_B, beta=self.beta_kl, focus_scale=self.focus_scale)

    def geometry(self) -> Geometry:
        """That under an indifferent reference."""
        return shapes.pfl_geometry(self.focus_scale)


class Dlrml(PreferenceLoss):
    """`functional.dlrml`, or its published form, at a fixed beta_mix. DiscoPOP is the case beta_mix = beta_kl."""

    def __init__(self, *, beta_kl: float, beta_mix: float, tau: float, numerics: Numerics) -> None:
        super().__init__(beta_kl=beta_kl)
        self.beta_mix = beta_mix
        self.tau = tau
        self.per_pair = PER_PAIR[numerics]

    def forward(self, pairs: PairBatch) -> Tensor:
        """Loss of each pair, shape (B,), in nats."""
        return self.per_pair(pairs.margin_B, beta_kl=self.beta_kl, beta_mix=self.beta_mix, tau=self.tau)

    def geometry(self) -> Geometry:
        """That of dLRML at its one c."""
        return dlrml_geometry(shape_number(beta_kl=self.beta_kl, beta_mix=self.beta_mix, tau=self.tau))


class LearnableDlrml(PreferenceLoss):
    """`functional.dlrml`, or its published form, at the beta_mix that `mix` holds at present."""

    mix: LearnableMix

    def __init__(self, *, beta_kl: float, mix: LearnableMix, tau: float, numerics: Numerics) -> None:
        super().__init__(beta_kl=beta_kl, mix=mix)
        self.tau = tau
        self.per_pair = PER_PAIR[numerics]

    def forward(self, pairs: PairBatch) -> Tensor:
        """Loss of each pair, shape (B,), in nats, differentiable in `mix.theta` too."""
        return self.per_pair(pairs.margin_B, beta_kl=self.beta_kl, beta_mix=self.mix.beta_mix(), tau=self.tau)

    def geometry(self) -> Geometry:
        """That of dLRML at the present c."""
        return learned_geometry(self.mix.c().item())


def build_dpo(config: configured.DpoLoss) -> PreferenceLoss:
    """DPO as configured."""
    return Dpo(beta_kl=_drawn(config.beta))


def build_hinge(config: configured.HingeLoss) -> PreferenceLoss:
    """The hinge loss as configured."""
    return MarginLoss(functional.hinge, _numbers(config), shapes.hinge_geometry())


def build_ipo(config: configured.IpoLoss) -> PreferenceLoss:
    """IPO as configured."""
    return Ipo(**_numbers(config))


def build_kto(config: configured.KtoLoss) -> PreferenceLoss:
    """KTO as configured."""
    return Kto(**_numbers(config))


def build_dbaql(config: configured.DbaqlLoss) -> PreferenceLoss:
    """DBAQL as configured."""
    return BatchCoupledMarginLoss(discovered.dbaql, _numbers(config), shapes.dbaql_geometry(), statistic=0.0)


def build_aql(config: configured.AqlLoss) -> PreferenceLoss:
    """AQL as configured."""
    numbers = _numbers(config)
    tau, quantile, rate = numbers["tau"], numbers["quantile"], numbers["quantile_rate"]
    shape = shapes.aql_geometry(tau, quantile, rate)
    return BatchCoupledMarginLoss(discovered.aql, numbers, shape, statistic=shapes.aql_start(quantile, rate))


def build_padll(config: configured.PadllLoss) -> PreferenceLoss:
    """PADLL as configured."""
    return MarginLoss(discovered.padll, _numbers(config), shapes.padll_geometry(_drawn(config.decay)))


def build_aqfl(config: configured.AqflLoss) -> PreferenceLoss:
    """AQFL as configured."""
    numbers = _numbers(config)
    tau, rate, scale = numbers["tau"], numbers["quantile_rate"], numbers["distance_scale"]
    shape = shapes.aqfl_geometry(tau, rate, scale)
    return BatchCoupledMarginLoss(discovered.aqfl, numbers, shape, statistic=shapes.aqfl_start(rate))


def build_cell(config: configured.CellLoss) -> PreferenceLoss:
    """CELL as configured."""
    return MarginLoss(discovered.cell, _numbers(config), shapes.cell_geometry(_drawn(config.alpha)))


def build_pfl(config: configured.PflLoss) -> PreferenceLoss:
    """PFL as configured."""
    return Pfl(**_numbers(config))


def build_discopop(config: DiscopopLoss) -> PreferenceLoss:
    """DiscoPOP as configured: dLRML with one beta in both places."""
    beta = _drawn(config.beta)
    return Dlrml(beta_kl=beta, beta_mix=beta, tau=_drawn(config.tau), numerics=_drawn(config.numerics))


def build_dlrml(config: DlrmlLoss) -> PreferenceLoss:
    """The decoupled loss as configured: by its shape number c, a fixed beta_mix or a learnable one."""
    beta_kl, tau = _drawn(config.beta_kl), _drawn(config.tau)
    numerics: Numerics = _drawn(config.numerics)
    if isinstance(config.beta_mix, LearnableBetaMix):
        mix = _build_mix(config.beta_mix, beta_kl=beta_kl, tau=tau)
        return LearnableDlrml(beta_kl=beta_kl, mix=mix, tau=tau, numerics=numerics)
    beta_mix = _drawn(config.c) * (tau * beta_kl) if config.beta_mix is None else _drawn(config.beta_mix)
    return Dlrml(beta_kl=beta_kl, beta_mix=beta_mix, tau=tau, numerics=numerics)


def _build_mix(config: LearnableBetaMix, *, beta_kl: float, tau: float) -> LearnableMix:
    if config.init is None:
        c_init = _drawn(config.c_init)
    else:
        c_init = shape_number(beta_kl=beta_kl, beta_mix=_drawn(config.init), tau=tau)
    return LearnableMix(beta_kl=beta_kl, tau=tau, c_init=c_init, c_bounds=config.c_bounds)


def _numbers(config: Loss) -> dict[str, Any]:
    """The loss's own fields, each one value by now."""
    own = type(config).model_fields.keys() - set(configured.SHARED_FIELDS)
    return {name: _drawn(getattr(config, name)) for name in sorted(own)}


def _drawn(field: T | Range | Choice | None) -> T:
    """The field's value, which a point of the search space must have set by now."""
    if field is None or isinstance(field, Range | Choice):
        raise ValueError(
            f"A loss is built from one value per field, but got {field!r}. Draw a point of the search space first."
        )
    return field


LOSSES: dict[str, Callable[[Any], PreferenceLoss]] = {
    "dpo": build_dpo,
    "hinge": build_hinge,
    "ipo": build_ipo,
    "kto": build_kto,
    "discopop": build_discopop,
    "dbaql": build_dbaql,
    "aql": build_aql,
    "padll": build_padll,
    "aqfl": build_aqfl,
    "cell": build_cell,
    "pfl": build_pfl,
    "dlrml": build_dlrml,
    "custom": build_custom,
}
"""From `config.name` to the builder of that loss."""


def build_loss(config: AnyLoss) -> PreferenceLoss:
    """The loss that `config` describes; every searched field of it must be a number by now."""
    return LOSSES[config.name](config)
