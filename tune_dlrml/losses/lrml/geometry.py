"""The dLRML loss as a curve: where it starts, where it traps, where it is safe. Imports no torch.

With z = beta_kl * margin and c = beta_mix / (tau * beta_kl) the loss of a pair, in nats, is

    L(z; c) = (1 - m) * softplus(-z) + m * exp(-z),    m = sigmoid(c * z).

Both z and c are without unit. DiscoPOP (arXiv 2406.08414, equation 5) is the case c = 1 / tau.
"""

import math
import sys

from scipy.optimize import brentq

from tune_dlrml.losses.scalars import sigmoid, softplus
from tune_dlrml.losses.shape import Geometry, Stationary

WRONG_START_C = 3 / (1 - math.log(2))
"""Above this c (9.777) the slope at margin 0 is positive: the first step of training lowers the margin."""

MONOTONE_C = 9.109095508344465
"""Largest c for which L falls monotonically in z.

Together with z = -0.0610375181807 it solves dL/dz = 0 and d2L/dz2 = 0, where trap and barrier merge; found with
Newton's method on that pair of equations in 40 digits, then rounded to the nearest double.
"""

SAFE_BAND = (1.0, MONOTONE_C)
"""Closed interval of c with bounded slope and monotone loss."""

# c * z at the point where trap and barrier merge at c = MONOTONE_C. At this fixed c * z < 0 the slope rises with c,
# so z = _MERGED_U / c lies between trap and barrier for every larger c.
_MERGED_U = -0.5559965827006184
_LARGEST_EXPONENT = math.log(sys.float_info.max)


def shape_number(*, beta_kl: float, beta_mix: float, tau: float) -> float:
    """The one number on which the shape of the loss depends: c = beta_mix / (tau * beta_kl).

    beta_kl and beta_mix are per nat of margin, tau and c without unit; all are positive.
    """
    return beta_mix / (tau * beta_kl)


def dlrml_value(z: float, c: float) -> float:
    """L(z; c) in nats; inf where the true value exceeds the largest double, which needs c < 1."""
    return sigmoid(-c * z) * softplus(-z) + _modulated_exp(z, c)


def dlrml_slope(z: float, c: float) -> float:
    """dL/dz at (z, c); -inf where its true value lies beyond the largest double, which needs c < 1.

    m e^-z (c (1 - m) - 1) - (1 - m) (c m softplus(-z) + sigmoid(-z)).
    """
    mixed, unmixed = sigmoid(c * z), sigmoid(-c * z)
    exponential = _modulated_exp(z, c) * (c * unmixed - 1)
    return exponential - unmixed * (c * mixed * softplus(-z) + sigmoid(-z))


def dlrml_geometry(c: float) -> Geometry:
    """Geometry of dLRML at a configured shape number c > 0.

    Raises:
        ValueError: if c is not a positive finite number.
    """
    if not 0 < c < math.inf:
        raise ValueError(
            f"`0 < c < inf` must hold for c = beta_mix / (tau * beta_kl), but got c={c}. "
            f"Choose c in the safe band [{SAFE_BAND[0]:g}, {SAFE_BAND[1]:.4g}]."
        )
    return learned_geometry(c)


def learned_geometry(c: float) -> Geometry:
    """Geometry of dLRML at a shape number that training has reached: any finite c.

    A beta_mix learnt without bounds may pass through zero. For c <= 0 every term of the slope is negative, so the
    loss is monotone, but it grows like exp(-z).

    Raises:
        ValueError: if c is not finite.
    """
    if not math.isfinite(c):
        raise ValueError(
            f"A learnt shape number c must be finite, but got c={c}. "
            "Lower the learning rate of beta_mix or set c_bounds."
        )
    trap, barrier = _stationary_points(c) if c > MONOTONE_C else (None, None)
    return Geometry(
        c=c,
        starts="wrong" if c > WRONG_START_C else "right",
        trap=trap,
        barrier=barrier,
        bounded=c >= 1,
        value_at_zero=dlrml_value(0.0, c),
    )


def _stationary_points(c: float) -> tuple[Stationary, Stationary]:
    """Trap and barrier for c > MONOTONE_C.

    Solved in u = c * z, which stays of order ln c while z shrinks like 1 / c. At |u| = 2 + 2 ln c the slope is
    negative on either side, because there c * m * (1 - m) < e^-2 / c.
    """

    def slope_at(u: float) -> float:
        return dlrml_slope(u / c, c)

    reach = 2 + 2 * math.log(c)
    if slope_at(_MERGED_U) > 0:
        trap_u = brentq(slope_at, -reach, _MERGED_U, xtol=1e-14)
        barrier_u = brentq(slope_at, _MERGED_U, reach, xtol=1e-14)
    else:
        # Within rounding of MONOTONE_C the positive slope between the two points is below the last digit.
        trap_u = barrier_u = _MERGED_U
    trap, barrier = (Stationary(z=u / c, value=dlrml_value(u / c, c)) for u in (trap_u, barrier_u))
    return trap, barrier


def _modulated_exp(z: float, c: float) -> float:
    """sigmoid(c z) * exp(-z) with one exponential; the product form is 0 * inf for large negative z."""
    u = c * z
    exponent = (c - 1) * z - softplus(u) if u < 0 else -z - softplus(-u)
    return math.exp(exponent) if exponent < _LARGEST_EXPONENT else math.inf
