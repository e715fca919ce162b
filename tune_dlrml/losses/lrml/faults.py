"""Where DiscoPOP and dLRML start uphill, trap or overflow, by their c and by where exp(-z) does. Imports no torch.

`geometry.py` explains these faults.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tune_dlrml.losses.faults import LARGEST_EXPONENT, Faults, percent
from tune_dlrml.losses.lrml.geometry import MONOTONE_C, SAFE_BAND, WRONG_START_C


def mixing_faults(c: NDArray[Any], beta_kl: NDArray[Any], numerics: NDArray[Any], limit: float, keep: str) -> Faults:
    """Faults of a mixed loss at the points of a box.

    Args:
        c: The shape number at every point, at the start where it is learnt.
        beta_kl: Strength at every point, per nat.
        numerics: `stable` or `published` at every point.
        limit: Margin in nats up to which it should be finite.
        keep: What keeps the loss within the safe band.
    """
    published = np.asarray(beta_kl * limit > LARGEST_EXPONENT)
    # The stable form is finite wherever its true value is: for c < 1 that grows like exp((1 - c) * |z|).
    stable = (1 - c) * beta_kl * limit > LARGEST_EXPONENT
    nonfinite = np.where(numerics == "published", published, stable)
    as_published = bool((nonfinite & (numerics == "published")).any())
    return Faults(
        uphill=c > WRONG_START_C,
        trapped=c > MONOTONE_C,
        unbounded=c < SAFE_BAND[0],
        overflowing=published | stable,
        nonfinite=nonfinite,
        advice=tuple(_advice(c, limit, keep, as_published)),
    )


def _advice(c: NDArray[Any], limit: float, keep: str, published: bool) -> Iterator[str]:
    low, high = SAFE_BAND
    if bool(((c > high) | (c < low)).any()):
        inside = float(((c >= low) & (c <= high)).mean())
        share = f"{percent(inside)} of it is in the safe band: " if c.size > 1 else ""
        yield f"{share}keep {keep}"
    if published:
        yield (
            f"as published it overflows for beta_kl over {LARGEST_EXPONENT / limit:.3g}; `numerics: stable` has the "
            "same values and does not overflow"
        )
