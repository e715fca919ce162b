"""Successive halving that promotes: trials wait at their rungs, and the best of those that wait goes on."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import optuna

from benchmarks.ways import MOST
from tune_dlrml.space import SearchSpace
from tune_dlrml.study.history import StudyHistory, TrialRow
from tune_dlrml.study.proposer import Proposal, Proposer, When, point_proposal


class Waiting(NamedTuple):
    """A point, what its trials have reported by step, and whether one diverged."""

    params: Mapping[str, Any]
    values: dict[int, float]
    diverged: list[bool]


def same(params: Mapping[str, Any]) -> str:
    """Identifies a point."""
    return json.dumps(dict(params), sort_keys=True)


@dataclass(frozen=True)
class Promotion(Proposer):
    """Asynchronous successive halving as published (Li et al., arXiv 1810.05934): one in `factor` of a rung goes on.

    The best of the highest rung that has one to promote goes on; where none has, a new point is drawn. A trial that
    goes on is another trial of the same point in the study; `samplers.search` counts what it trains anew alone, as if
    it had waited with its checkpoint.

    Attributes:
        then: The source of new points.
        rungs: With the full budget, the last one.
        aims: Rung at which each trial waits, by its number.
    """

    space: SearchSpace
    then: Proposer
    rungs: Sequence[int]
    factor: int
    aims: dict[int, int] = field(default_factory=dict)

    def total(self, rows: Sequence[TrialRow]) -> int:
        return MOST * len(self.rungs)

    def when(self, history: StudyHistory, number: int) -> When:
        points = self._points(history)
        return "now" if len(points) < MOST or self._next(points) is not None else "never"

    def propose(self, history: StudyHistory, number: int) -> Proposal:
        found = self._next(self._points(history))
        self.aims[number] = self.rungs[0] if found is None else found[1]
        return self.then.propose(history, number) if found is None else point_proposal(self.space, number, found[0])

    def _points(self, history: StudyHistory) -> list[Waiting]:
        points: dict[str, Waiting] = {}
        for trial in history.optuna_study.get_trials(deepcopy=False):
            if trial.params:
                point = points.setdefault(same(trial.params), Waiting(trial.params, {}, []))
                point.values.update(trial.intermediate_values)
                point.diverged.append(trial.constraints.get("diverged", 0.0) > 0)
        return list(points.values())

    def _next(self, points: Sequence[Waiting]) -> tuple[Mapping[str, Any], int] | None:
        """The point that goes on, and to which rung."""
        for lower, upper in reversed([*zip(self.rungs[:-1], self.rungs[1:], strict=True)]):
            there = sorted((own for own in points if lower in own.values), key=lambda own: -own.values[lower])
            for own in there[: len(there) // self.factor]:
                if upper not in own.values and not any(own.diverged):
                    return own.params, upper
        return None


@dataclass(frozen=True)
class Aim(optuna.pruners.BasePruner):  # type: ignore[misc]
    """Stops each trial at the rung where it waits."""

    promotion: Promotion

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        return bool(trial.last_step >= self.promotion.aims[trial.number])
