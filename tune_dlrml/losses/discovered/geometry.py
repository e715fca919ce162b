"""Geometry of the discovered losses over z = beta * margin. Imports no torch.

A batch-coupled loss is evaluated at the statistics of the first step, where every margin is 0.
"""

import math
from functools import cache

from tune_dlrml.losses.scalars import sigmoid, softplus
from tune_dlrml.losses.shape import Geometry, falling, geometry_of

LN_2 = math.log(2)


def dbaql_geometry() -> Geometry:
    """Half logistic, half exponential, as at a variance of 0."""
    return falling((LN_2 + 1) / 2, bounded=False)


def padll_geometry(decay: float) -> Geometry:
    """Decay * ln 2 at z = 0, on the upper side of the jump; the slope is negative on both sides."""
    return falling(decay * LN_2, bounded=True)


def cell_geometry(alpha: float) -> Geometry:
    """Alpha * exp(-z) + (1 - alpha) * softplus(-z); it is DPO at alpha = 0."""
    return falling(alpha + (1 - alpha) * LN_2, bounded=alpha == 0)


def pfl_geometry(focus_scale: float) -> Geometry:
    """focus_scale * relu(1 - z) up to z = 0 and softplus(-z) / focus_scale above, for an indifferent reference."""
    return falling(focus_scale, bounded=True)


def aql_start(quantile: float, quantile_rate: float) -> float:
    """Moving quantile of AQL where every margin is 0."""
    return quantile + quantile_rate * (0.5 - quantile)


def aql_value(z: float, *, tau: float, statistic: float) -> float:
    """AQL at z and at a given moving quantile, in nats."""
    u = z / tau - statistic
    return sigmoid(-u) * softplus(-z) + sigmoid(u) * max(1 - z, 0.0)


def aql_slope(z: float, *, tau: float, statistic: float) -> float:
    """Derivative of `aql_value` with respect to z; 0 for the hinge's corner at z = 1."""
    u = z / tau - statistic
    q, hinged = sigmoid(-u), sigmoid(u)
    turning = q * hinged / tau * (max(1 - z, 0.0) - softplus(-z))
    return turning - q * sigmoid(-z) - hinged * (z < 1)


@cache
def aql_geometry(tau: float, quantile: float, quantile_rate: float) -> Geometry:
    """Found numerically: for small tau it starts uphill, between a trap and a barrier."""
    numbers = {"tau": tau, "statistic": aql_start(quantile, quantile_rate)}
    return geometry_of(lambda z: aql_value(z, **numbers), lambda z: aql_slope(z, **numbers), bounded=True)


def aqfl_start(quantile_rate: float) -> float:
    """Adaptive quantile of AQFL where every margin is 0."""
    return quantile_rate / 2


def aqfl_value(z: float, *, tau: float, distance_scale: float, statistic: float) -> float:
    """AQFL at z and at a given adaptive quantile, in nats."""
    distance = distance_scale * abs(z / tau - statistic)
    return sigmoid(distance) * softplus(-z) + sigmoid(-distance) * max(1 - z, 0.0)


def aqfl_slope(z: float, *, tau: float, distance_scale: float, statistic: float) -> float:
    """Derivative of `aqfl_value` with respect to z; at its kink and at the hinge's corner that of the flat side."""
    x = z / tau - statistic
    blend, hinged = sigmoid(distance_scale * abs(x)), sigmoid(-distance_scale * abs(x))
    away = distance_scale / tau * ((x > 0) - (x < 0))
    turning = away * blend * hinged * (softplus(-z) - max(1 - z, 0.0))
    return turning - blend * sigmoid(-z) - hinged * (z < 1)


@cache
def aqfl_geometry(tau: float, quantile_rate: float, distance_scale: float) -> Geometry:
    """Found numerically: monotone at the published constants."""
    numbers = {"tau": tau, "distance_scale": distance_scale, "statistic": aqfl_start(quantile_rate)}
    return geometry_of(lambda z: aqfl_value(z, **numbers), lambda z: aqfl_slope(z, **numbers), bounded=True)
