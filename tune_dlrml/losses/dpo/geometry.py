"""Geometry of DPO and its next of kin over z = beta * margin. Imports no torch."""

import math

from tune_dlrml.losses.scalars import sigmoid, softplus
from tune_dlrml.losses.shape import Geometry, falling


def dpo_geometry() -> Geometry:
    """Geometry of DPO, softplus(-z): monotone, slope within [-1, 0], ln 2 at margin 0 (arXiv 2305.18290).

    Also of cDPO and robust DPO, which share its value and its direction at 0; of DPO per token, over z per token; of
    DPO with lengths, for completions of one length; and of DPO-positive, steeper on the left for a margin split evenly.
    """
    return falling(math.log(2), bounded=True)


def dpo_value(z: float) -> float:
    """DPO at z, in nats."""
    return softplus(-z)


def dpo_slope(z: float) -> float:
    """Derivative of `dpo_value` with respect to z."""
    return -sigmoid(-z)


def exo_pair_geometry(label_smoothing: float) -> Geometry:
    """The KL of two even chances to (1 - e, e) at z = 0; its slope vanishes on both sides."""
    return falling(-math.log(2) - math.log(label_smoothing * (1 - label_smoothing)) / 2, bounded=True)


def hinge_geometry() -> Geometry:
    """relu(1 - z): 1 at z = 0, flat from z = 1 on."""
    return falling(1.0, bounded=True)


def ipo_geometry(beta: float) -> Geometry:
    """((z - 1/2) / beta)^2, a parabola around z = 1/2; with lengths, z is beta times the margin per token."""
    return falling(1 / (4 * beta**2), bounded=False)
