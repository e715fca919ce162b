"""Asynchronous successive halving (Li et al., arXiv 1810.05934): its rungs, and which trials go on behind one."""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tune_dlrml.config import SchedulerConfig, SearchConfig

FIRST_RUNG = 16
"""The first rung is at one in so many steps of the full budget, where `grace_period` does not say."""


def rung_steps(scheduler: SchedulerConfig | None, full_steps: int) -> tuple[int, ...]:
    """Optimizer steps grace_period * reduction_factor**k below the full budget; none without a scheduler."""
    if scheduler is None:
        return ()
    steps: list[int] = []
    step = math.ceil(full_steps / FIRST_RUNG) if scheduler.grace_period is None else scheduler.grace_period
    while step < full_steps:
        steps.append(step)
        step *= scheduler.reduction_factor
    return tuple(steps)


class Promotions:
    """Which trials of a search go on behind their rungs, where they are paused (Algorithm 2 of the paper, `get_job`).

    Args:
        rungs: Number of rungs.
        reduction_factor: One trial in so many goes on behind a rung.
        maximize: Whether larger objectives are better.
        baseline: Number of the trial that is never paused, since all are compared with it; None without one.

    Attributes:
        rungs: The objective at each rung of the trials that have reached it, but for those that were pruned there (by
            `search.constraints`), by their numbers.
        paused: The rung at which each paused trial is, by its number.
    """

    def __init__(self, rungs: int, reduction_factor: int, *, maximize: bool, baseline: int | None = None) -> None:
        self._factor, self._sign, self._baseline = reduction_factor, -1.0 if maximize else 1.0, baseline
        self.rungs: list[dict[int, float]] = [{} for _ in range(rungs)]
        self.paused: dict[int, int] = {}

    def next(self, wanted: Collection[int] = ()) -> int | None:
        """The paused trial that goes on: of the highest rung with one, the best of those that are good enough.

        Good enough is what is among the best 1/reduction_factor of all trials that have reached the rung without being
        pruned there, those that have gone on since included; of equals the earlier is the better one.

        Args:
            wanted: Trials that are good enough at any place, as the last ones of a search are that lacks complete ones.

        Returns:
            Its number; None where no paused trial is good enough.
        """
        best = self._best(self._factor, self.paused)
        return self._best(1, wanted) if best is None and wanted else best

    def _best(self, factor: int, among: Collection[int]) -> int | None:
        if not self.paused:
            return None
        for rung, values in reversed([*enumerate(self.rungs)]):
            order = sorted(values, key=lambda number: (self._sign * values[number], number))
            for number in order[: len(order) // factor]:
                if self.paused.get(number) == rung and number in among:
                    return number
        return None

    def arrive(self, number: int, rung: int, value: float, wanted: Collection[int] = ()) -> bool:
        """A trial has reached a rung: it goes on if it would be the next to, and is paused if not.

        Args:
            number: The trial.
            rung: From 0.
            value: Its objective there.
            wanted: See `next`.

        Returns:
            Whether it goes on.
        """
        self.rungs[rung][number] = value
        self.paused[number] = rung
        goes_on = number == self._baseline or self.next(wanted) == number
        if goes_on:
            del self.paused[number]
        return goes_on


@dataclass(frozen=True)
class Candidate:
    """A trial that may become one of the complete ones that a search is for.

    Attributes:
        loss: Label of its loss.
        feasible: Whether it breaks no constraint, as far as it was evaluated.
    """

    loss: str
    feasible: bool


@dataclass(frozen=True)
class Needs:
    """How many feasible complete trials a search is for.

    Attributes:
        trials: How many; the baseline, which is never paused, is none of them.
        per_loss: How many of them can have one loss, where that is bounded.
    """

    trials: int = 1
    per_loss: int | None = None

    def lacking(
        self, paused: Mapping[int, Candidate], running: Iterable[str], complete: Collection[Candidate]
    ) -> Collection[int]:
        """The paused trials of which the search has too few without them; none where it has enough.

        Where no trial is feasible, the best still gets to its end, so that there is one to tell of.

        Args:
            paused: By their numbers.
            running: Losses of the trials that run, which may all get to their end.
            complete: The trials at their end.
        """
        of_loss = Counter([*running, *(own.loss for own in complete if own.feasible)])
        most = self.trials if self.per_loss is None else self.per_loss
        if sum(min(most, count) for count in of_loss.values()) >= self.trials:
            return ()
        missing = {number: own for number, own in paused.items() if of_loss[own.loss] < most}
        feasible = {number for number, own in missing.items() if own.feasible}
        return feasible if feasible or of_loss or complete else missing


def needs_of(config: SearchConfig) -> list[Needs]:
    """The complete trials that a search is for: what is confirmed, what judges examine, and one at least."""
    confirm, evaluation = config.search.confirm, config.evaluation
    needs = [] if confirm is None else [Needs(confirm.top, confirm.per_loss)]
    examined = evaluation.best if evaluation is not None and evaluation.when == "best" else 1
    return [*needs, Needs(examined)]


def survives(value: float, recorded: Sequence[float], reduction_factor: int, *, maximize: bool) -> bool:
    """Whether a trial passes a rung of halving that stops trials: it is among the best 1/reduction_factor so far.

    While fewer than `reduction_factor` trials have reached the rung, only the best so far passes. Ties pass. This is
    the rule of optuna.pruners.SuccessiveHalvingPruner, which answers only once per trial and rung.

    Args:
        value: The trial's own value at the rung.
        recorded: The values of all trials at the rung, the trial's own included.
        reduction_factor: One in so many passes.
        maximize: Whether larger is better.
    """
    places = max(1, len(recorded) // reduction_factor)
    bar = sorted(recorded, reverse=maximize)[places - 1]
    return value >= bar if maximize else value <= bar
