"""Confirmation as a race: finalists and DPO get seeds in rounds, and each finalist only as long as it is open.

After each round, from the third on, there is a look: the differences so far are tested. A finalist that is better or
worse than DPO is settled; one that could hardly become either is dropped. DPO is trained as long as any finalist is.

The error is held at `LEVEL` for all looks and finalists together. The level spent up to a look is a power of the seeds'
share of the cap (K. Kim and D. L. DeMets, Biometrika 74, 1987, 149): early looks spend little, since few seeds say
little about their own spread, and the last one most. A look tests at what it spends alone, so that no more than the
level is spent whatever the looks have in common, which depends on how much of the noise is that of the held-out pairs.
A p-value divided by its look's share, the least of all looks, is one for the whole race; Holm's method is for the
finalists. An interval at a look's share of the level is a repeated confidence interval: it holds at every look at once,
so that stopping by what is seen does not bias it.

Dropping a finalist tests nothing: where one that is dropped is trained on instead, the error is held as well. So its
rule may suppose what a test may not, that finalists vary alike from seed to seed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from scipy.special import ndtr

from tune_dlrml.search.confirm.outcomes import Outcome, Run, compared_before, difference_of, pairs_of
from tune_dlrml.search.confirm.paired import LEVEL, Difference, holm, squared_reach

DROPS_FROM, TELLS_FROM = 2, 3
"""Seeds from which a finalist may be dropped, and from which one may be settled."""
CONCENTRATION = 10
"""Exponent of the spent share: what an early look spends, the last one lacks."""
HOPELESS = 0.05
"""A finalist is dropped where its chance of being settled at the last look is below this."""
End = Literal["open", "settled", "dropped", "cap"]


def share(seeds: int, cap: int) -> float:
    """Share of the level that is spent at the look after so many seeds; all of them add up to 1."""
    if seeds < TELLS_FROM:
        return 0.0
    before = 0.0 if seeds == TELLS_FROM else ((seeds - 1) / cap) ** CONCENTRATION
    return (seeds / cap) ** CONCENTRATION - before


NOTHING = Difference(0, 0.0, None, None, 1.0)
"""Of a finalist without a seed."""


@dataclass(frozen=True)
class Standing:
    """One finalist in the race.

    Attributes:
        difference: From DPO at its newest look.
        least: Least of its p-values so far, each divided by the share of its look; at most 1.
        sign: Of the mean difference at that look.
        p: The same, raised by Holm's method for the number of finalists.
        end: Why it is trained no longer; `cap` after the last round, `open` before its end.
        rounds: Rounds after which it ended; those so far while it is open.
    """

    difference: Difference = NOTHING
    least: float = 1.0
    sign: float = 0.0
    p: float = 1.0
    end: End = "open"
    rounds: int = 0

    def looked_at(self, difference: Difference, cap: int) -> "Standing":
        """After a round; without a new seed in it there is no new look."""
        if difference.count == self.difference.count:
            return self
        spent = share(difference.count, cap)
        p = difference.p / spent if spent else 1.0
        known = replace(self, difference=difference)
        return replace(known, least=p, sign=difference.mean) if p < self.least else known

    def interval(self, cap: int, level: float = LEVEL) -> tuple[float, float] | tuple[None, None]:
        """The repeated confidence interval of its difference; none before its first look that may settle it."""
        spent = share(self.difference.count, cap)
        return self.difference.interval(level * spent) if spent else (None, None)


@dataclass(frozen=True)
class Progress:
    """How far a race is.

    Attributes:
        standings: Of the finalists.
        runs: All confirming trials that it has needed so far, in order.
        over: Whether it needs no more.
    """

    standings: tuple[Standing, ...]
    runs: tuple[Run, ...]
    over: bool


def race(ended: Mapping[Run, Outcome], finalists: Sequence[int], baseline: int, seeds: Sequence[int]) -> Progress:
    """Run a race through the trials that have ended; equal trials give an equal race, in whatever order they ended.

    Args:
        ended: Confirming trials; the race only looks at those that it needs, but each trial of the search that was
            trained is a comparison.
        finalists: Trials of the search that are compared with the baseline.
        baseline: The DPO trial.
        seeds: As many as there can be rounds.
    """
    standings, runs, cap = [Standing() for _ in finalists], list[Run](), len(seeds)
    others = compared_before(ended, finalists, baseline)
    for rounds, seed in enumerate(seeds, start=1):
        racing = [trial for trial, own in zip(finalists, standings, strict=True) if own.end == "open"]
        if not racing:
            break
        runs += [(trial, seed) for trial in (baseline, *racing)]
        if rounds < DROPS_FROM:
            continue
        if not ended.keys() >= set(runs):
            return Progress(tuple(standings), tuple(runs), over=False)
        found = [
            difference_of(pairs_of(ended, trial, baseline, seeds[:rounds])) if trial in racing else own.difference
            for trial, own in zip(finalists, standings, strict=True)
        ]
        standings = after_round(standings, found, rounds=rounds, cap=cap, others=others)
    return Progress(tuple(standings), tuple(runs), over=True)


def after_round(
    standings: Sequence[Standing], differences: Sequence[Difference], *, rounds: int, cap: int, others: int = 0
) -> list[Standing]:
    """The standings after a round.

    Args:
        standings: After the round before.
        differences: Of each finalist now; of one that is not open any more, that of its last round.
        rounds: How many there were, with this one.
        cap: How many there can be.
        others: Comparisons beside these.
    """
    looked = [own.looked_at(new, cap) for own, new in zip(standings, differences, strict=True)]
    raised = holm([own.least for own in looked] + [1.0] * others)
    level = LEVEL / max(1, sum(p >= LEVEL for p in raised))
    noises = [new.by_seed * new.count for new in differences if new.count >= 2]
    noise = math.fsum(noises) / len(noises) if noises else 0.0

    def ended(own: Standing, p: float) -> Standing:
        own = replace(own, p=p)
        if p < LEVEL and own.end != "settled":
            return replace(own, end="settled", rounds=rounds)
        if own.end != "open":
            return own
        end: End = "open"
        if rounds == cap:
            end = "cap"
        elif own.difference.count >= DROPS_FROM:
            end = "dropped" if _chance(own.difference, noise, cap - rounds, cap, level) < HOPELESS else "open"
        return replace(own, end=end, rounds=rounds)

    return [ended(own, p) for own, p in zip(looked, raised, strict=False)]


def _chance(now: Difference, noise: float, left: int, cap: int, level: float) -> float:
    """Predictive probability that the last look settles a finalist, from its mean and a flat prior.

    Its variance from seed to seed is the mean of its own, which few seeds give badly, and that of all finalists.

    Args:
        now: Its difference.
        noise: Mean variance of a seed's difference over the finalists.
        left: Seeds that it may still get.
        cap: Most seeds.
        level: At which the last look has to be significant, but for its share.
    """
    last = now.count + left
    own = (now.by_seed * now.count + noise) / 2
    if own + now.by_item == 0:
        return float(now.mean != 0)
    spent = share(last, cap)
    if not spent:
        return 0.0
    reach = math.sqrt(squared_reach(level * spent, last, now.items or 2, own / last, now.by_item))
    spread = math.sqrt(own * (1 / now.count - 1 / last))
    if spread == 0:
        return float(abs(now.mean) > reach)
    return float(ndtr((now.mean - reach) / spread) + ndtr((-now.mean - reach) / spread))
