"""Asynchronous successive halving (Li et al., arXiv 1810.05934): its rungs, and which trials pass one."""

from collections.abc import Sequence

from tune_dlrml.config import SchedulerConfig


def rung_steps(scheduler: SchedulerConfig | None, full_steps: int) -> tuple[int, ...]:
    """Optimizer steps grace_period * reduction_factor**k below the full budget; none without a scheduler."""
    steps: list[int] = []
    step = full_steps if scheduler is None else scheduler.grace_period
    while scheduler is not None and step < full_steps:
        steps.append(step)
        step *= scheduler.reduction_factor
    return tuple(steps)


def is_promoted(value: float, recorded: Sequence[float], reduction_factor: int, *, maximize: bool) -> bool:
    """Whether a trial passes a rung: it is among the best 1/reduction_factor of all that reached it.

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
