import random

import pytest

from tune_dlrml.config import SchedulerConfig
from tune_dlrml.study.halving import is_promoted, rung_steps


@pytest.mark.parametrize(
    ("grace", "factor", "full", "steps"),
    [
        (5, 4, 20, (5,)),
        (5, 4, 21, (5, 20)),
        (25, 4, 400, (25, 100)),
        (25, 4, 401, (25, 100, 400)),
        (1, 2, 16, (1, 2, 4, 8)),
        (20, 4, 20, ()),
    ],
)
def test_rungs_multiply_by_the_factor_and_stay_below_the_full_budget(
    grace: int, factor: int, full: int, steps: tuple[int, ...]
) -> None:
    assert rung_steps(SchedulerConfig(grace_period=grace, reduction_factor=factor), full) == steps


def test_without_a_scheduler_there_are_no_rungs() -> None:
    assert rung_steps(None, 400) == ()


@pytest.mark.parametrize("maximize", [True, False])
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_one_in_factor_trials_passes_a_rung_or_only_the_best_while_there_are_fewer(maximize: bool, factor: int) -> None:
    rng = random.Random(factor)
    for _ in range(300):
        recorded = [rng.choice([0.1, 0.2, 0.3, 0.4, 0.5]) for _ in range(rng.randint(1, 12))]
        value = recorded[-1]
        better = sum(other > value if maximize else other < value for other in recorded)
        expected = better == 0 if len(recorded) < factor else better < len(recorded) // factor
        assert is_promoted(value, recorded, factor, maximize=maximize) == expected
