"""The learnable beta_mix."""

import math

import torch
from torch import Tensor, nn

from tune_dlrml.losses.learnt import Learnt

CLOSEST_TO_BOUND = 1e-6
"""Smallest distance of a start from either bound, as a fraction of the interval: nearer, float32 cannot resolve it."""


class LearnableMix(Learnt):
    """A beta_mix that is trained beside the policy, as one scalar float32 parameter `theta`.

    With `c_bounds = (low, high)`: c = low + (high - low) * sigmoid(theta), so that no step leaves the bounds. With
    `c_bounds = None`: theta is beta_mix itself, as published, and free to wander. In both cases
    beta_mix = c * tau * beta_kl, per nat of margin; c and tau have no unit.

    Why it is bounded by default: dL/dbeta_mix has the sign of the margin, so descent lowers beta_mix without end on
    pairs that are ranked right and raises it on pairs that are ranked wrong.

    Raises:
        ValueError: if `c_init` does not lie strictly inside `c_bounds`.
    """

    def __init__(self, *, beta_kl: float, tau: float, c_init: float, c_bounds: tuple[float, float] | None) -> None:
        super().__init__("beta_mix", beta_kl=beta_kl, tau=tau, c_init=c_init, c_bounds=c_bounds)
        self.beta_mix_per_c = tau * beta_kl
        self.c_bounds = c_bounds
        start = c_init * self.beta_mix_per_c if c_bounds is None else _theta_of(c_init, *c_bounds)
        self.theta = nn.Parameter(torch.tensor(start, dtype=torch.float32))

    def c(self) -> Tensor:
        """Present shape number, shape (), differentiable."""
        if self.c_bounds is None:
            return self.theta / self.beta_mix_per_c
        low, high = self.c_bounds
        return low + (high - low) * torch.sigmoid(self.theta)

    def value(self) -> Tensor:
        """Present beta_mix per nat of margin, shape (), differentiable."""
        return self.theta if self.c_bounds is None else self.c() * self.beta_mix_per_c

    def reported(self) -> dict[str, float]:
        """The present c and beta_mix; empty when they are not finite."""
        c = self.c().item()
        return {"c": c, "beta_mix": c * self.arguments["tau"] * self.arguments["beta_kl"]} if math.isfinite(c) else {}


def _theta_of(c: float, low: float, high: float) -> float:
    """The theta at which low + (high - low) * sigmoid(theta) = c."""
    closest = CLOSEST_TO_BOUND * (high - low)
    if not low + closest <= c <= high - closest:
        raise ValueError(
            f"`low < c_init < high` must hold, at least {CLOSEST_TO_BOUND:g} of the interval away from either end, "
            f"but got c_init={c} with c_bounds=({low}, {high}). Start further inside or widen c_bounds."
        )
    return math.log((c - low) / (high - c))
