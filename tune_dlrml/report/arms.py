"""Mean results of every confirmed setting over its seeds, including the baseline."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from tune_dlrml.metrics import METRICS
from tune_dlrml.records import State
from tune_dlrml.report.figures.margins import geometry_of
from tune_dlrml.report.reading import SearchData, TrialData
from tune_dlrml.search.confirm.finalists import DEFAULT_DPO, FINALIST
from tune_dlrml.search.confirm.outcomes import in_means
from tune_dlrml.search.confirm.paired import paired_difference


@dataclass(frozen=True)
class Mean:
    """Mean over seeds with Student's 95 % interval, which needs at least two seeds and some spread."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Arm:
    """One setting under all its seeds.

    Attributes:
        trial: Its number in the search; None for a DPO that was not a trial of it.
        loss: Its branch there.
        kind: `pairwise` or `pointwise`; None of a loss that may be either.
        parameters: Its settings.
        seeds: Number of trainings in the objective's mean.
        diverged: How many of them diverged; each counts as the untrained reference.
        objective: Of the search's metric.
        kl: KL to the reference, in nats.
        trapped: Share of held-out pairs below the barrier of the loss.
    """

    trial: int | None
    loss: str
    kind: str | None
    parameters: dict[str, Any]
    seeds: int
    diverged: int
    objective: Mean
    kl: Mean | None
    trapped: Mean | None

    def without_intervals(self) -> Self:
        """Means alone: their intervals do not hold in a race, which goes on or ends by what it has seen."""

        def bare(mean: Mean | None) -> Mean | None:
            return None if mean is None else Mean(mean.value, None, None)

        objective = Mean(self.objective.value, None, None)
        return replace(self, objective=objective, kl=bare(self.kl), trapped=bare(self.trapped))


def arms(data: SearchData, again: SearchData) -> list[Arm]:
    """The settings of a confirmation that have been trained, the best mean first.

    Args:
        data: The search.
        again: Its confirmation.
    """
    runs: dict[int, list[TrialData]] = {}
    for trial in again.trials:
        if trial.row.spec is not None:
            runs.setdefault(int(trial.row.spec.params[FINALIST]), []).append(trial)  # type: ignore[arg-type]
    known = {trial.number: trial for trial in data.trials}
    found = [_arm(None if number == DEFAULT_DPO else known[number], own, data.metric) for number, own in runs.items()]
    return sorted((arm for arm in found if arm is not None), key=lambda arm: arm.objective.value, reverse=data.maximize)


def _numbers(runs: Sequence[TrialData], metric: str) -> list[float]:
    found = (in_means(trial.state, trial.last.get(metric), _untrained(trial, metric)) for trial in runs)
    return [number for number in found if number is not None]


def _untrained(trial: TrialData, metric: str) -> float | None:
    """A metric of the reference under a trial's loss: at margin 0 every pair lies below a barrier above 0."""
    if metric != "eval_trap_fraction":
        known = METRICS[metric].untrained
        return trial.reports[0].metrics.get(metric) if known is None and trial.reports else known
    geometry = geometry_of(trial)
    return float(geometry is not None and geometry.barrier is not None and geometry.barrier.z > 0)


def _arm(of_search: TrialData | None, runs: Sequence[TrialData], metric: str) -> Arm | None:
    """None where no training has ended with a number."""
    objective, kl, trapped = (_mean(runs, name) for name in (metric, "eval_kl", "eval_trap_fraction"))
    if objective is None:
        return None
    return Arm(
        trial=None if of_search is None else of_search.number,
        loss="default DPO" if of_search is None else of_search.branch,
        kind=runs[0].kind,
        parameters={} if of_search is None else of_search.settings,
        seeds=len(_numbers(runs, metric)),
        diverged=sum(trial.state is State.DIVERGED for trial in runs),
        objective=objective,
        kl=kl,
        trapped=trapped,
    )


def _mean(runs: Sequence[TrialData], metric: str) -> Mean | None:
    values = _numbers(runs, metric)
    if not values:
        return None
    against_zero = paired_difference(values, [0.0] * len(values))
    low, high = against_zero.low, against_zero.high
    ends = (low, high) if low is None or high is None else METRICS[metric].within(low, high)
    return Mean(against_zero.mean, *ends)
