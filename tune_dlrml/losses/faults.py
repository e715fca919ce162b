"""Faults of a loss at each point of a box of its fields, from formulas. Imports no torch."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Points = Mapping[str, NDArray[Any]]
"""By searched field, dotted where nested, one value a point of the box."""

LARGEST_EXPONENT = float(np.log(np.finfo(np.float32).max))
"""exp(-z) is infinite below minus this (88.72), in float32 and in bfloat16."""


class Faults(NamedTuple):
    """Where a loss starts uphill, has a trap, a slope without a bound, or is not finite.

    Each array is true where it is so, one value a point, or one for all of them. `overflowing` is of the loss as it was
    published, `nonfinite` of what a search computes. `advice` says what to change, a sentence each.
    """

    uphill: NDArray[Any]
    trapped: NDArray[Any]
    unbounded: NDArray[Any]
    overflowing: NDArray[Any]
    nonfinite: NDArray[Any]
    advice: tuple[str, ...] = ()


def percent(share: float) -> str:
    """A share in whole percent that is 0 % and 100 % only where it is."""
    if 0 < share < 0.005:
        return "under 1 %"
    return "over 99 %" if 0.995 <= share < 1 else f"{share:.0%}".replace("%", " %")
