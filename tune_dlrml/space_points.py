"""Points spread over the domains of a search space, for checks before a search draws from it."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tune_dlrml.domains import Choice, Domain
from tune_dlrml.losses.faults import Points

SEED = 0


def sampled(domains: Mapping[str, Domain], exponent: int) -> Points:
    """Points of a box, by parameter: all of them where every domain is a choice, else 2^exponent; one without domains.

    Each point represents the same share of the box.
    """
    if not domains:
        return {"": np.zeros(1)}
    if all(isinstance(domain, Choice) for domain in domains.values()):
        rows = list(itertools.product(*(domain.extremes() for domain in domains.values())))
        return {
            key: np.array(column, dtype=object) for key, column in zip(domains, zip(*rows, strict=True), strict=True)
        }
    from scipy.stats import qmc  # 0.4 s, where no box is drawn

    unit = qmc.Sobol(len(domains), scramble=True, rng=SEED).random_base2(exponent)
    return {key: values_at(domain, unit[:, at]) for at, (key, domain) in enumerate(domains.items())}


def values_at(domain: Domain, unit: NDArray[Any]) -> NDArray[Any]:
    """Values of a domain at quantiles, on its own scale; a whole number stands for the interval around it."""
    if isinstance(domain, Choice):
        values = np.array(domain.values, dtype=object)
        picked: NDArray[Any] = values[np.minimum((unit * len(values)).astype(int), len(values) - 1)]
        return picked
    low, high = (domain.low - 0.5, domain.high + 0.5) if domain.integer else (float(domain.low), float(domain.high))
    found = low * (high / low) ** unit if domain.log else low + unit * (high - low)
    return np.clip(np.rint(found), domain.low, domain.high).astype(int) if domain.integer else found
