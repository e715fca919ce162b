"""Whether one of two trainings is better, from the same measure under the same seeds.

Two trials of one seed see the same pairs in the same order from the same adapter, so most of what differs between
seeds is common to both; their difference is steadier than either. Seeds are few, and their spread is estimated from
them, so the law of the mean difference is Student's with one degree of freedom less than there are seeds, not the
normal one: with five seeds an interval is 1.4 times as wide.

Seeds are one of two sources of variation: the held-out pairs are a sample as well, and the same for every seed, so no
number of seeds shows the result on other pairs. Where the outcome of every pair is known, both sources count, see
`crossed_difference`; where it is not, a verdict holds for these pairs only.

The two sources have variances of their own, known with as many degrees of freedom as there are seeds and pairs less
one. The half width of an interval is the root of the sum of their squared half widths, each by its own Student's law
(S. K. Banerjee, Sankhya 22, 1960, 357): it is that of the seeds where these decide, that of the pairs where those do,
and covers at least as often as it says between them. Satterthwaite's degrees of freedom, estimated from the same few
seeds, do not: where two or three seeds agree by luck, they say that there are many.

Several candidates are compared with one baseline, and the best of several equal ones looks better by luck. Holm's
method keeps the chance of any false verdict at the level of a single one, without supposing that the comparisons are
independent, which they are not: all share the baseline.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.special import ndtri, stdtr, stdtrit  # without scipy.stats, whose import takes 0.4 s

LEVEL = 0.05
"""Chance of a wrong 'better' or 'worse' among all comparisons of a search."""
LEAST_P, BISECTIONS = 1e-15, 48
"""Smallest p-value that is told from a smaller one, and halvings of its logarithm's range until it is found."""
POWER = 0.8
"""Chance with which a difference that is called the smallest one is shown."""
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
        by_seed: Variance of the mean over seeds.
        by_item: Variance of the mean over held-out pairs; 0 where seeds alone count.
    """

    count: int
    mean: float
    low: float | None
    high: float | None
    p: float
    items: int | None = None
    by_seed: float = 0.0
    by_item: float = 0.0

    def interval(self, level: float) -> tuple[float, float] | tuple[None, None]:
        """The interval that misses the true mean with at most this chance; none where there is no 95 % interval."""
        if self.low is None:
            return None, None
        reach = math.sqrt(squared_reach(level, self.count, self.items or 2, self.by_seed, self.by_item))
        return self.mean - reach, self.mean + reach

    def shown_beyond(self, reach: float) -> float:
        """The true difference of which an interval of this half width leaves out zero with a power of `POWER`."""
        return reach + float(ndtri(POWER)) * math.sqrt(self.by_seed + self.by_item)


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
    by_seed = math.fsum((each - mean) ** 2 for each in differences) / (count - 1) / count
    return _difference(count, mean, by_seed, 0.0, None)


def crossed_difference(differences: Sequence[Sequence[float]]) -> Difference:
    """Mean of differences of every held-out pair (columns) under every seed (rows), both of them samples."""
    table = np.asarray(differences, dtype=float)
    seeds, items = table.shape
    if seeds < 2 or items < 2:
        return Difference(seeds, float(table.mean()), None, None, 1.0, items)
    mean, by_seed, by_item = (float(each) for each in crossed_variances(table))
    return _difference(seeds, mean, by_seed, by_item, items)


def crossed_variances(table: Any) -> tuple[Any, Any, Any]:
    """The mean of a table, and its variance over seeds and over held-out pairs, shapes (...).

    They are those of a two-way layout with random rows and columns. What varies from cell to cell is in both mean
    squares, so it is taken out of that of the pairs, but not so far that both variances together are less than that
    mean square alone.

    Args:
        table: Differences by seed and pair, shape (..., seeds, pairs), at least two of each.
    """
    seeds, items = table.shape[-2:]
    mean = table.mean(axis=(-2, -1))
    of_seeds, of_items = table.mean(axis=-1), table.mean(axis=-2)
    rest = table - of_seeds[..., None] - of_items[..., None, :] + mean[..., None, None]
    by_seed, by_item = of_seeds.var(axis=-1, ddof=1) / seeds, of_items.var(axis=-1, ddof=1) / items
    by_rest = (rest**2).sum(axis=(-2, -1)) / ((seeds - 1) * (items - 1)) / (seeds * items)
    return mean, by_seed, np.maximum(by_item - np.minimum(by_rest, by_seed), 0.0)


def _difference(count: int, mean: float, by_seed: float, by_item: float, items: int | None) -> Difference:
    if by_seed + by_item <= (1e-12 * max(1.0, abs(mean))) ** 2:
        return Difference(count, mean, None, None, 1.0 if abs(mean) <= 1e-12 else 2.0 ** (1 - count), items)
    reach = math.sqrt(squared_reach(LEVEL, count, items or 2, by_seed, by_item))
    if items is None:
        p = 2 * float(stdtr(count - 1, -abs(mean) / math.sqrt(by_seed)))
    else:
        p = float(p_value(mean, count, items, by_seed, by_item))
    return Difference(count, mean, mean - reach, mean + reach, p, items, by_seed, by_item)


def squared_reach(level: Any, seeds: Any, items: Any, by_seed: Any, by_item: Any) -> Any:
    """Square of the half width of the interval that misses the mean with chance `level`; see the module.

    Args:
        level: Two-sided.
        seeds: Number of seeds, at least 2.
        items: Number of held-out pairs, at least 2.
        by_seed: Variance of the mean over seeds.
        by_item: Variance of the mean over held-out pairs.
    """
    return stdtrit(seeds - 1.0, level / 2) ** 2 * by_seed + stdtrit(items - 1.0, level / 2) ** 2 * by_item


def p_value(mean: Any, seeds: Any, items: Any, by_seed: Any, by_item: Any) -> Any:
    """The level at which an interval just reaches zero, not below `LEAST_P`; arguments as in `squared_reach`."""
    squared = np.asarray(mean) ** 2
    low, high = np.full(squared.shape, math.log(LEAST_P)), np.zeros(squared.shape)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        excluded = squared > squared_reach(np.exp(middle), seeds, items, by_seed, by_item)
        low, high = np.where(excluded, low, middle), np.where(excluded, middle, high)
    return np.exp(high)


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
