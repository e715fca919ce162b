"""Geometry of the losses that look at each completion by itself, over z = beta * margin split evenly. No torch."""

import math

from tune_dlrml.losses.shape import Geometry, falling


def nca_pair_geometry() -> Geometry:
    """(3 * softplus(-z / 2) + softplus(z / 2)) / 2: it falls to z = 2 ln 3 and rises beyond."""
    return falling(2 * math.log(2), bounded=True)


def bco_pair_geometry() -> Geometry:
    """2 * softplus(-z / 2), monotone, at a shift of 0."""
    return falling(2 * math.log(2), bounded=True)


def sppo_hard_geometry(beta: float) -> Geometry:
    """(z - 1)^2 / (2 * beta^2), a parabola around z = 1."""
    return falling(1 / (2 * beta**2), bounded=False)


def apo_zero_geometry() -> Geometry:
    """2 * sigmoid(-z / 2), monotone."""
    return falling(1.0, bounded=True)


def apo_down_geometry() -> Geometry:
    """sigmoid(z / 2) + sigmoid(-z): a crest at z = -2.12 with no minimum below it, which therefore traps nothing."""
    return falling(1.0, bounded=True)
