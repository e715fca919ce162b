"""Whether one of two trainings is better, from the same measure under the same seeds.

Two trials of one seed see the same pairs in the same order from the same adapter, so most of what differs between
seeds is common to both; their difference is steadier than either. Seeds are few, and their spread is estimated from
them, so the law of the mean difference is Student's with one degree of freedom less than there are seeds, not the
normal one: with five seeds an interval is 1.4 times as wide.

Seeds are one of two sources of variation: the held-out pairs are a sample as well, and the same for every seed, so no
number of seeds shows the result on other pairs. Where the outcome of every pair is known, both sources count, see
`crossed_difference`; where it is not, a verdict holds for these pairs only.

Several candidates are compared with one baseline, and the best of several equal ones looks better by luck. Holm's
method keeps the chance of any false verdict at the level of a single one, without supposing that the comparisons are
independent, which they are not: all share the baseline.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.special import stdtr, stdtrit  # without scipy.stats, whose import takes 0.4 s

LEVEL = 0.05
"""Chance of a wrong 'better' or 'worse' among all comparisons of a search."""
Verdict = Literal["better", "worse", "cannot tell"]


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences.

    Attributes:
        count: Seeds.
        mean: Of the differences; 0 without any.
        low: Lower end of its 95 % interval; None where fewer than two seeds, or differences without spread, give none.
        high: Upper end.
        p: Two-sided chance of so large a mean where there is no difference.
        items: Held-out pairs whose sampling counts as well; None where seeds alone do.
    """

    count: int
    mean: float
    low: float | None
    high: float | None
    p: float
    items: int | None = None


def paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """Ours minus theirs, pair by pair.

    Differences that are all equal have no spread, usually because the measure is coarse and not because the result is
    certain. Then only their sign counts: n equal signs have a probability of 2 ** (1 - n).
    """
    differences = [own - other for own, other in zip(ours, theirs, strict=True)]
    count = len(differences)
    mean = math.fsum(differences) / count if count else 0.0
    if count < 2:
        return Difference(count, mean, None, None, 1.0)
    error = math.sqrt(math.fsum((each - mean) ** 2 for each in differences) / (count - 1) / count)
    if error <= 1e-12 * max(1.0, abs(mean)):
        return Difference(count, mean, None, None, 1.0 if abs(mean) <= 1e-12 else 2.0 ** (1 - count))
    freedom = count - 1
    reach = float(stdtrit(freedom, 1 - LEVEL / 2)) * error
    return Difference(count, mean, mean - reach, mean + reach, 2 * float(stdtr(freedom, -abs(mean) / error)))


def crossed_difference(differences: Sequence[Sequence[float]]) -> Difference:
    """Mean of differences of every held-out pair (columns) under every seed (rows), both of them samples.

    The variance of the mean is that of a two-way layout with random rows and columns, the mean squares of both less
    that of the rest, and its degrees of freedom are Satterthwaite's. It is at least that of the seeds alone and that of
    the pairs alone, since an estimate by subtraction may fall below them.
    """
    table = np.asarray(differences, dtype=float)
    seeds, items = table.shape
    mean = float(table.mean())
    if seeds < 2 or items < 2:
        return Difference(seeds, mean, None, None, 1.0, items)
    of_seeds, of_items = table.mean(axis=1), table.mean(axis=0)
    rest = table - of_seeds[:, None] - of_items[None, :] + mean
    by_seed, by_item = of_seeds.var(ddof=1) / seeds, of_items.var(ddof=1) / items
    by_rest = (rest**2).sum() / ((seeds - 1) * (items - 1)) / (seeds * items)
    variance = max(by_seed + by_item - by_rest, by_seed, by_item)
    if variance <= 1e-24:
        return replace(paired_difference(of_seeds.tolist(), [0.0] * seeds), items=items)
    spread = by_seed**2 / (seeds - 1) + by_item**2 / (items - 1) + by_rest**2 / ((seeds - 1) * (items - 1))
    freedom, error = max(1.0, variance**2 / spread), math.sqrt(variance)
    reach = float(stdtrit(freedom, 1 - LEVEL / 2)) * error
    return Difference(seeds, mean, mean - reach, mean + reach, 2 * float(stdtr(freedom, -abs(mean) / error)), items)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values of several comparisons, each raised so that it can be held against the level of one alone."""
    raised = [1.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda each: p_values[each])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        raised[index] = highest
    return raised


def verdict(difference: float, p: float, *, maximize: bool) -> Verdict:
    """Verdict from a difference from the baseline and its raised p-value."""
    if p >= LEVEL or difference == 0:
        return "cannot tell"
    return "better" if (difference > 0) == maximize else "worse"
