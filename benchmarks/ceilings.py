"""Ways that know what no search knows: what a sampler or a scheduler could gain at most, and where tokens go."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import optuna

from benchmarks.replay import World
from benchmarks.ways import RANDOM, TPE, WAYS, Way
from tune_dlrml.study.history import StudyHistory
from tune_dlrml.study.proposer import Proposal, RandomPoints

ASHA = "random, asha 4 from 1/16"


class Spent(NamedTuple):
    """A trial of a search that has ended.

    Attributes:
        so_far: Tokens of the search until then.
        regret: Of the search from then on.
        tokens: Of the trial.
        part: What became of it, a row of `parts`.
    """

    so_far: float
    regret: float
    tokens: float
    part: str


@dataclass(frozen=True)
class Foresight(optuna.pruners.BasePruner):  # type: ignore[misc]
    """Stops at the first rung whatever is not truly better than all that went on before."""

    world: World
    seed: int
    first: int

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        others = (own for own in study.get_trials(deepcopy=False) if own.value is not None)
        best = max((self._truth(own) for own in others), default=0.0)
        return bool(trial.last_step == self.first and self._truth(trial) <= best)

    def _truth(self, trial: optuna.trial.FrozenTrial) -> float:
        return self.world.truth(trial.params, self.seed)


@dataclass(frozen=True)
class BestOf(RandomPoints):
    """The truly best of so many random points."""

    world: World
    count: int

    def propose(self, history: StudyHistory, number: int) -> Proposal:
        drawn = [self._other(at).propose(history, number) for at in range(self.count)]
        return max(drawn, key=lambda each: self.world.truth(each.spec.params, self.settings.seed))

    def _other(self, at: int) -> RandomPoints:
        return RandomPoints(self.space, self.settings.model_copy(update={"seed": self.count * self.settings.seed + at}))


def foreseen(first: float) -> Callable[[World, int], Way]:
    return lambda world, seed: replace(
        WAYS[ASHA], grace=first, pruner=lambda rungs, steps, factor: Foresight(world, seed, rungs[0])
    )


def best_of(count: int, name: str) -> Callable[[World, int], Way]:
    return lambda world, seed: replace(
        WAYS[name], proposer=lambda space, settings: BestOf(space, settings, world, count)
    )


def with_(name: str, **changed: Any) -> Callable[[World, int], Way]:
    return lambda world, seed: replace(WAYS[name], **changed)


CEILINGS: dict[str, Callable[[World, int], Way]] = {
    f"{RANDOM}; the best is known": with_(RANDOM, knows_best=True),
    f"{TPE}; the best is known": with_(TPE, knows_best=True),
    f"{TPE}; no noise": with_(TPE, quiet=True),
    "random, asha that knows the ends, from 1/16": foreseen(1 / 16),
    "random, asha that knows the ends, from 1/64": foreseen(1 / 64),
    **{f"best of {count}, no pruning": best_of(count, RANDOM) for count in (4, 8, 16)},
    **{f"best of {count}, asha 4 from 1/16": best_of(count, ASHA) for count in (4, 8, 16)},
}


def parts(searches: Sequence[Sequence[Spent]], until: float) -> dict[str, float]:
    """Which share of the tokens of searches goes where, until each has spent so many."""
    found: dict[str, float] = {}
    for search in searches:
        for own in search:
            if own.so_far <= until:
                found[own.part] = found.get(own.part, 0.0) + own.tokens
    return {part: tokens / sum(found.values()) for part, tokens in sorted(found.items())}
