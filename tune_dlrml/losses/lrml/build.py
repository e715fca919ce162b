"""DiscoPOP and dLRML from their configurations."""

from collections.abc import Callable

from torch import Tensor

from tune_dlrml.losses.base import drawn
from tune_dlrml.losses.lrml import function
from tune_dlrml.losses.lrml.config import DiscopopLoss, DlrmlLoss, LearnableBetaMix, Numerics
from tune_dlrml.losses.lrml.geometry import dlrml_geometry, learned_geometry, shape_number
from tune_dlrml.losses.lrml.mixing import LearnableMix
from tune_dlrml.losses.preference import PureLoss
from tune_dlrml.losses.shape import Geometry

DLRML: dict[Numerics, Callable[..., Tensor]] = {"stable": function.dlrml, "published": function.dlrml_published}
DISCOPOP: dict[Numerics, Callable[..., Tensor]] = {
    "stable": function.discopop,
    "published": function.discopop_published,
}


class Mixed(PureLoss):
    """A mixed loss of a fixed shape number."""

    def reported(self) -> dict[str, float]:
        """The c and beta_mix that it has throughout."""
        shape = self.reverse_kl_geometry()
        assert shape is not None and shape.c is not None
        c = shape.c
        return {"c": c, "beta_mix": c * self.numbers["tau"] * self.beta_kl}


class LearnableDlrml(PureLoss):
    """dLRML at the beta_mix that `mix` holds at present."""

    mix: LearnableMix

    def reverse_kl_geometry(self) -> Geometry:
        """That of dLRML at the present c."""
        return learned_geometry(self.mix.c().item())


def build_discopop(config: DiscopopLoss) -> PureLoss:
    """DiscoPOP as configured: dLRML with one beta in both places."""
    beta, tau = drawn(config.beta), drawn(config.tau)
    shape = dlrml_geometry(shape_number(beta_kl=beta, beta_mix=beta, tau=tau))
    return Mixed(DISCOPOP[drawn(config.numerics)], {"beta": beta, "tau": tau}, shape)


def build_dlrml(config: DlrmlLoss) -> PureLoss:
    """The decoupled loss as configured: by its shape number c, a fixed beta_mix or a learnable one."""
    beta_kl, tau = drawn(config.beta_kl), drawn(config.tau)
    per_pair = DLRML[drawn(config.numerics)]
    if isinstance(config.beta_mix, LearnableBetaMix):
        mix = _build_mix(config.beta_mix, beta_kl=beta_kl, tau=tau)
        return LearnableDlrml(per_pair, {"beta_kl": beta_kl, "tau": tau}, learned_geometry(mix.c().item()), mix=mix)
    beta_mix = drawn(config.c) * (tau * beta_kl) if config.beta_mix is None else drawn(config.beta_mix)
    numbers = {"beta_kl": beta_kl, "beta_mix": beta_mix, "tau": tau}
    return Mixed(per_pair, numbers, dlrml_geometry(shape_number(**numbers)))


def _build_mix(config: LearnableBetaMix, *, beta_kl: float, tau: float) -> LearnableMix:
    if config.init is None:
        c_init = drawn(config.c_init)
    else:
        c_init = shape_number(beta_kl=beta_kl, beta_mix=drawn(config.init), tau=tau)
    return LearnableMix(beta_kl=beta_kl, tau=tau, c_init=c_init, c_bounds=config.c_bounds)
