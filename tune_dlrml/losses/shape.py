"""The geometry of a loss over z = beta * margin, and how it is found from value and slope. Imports no torch."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from scipy.optimize import brentq

Curve = Callable[[float], float]

REACH = 1e3
"""Largest |z| (no unit) that is looked at: 10,000 nats at beta = 0.1."""

_RATIO, _CLOSEST = 1.02, 1e-6
_POSITIVE = [_CLOSEST * _RATIO**step for step in range(math.ceil(math.log(REACH / _CLOSEST, _RATIO)))] + [REACH]
_LINEAR = [step / 50 for step in range(-500, 501)]
GRID = sorted({*(-z for z in _POSITIVE), *_POSITIVE, *_LINEAR})
"""Points between which a change of sign is sought: 2 % apart on either side of 0, and 0.02 apart within 10 of it."""

_FAR = [REACH * 2**step for step in range(4)]
_GROWTH = 1.5


@dataclass(frozen=True)
class Stationary:
    """A point z (no unit) where the slope of the loss vanishes, and the loss there in nats."""

    z: float
    value: float

    def margin(self, beta_kl: float) -> float:
        """Margin in nats, z / beta_kl."""
        return self.z / beta_kl


@dataclass(frozen=True)
class Geometry:
    """Shape of a preference loss over z = beta_kl * margin.

    `c` is None for a loss without mixing. `starts` is 'right' if descent from margin 0 first raises the margin,
    and 'wrong' if it lowers it. `trap` is the local minimum and `barrier` the local maximum above it; both are
    None for a monotone loss. `bounded` means that the slope |dL/dz| is bounded. `value_at_zero` is in nats.
    """

    c: float | None
    starts: Literal["right", "wrong"]
    trap: Stationary | None
    barrier: Stationary | None
    bounded: bool
    value_at_zero: float

    def trap_margin(self, beta_kl: float) -> float | None:
        """Margin of the trap in nats, None for a monotone loss."""
        return None if self.trap is None else self.trap.margin(beta_kl)

    def barrier_margin(self, beta_kl: float) -> float | None:
        """Margin of the barrier in nats, None for a monotone loss."""
        return None if self.barrier is None else self.barrier.margin(beta_kl)


def falling(value_at_zero: float, *, bounded: bool) -> Geometry:
    """Geometry of a loss whose slope is nowhere positive on the left of its only minimum, if it has one."""
    return Geometry(c=None, starts="right", trap=None, barrier=None, bounded=bounded, value_at_zero=value_at_zero)


def geometry_of(value: Curve, slope: Curve, *, bounded: bool | None = None) -> Geometry:
    """Geometry of a loss given as value (nats) and slope dL/dz over z = beta * margin.

    The trap is a local minimum with a local maximum, the barrier, above it at larger z. Where there are several such
    pairs, the barrier with the largest z counts, and the minimum next below it. A slope that changes its sign twice
    between two points of `GRID` counts as keeping it. A kink at which it changes its sign is a stationary point too; a
    jump of the value is not, since no gradient shows it. Where the slope is 0 over an interval, as right of a hinge, it
    counts as continuing in its previous direction.

    Args:
        value: The loss in nats.
        slope: Its derivative with respect to z; where it is not finite, it is not looked at.
        bounded: Whether |slope| has a finite supremum; None judges that by how it grows between |z| = 1000 and 8000.
    """
    trap, barrier = _trap_and_barrier(value, slope)
    return Geometry(
        c=None,
        starts="wrong" if slope(0.0) > 0 else "right",
        trap=trap,
        barrier=barrier,
        bounded=_looks_bounded(slope) if bounded is None else bounded,
        value_at_zero=value(0.0),
    )


def _trap_and_barrier(value: Curve, slope: Curve) -> tuple[Stationary | None, Stationary | None]:
    slopes = [(z, slope(z)) for z in GRID]
    moving = [(z, rise) for z, rise in slopes if math.isfinite(rise) and rise != 0]
    minimum = trap = barrier = None
    for (low, before), (high, after) in pairwise(moving):
        if before < 0 < after:
            minimum = (low, high)
        elif before > 0 > after and minimum is not None:
            trap, barrier = minimum, (low, high)
    if trap is None or barrier is None:
        return None, None
    at_trap, at_barrier = (brentq(slope, *bracket, xtol=1e-14) for bracket in (trap, barrier))
    return Stationary(z=at_trap, value=value(at_trap)), Stationary(z=at_barrier, value=value(at_barrier))


def _looks_bounded(slope: Curve) -> bool:
    within = max(abs(slope(sign * z)) for z in (REACH / 2, REACH) for sign in (-1, 1))
    beyond = max(abs(slope(sign * z)) for z in _FAR for sign in (-1, 1))
    return math.isfinite(beyond) and beyond <= max(_GROWTH * within, 1e-9)
