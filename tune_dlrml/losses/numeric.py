"""The geometry of a loss found from its values, for those that no formula tells."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from tune_dlrml.losses.shape import GRID, Geometry, geometry_of

if TYPE_CHECKING:
    from tune_dlrml.losses.preference import PreferenceLoss

FURTHEST = 13
"""A slope is followed over |z| = 1, 2, 4 ... 2^12 to judge whether it is bounded."""
GROWTH = 1.5
"""Factor by which a bounded slope may still grow over the last fourfold of |z|."""


def numeric_geometry(loss: "PreferenceLoss") -> Geometry:
    """Geometry by the curve of a loss, in float64."""
    known: dict[float, tuple[float, float]] = {}

    def look(zs: list[float]) -> None:
        values, slopes = loss.curve(torch.tensor(zs, dtype=torch.float64))
        known.update(zip(zs, zip(values.tolist(), slopes.tolist(), strict=True), strict=True))

    def at(z: float) -> tuple[float, float]:
        if z not in known:
            look([z])
        return known[z]

    look([*dict.fromkeys([0.0, *GRID])])
    slope = lambda z: at(z)[1]  # noqa: E731
    return geometry_of(lambda z: at(z)[0], slope, bounded=not any(unbounded_sides(slope)))


def unbounded_sides(slope: Callable[[float], float]) -> tuple[bool, bool]:
    """Whether |dL/dz| grows without bound as z falls and as it rises, judged by how it grows where it is a number."""

    def grows(sign: int) -> bool:
        sizes = []
        for power in range(FURTHEST):
            size = abs(slope(sign * 2.0**power))
            if math.isnan(size):
                break
            if math.isinf(size):
                return True
            sizes.append(size)
        return len(sizes) > 2 and sizes[-1] > GROWTH * max(*sizes[:-2], 1e-9)

    return grows(-1), grows(+1)
