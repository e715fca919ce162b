"""From a loss's configuration to a module that scores preference pairs.

Shape legend: B = preference pairs in the batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

from torch import Tensor, nn

from tune_dlrml.config.domains import Choice, Range
from tune_dlrml.config.losses import AnyLoss, DiscopopLoss, DlrmlLoss, DpoLoss, LearnableBetaMix
from tune_dlrml.losses import functional
from tune_dlrml.losses.geometry import Geometry, dlrml_geometry, dpo_geometry, learned_geometry, shape_number
from tune_dlrml.losses.mixing import LearnableMix

Numerics = Literal["stable", "published"]
PER_PAIR: dict[Numerics, Callable[..., Tensor]] = {
    "stable": functional.dlrml,
    "published": functional.dlrml_published,
}
T = TypeVar("T")


class PairBatch(NamedTuple):
    """What a preference loss may look at, each of shape (B,).

    Log-ratios are log-probabilities of the policy minus those of the reference, summed over the completion, in nats.
    Lengths are in tokens of the completion.
    """

    chosen_logratio_B: Tensor
    rejected_logratio_B: Tensor
    chosen_length_B: Tensor
    rejected_length_B: Tensor

    @property
    def margin_B(self) -> Tensor:
        """Margin of each pair, shape (B,), in nats: log-ratio of the chosen minus that of the rejected."""
        return self.chosen_logratio_B - self.rejected_logratio_B


class PreferenceLoss(nn.Module, ABC):  # type: ignore[misc]  # mypy skips torch, see pyproject.toml
    """A loss per pair: called with a `PairBatch` it returns a tensor of shape (B,), in nats.

    `beta_kl` scales the margin (DPO's beta), per nat. `mix` is the learnable beta_mix, None if nothing is learnt.
    """

    def __init__(self, *, beta_kl: float, mix: LearnableMix | None = None) -> None:
        super().__init__()
        self.beta_kl = beta_kl
        self.mix = mix

    @abstractmethod
    def forward(self, pairs: PairBatch) -> Tensor:
        """Loss of each pair, shape (B,), in nats."""

    @abstractmethod
    def geometry(self) -> Geometry:
        """Shape of the loss over beta_kl * margin; at the present c if beta_mix is learnt."""


class Dpo(PreferenceLoss):
    """`functional.dpo` at a fixed beta."""

    def forward(self, pairs: PairBatch) -> Tensor:
        """Loss of each pair, shape (B,), in nats."""
        return functional.dpo(pairs.margin_B, beta=self.beta_kl)

    def geometry(self) -> Geometry:
        """That of softplus(-z)."""
        return dpo_geometry()


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


def build_dpo(config: DpoLoss) -> PreferenceLoss:
    """DPO as configured."""
    return Dpo(beta_kl=_drawn(config.beta))


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


def _drawn(field: T | Range | Choice | None) -> T:
    """The field's value, which a point of the search space must have set by now."""
    if field is None or isinstance(field, Range | Choice):
        raise ValueError(
            f"A loss is built from one value per field, but got {field!r}. Draw a point of the search space first."
        )
    return field


LOSSES: dict[str, Callable[[Any], PreferenceLoss]] = {
    "dpo": build_dpo,
    "discopop": build_discopop,
    "dlrml": build_dlrml,
}
"""From `config.name` to the builder of that loss."""


def build_loss(config: AnyLoss) -> PreferenceLoss:
    """The loss that `config` describes; every searched field of it must be a number by now."""
    return LOSSES[config.name](config)
