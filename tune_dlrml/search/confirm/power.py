"""What a search can tell apart: the smallest difference of two settings that is shown with a power of 80 %.

The outcome of a held-out pair under a seed differs between two settings by

    d_sk = delta + seed_s + pair_k + rest_sk

with the seeds s and the pairs k as samples, as `paired.crossed_difference` has it. A difference is shown where the test
of a confirmation finds it, at 5 % over all finalists by Holm's method, of which the first step is the hardest; in a
race at what its last look spends of that, and as much oftener as finalists are dropped by bad luck. Here the mean
squares are drawn from their laws (multiples of chi-square) and the mean from its own; the smallest difference is the
quantile of what they ask for.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from tune_dlrml.config.settings import ConfirmConfig
from tune_dlrml.metrics import METRICS, Metric
from tune_dlrml.search.confirm.finalists import most_seeds
from tune_dlrml.search.confirm.paired import LEVEL, POWER, squared_reach
from tune_dlrml.search.confirm.race import HOPELESS, share

DRAWS = 20_000
MOST_TIMES = 1024
"""Times the pairs or the seeds at most, to halve the smallest difference."""


Draws = NDArray[np.float64]


@dataclass(frozen=True)
class Noise:
    """Variances of the outcome of one held-out pair in one training, or of a difference between two.

    Attributes:
        seed: Of what a seed adds on every pair; an estimate below 0 is 0, here and in the next.
        pair: Of what a pair adds under every seed.
        rest: Of what is left.
        estimate: What they were estimated from; None where they are known.
    """

    seed: float
    pair: float
    rest: float
    estimate: "Estimate | None" = None

    @classmethod
    def of(cls, outcomes: Sequence[Sequence[float]]) -> Self:
        """Estimated from outcomes of every pair (columns, at least two) under every seed (rows, at least two)."""
        return cls.mean([outcomes])

    @classmethod
    def mean(cls, several: Sequence[Sequence[Sequence[float]]]) -> Self:
        """Estimated from the means of the mean squares of several settings, all with the same seeds and pairs."""
        squares = np.mean([_mean_squares(outcomes) for outcomes in several], axis=0)
        by_seed, by_pair, by_rest = squares.tolist()
        estimate = Estimate(by_seed, by_pair, by_rest, seeds=len(several[0]), pairs=len(several[0][0]))
        seed, pair, rest = np.maximum(0.0, _variances(squares, estimate.seeds, estimate.pairs)).tolist()
        return cls(seed, pair, rest, estimate)

    def draws(self, rng: np.random.Generator) -> Draws:
        """Values that the three variances may have, shape (3, DRAWS): as known, or around their estimate."""
        if self.estimate is None:
            return np.repeat([[self.seed], [self.pair], [self.rest]], DRAWS, axis=1)
        return self.estimate.draws(rng)

    def share_of_pairs(self, seeds: int, pairs: int) -> float:
        """Share of the variance of a mean over so many seeds and pairs which more held-out pairs would lower."""
        variance = self.seed / seeds + self.pair / pairs + self.rest / (seeds * pairs)
        return 1 - self.seed / seeds / variance if variance else 0.0


@dataclass(frozen=True)
class Estimate:
    """Mean squares of a two-way layout, from which variances are estimated.

    Attributes:
        by_seed: Of the seeds' means.
        by_pair: Of the pairs' means.
        by_rest: Of the rest.
        seeds: Number of seeds.
        pairs: Number of pairs.
    """

    by_seed: float
    by_pair: float
    by_rest: float
    seeds: int
    pairs: int

    def draws(self, rng: np.random.Generator) -> Draws:
        """Variances under which these mean squares may have come about, shape (3, DRAWS).

        A mean square is its expectation times chi-square over its degrees of freedom; the expectation is drawn as the
        mean square over such a variable (fiducially), so that few seeds leave much open. A variance may be drawn below
        0, as an estimate of one that is 0 is half of the time.
        """
        freedoms = _freedoms(self.seeds, self.pairs)
        expected = np.array([[self.by_seed], [self.by_pair], [self.by_rest]])
        drawn = expected * freedoms / rng.chisquare(freedoms, size=(3, DRAWS))
        return _variances(drawn, self.seeds, self.pairs)


def _mean_squares(outcomes: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """Mean squares of seeds, pairs and the rest of a table of seeds (rows) and pairs."""
    table = np.asarray(outcomes, dtype=float)
    seeds, pairs = table.shape
    of_seeds, of_pairs = table.mean(axis=1), table.mean(axis=0)
    rest = table - of_seeds[:, None] - of_pairs[None, :] + table.mean()
    by_rest = (rest**2).sum() / ((seeds - 1) * (pairs - 1))
    return np.array([pairs * of_seeds.var(ddof=1), seeds * of_pairs.var(ddof=1), by_rest])


def _variances(squares: NDArray[np.float64], seeds: int, pairs: int) -> NDArray[np.float64]:
    """Variances of seeds, pairs and the rest by the expected mean squares of a two-way layout with random effects.

    Searle, Casella and McCulloch, Variance Components (1992), chapter 4. They are unbiased, and may be below 0.
    """
    by_seed, by_pair, by_rest = squares
    return np.stack([(by_seed - by_rest) / pairs, (by_pair - by_rest) / seeds, by_rest])


def _freedoms(seeds: int, pairs: int) -> NDArray[np.float64]:
    return np.array([[seeds - 1], [pairs - 1], [(seeds - 1) * (pairs - 1)]], dtype=float)


def single(noise: Noise, pairs: int) -> float:
    """The smallest difference that one training under one seed shows to a test that knows its noise."""
    rng = np.random.default_rng(0)
    seed, pair, rest = noise.draws(rng)
    error = np.sqrt(np.maximum(0.0, seed + (pair + rest) / pairs))
    return float(np.quantile(error * (ndtri(1 - LEVEL / 2) + rng.standard_normal(DRAWS)), POWER))


def confirmed(
    noise: Noise, *, seeds: int, pairs: int, finalists: int, spent: float = 1.0, power: float = POWER
) -> float:
    """The smallest difference from the baseline that a confirmation shows for one of its finalists.

    Args:
        noise: Of a difference between two settings under the same seed on the same pair.
        seeds: At least 2.
        pairs: At least 2.
        finalists: That are compared with the baseline.
        spent: Share of the level at which the test is made.
        power: Chance with which it is shown.
    """
    rng = np.random.default_rng(0)
    seed, pair, rest = noise.draws(rng)
    freedoms = _freedoms(seeds, pairs)
    expected = np.maximum(0.0, [rest + pairs * seed, rest + seeds * pair, rest])
    of_mean = np.maximum(0.0, expected[0] + expected[1] - expected[2]) / (seeds * pairs)
    off = rng.standard_normal(DRAWS) * np.sqrt(of_mean)
    squares = expected * rng.chisquare(freedoms, size=(3, DRAWS)) / freedoms / (seeds * pairs)
    by_seed, by_pair, by_rest = squares
    by_item = np.maximum(by_pair - np.minimum(by_rest, by_seed), 0.0)
    reach = np.sqrt(squared_reach(LEVEL * spent / finalists, seeds, pairs, by_seed, by_item))
    return float(np.quantile(reach - off, power))


@dataclass(frozen=True)
class Power:
    """What a planned search can tell apart, in units of its objective.

    Attributes:
        metric: The objective.
        pairs: Held-out pairs of the search.
        trial: Smallest difference of one trial from the reference; None for a metric that is not relative to it.
        two_trials: Of two trials under one seed.
        confirmation: Of a finalist from the baseline; None without `search.confirm`.
        seeds: `search.confirm.seeds`; 1 without. A race may have a fifth more.
        confirm_pairs: Held-out pairs of the confirmation, those of `dataset.test` if there are any.
        share_of_pairs: Of the variance of the last of these, what held-out pairs make; the rest is seeds and order.
        pairs_to_halve: Held-out pairs that halve it; None where no number does.
        seeds_to_halve: Seeds of the confirmation that halve it; None likewise.
    """

    metric: str
    pairs: int
    trial: float | None
    two_trials: float
    confirmation: float | None
    seeds: int
    confirm_pairs: int
    share_of_pairs: float
    pairs_to_halve: int | None
    seeds_to_halve: int | None

    @classmethod
    def of(
        cls, metric: str, of_one: Noise, of_two: Noise, *, pairs: int, confirm: ConfirmConfig | None, confirm_pairs: int
    ) -> Self:
        """From the noise of one trial, and of a difference between two.

        Args:
            metric: The objective.
            of_one: Noise of one trial.
            of_two: Noise of the difference of two settings under one seed on one pair.
            pairs: Held-out pairs of the search, at least 2.
            confirm: How the search confirms its best trials.
            confirm_pairs: Held-out pairs of the confirmation, at least 2.
        """
        seeds = 1 if confirm is None else confirm.seeds

        def shown(seeds: int, pairs: int) -> float:
            if confirm is None:
                return single(of_two, pairs)
            cap = most_seeds(confirm.model_copy(update={"seeds": seeds}))
            plan = {"seeds": cap, "pairs": pairs, "finalists": confirm.top}
            if not confirm.adaptive:
                return confirmed(of_two, **plan)
            return confirmed(of_two, **plan, spent=share(cap, cap), power=POWER + HOPELESS)

        last = pairs if confirm is None else confirm_pairs
        now = shown(seeds, last)
        return cls(
            metric=metric,
            pairs=pairs,
            trial=None if METRICS[metric].untrained is None else single(of_one, pairs),
            two_trials=single(of_two, pairs),
            confirmation=None if confirm is None else now,
            seeds=seeds,
            confirm_pairs=confirm_pairs,
            share_of_pairs=of_two.share_of_pairs(seeds, last),
            pairs_to_halve=_least(lambda more: shown(seeds, more) <= now / 2, last),
            seeds_to_halve=None if confirm is None else _least(lambda more: shown(more, last) <= now / 2, seeds),
        )

    def sentence(self) -> str:
        """The smallest differences that are shown."""
        metric = METRICS[self.metric]
        one = "" if self.trial is None else f"a trial from the reference at {self.trial:.2g}, "
        text = (
            f"with a power of {POWER:.0%} {self.pairs} held-out pairs tell differences in {self.metric}: "
            f"{one}two trials from each other at {self.two_trials:.2g}"
        )
        if self.confirmation is not None:
            text += (
                f", and a finalist from the baseline in a confirmation of {self.seeds} seeds on "
                f"{self.confirm_pairs} pairs at {self.confirmation:.2g}"
            )
        return text + ("" if metric.counts_pairs else f" ({metric.unit})")

    def as_json(self) -> dict[str, float | str | None]:
        """The fields by their names."""
        return asdict(self)


def _least(suffices: Callable[[int], bool], start: int) -> int | None:
    """The least number above `start` that suffices, of those up to `MOST_TIMES` as many; None if none does."""
    low, high = start, 2 * start
    while not suffices(high):
        low, high = high, 2 * high
        if high > MOST_TIMES * start:
            return None
    while high - low > max(1, start // 50):
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle) else (middle, high)
    return high


def power_of_shares(metric: Metric, *, pairs: int, confirm: ConfirmConfig | None, confirm_pairs: int) -> Power | None:
    """By formula, where a metric is a share of pairs, half of which count, and settings are independent on a pair.

    Seeds and the order of pairs are left out, since nothing is known of them before something was trained. None for
    other metrics, whose variance is not known either.
    """
    if metric.of_pair is None or not metric.counts_pairs or min(pairs, confirm_pairs) < 2:
        return None
    one, two = Noise(seed=0.0, pair=0.25, rest=0.0), Noise(seed=0.0, pair=0.5, rest=0.0)
    return Power.of(metric.name, one, two, pairs=pairs, confirm=confirm, confirm_pairs=confirm_pairs)
