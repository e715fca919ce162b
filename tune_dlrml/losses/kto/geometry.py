"""Geometry of KTO over z = beta * margin, at the statistics of the first step. Imports no torch."""

from tune_dlrml.losses.shape import Geometry, falling


def kto_geometry(desirable_weight: float, undesirable_weight: float) -> Geometry:
    """(desirable_weight + undesirable_weight) / 2 * sigmoid(-z / 2), for a margin split evenly and both KL 0."""
    return falling((desirable_weight + undesirable_weight) / 4, bounded=True)
