import random
from typing import Any

import pytest
from made_search import small_search

from tune_dlrml.config import SchedulerConfig
from tune_dlrml.study.halving import Candidate, Needs, Promotions, needs_of, rung_steps, survives


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


@pytest.mark.parametrize(
    ("full", "first"), [(1, ()), (2, (1,)), (16, (1, 2, 4, 8)), (40, (3, 6, 12, 24)), (400, (25,))]
)
def test_the_first_rung_is_at_a_sixteenth_of_the_budget_where_nothing_says_otherwise(
    full: int, first: tuple[int, ...]
) -> None:
    assert rung_steps(SchedulerConfig(), full)[: len(first)] == first


JUDGED = {"judges": ["openai:gpt-4o"]}


class Job:
    """A trial as `get_job` of the paper sees it: its objectives at the rungs, and behind how many it was sent."""

    def __init__(self, number: int) -> None:
        self.number, self.values, self.sent = number, [], 0


def get_job(jobs: list[Job], rungs: int, factor: int, sign: int) -> Job | None:
    """Algorithm 2 of the paper, from its text."""
    for rung in range(rungs)[::-1]:
        there = [job for job in jobs if len(job.values) > rung]
        top = sorted(there, key=lambda job: (-sign * job.values[rung], job.number))[: len(there) // factor]
        promotable = [job for job in top if job.sent <= rung]
        if promotable:
            return promotable[0]
    return None


@pytest.mark.parametrize("maximize", [True, False])
@pytest.mark.parametrize(("rungs", "factor"), [(1, 2), (3, 2), (2, 3), (2, 4)])
def test_paused_trials_are_promoted_as_the_paper_says(maximize: bool, rungs: int, factor: int) -> None:
    rng, sign = random.Random(rungs * factor), 1 if maximize else -1
    promotions, jobs, busy = Promotions(rungs, factor, maximize=maximize), [], []
    while len(jobs) < 40 or busy:
        expected = get_job(jobs, rungs, factor, sign)
        assert promotions.next() == (None if expected is None else expected.number)
        if len(busy) < 3 and (expected is not None or len(jobs) < 40):  # three trials at a time
            if expected is None:
                expected = Job(len(jobs))
                jobs.append(expected)
            else:
                expected.sent = promotions.paused.pop(expected.number) + 1
            busy.append(expected)
            continue
        job = busy.pop(rng.randrange(len(busy)))
        rung = job.sent
        if rung == rungs:
            continue  # complete
        value = rng.choice([0.1, 0.2, 0.3, 0.4]) + 0.01 * rng.randint(0, 2)
        job.values.append(value)
        goes_on = promotions.arrive(job.number, rung, value)
        assert goes_on == (get_job(jobs, rungs, factor, sign) is job)
        if goes_on:
            job.sent = rung + 1
            busy.append(job)
    assert 0 < sum(job.sent == rungs for job in jobs) < 30


def test_at_the_end_the_best_of_the_highest_rung_goes_on_until_enough_are_complete() -> None:
    promotions = Promotions(2, 4, maximize=True)
    assert [promotions.arrive(number, 0, number / 10) for number in range(3)] == [False] * 3
    assert promotions.next() is None and promotions.next(wanted=()) is None
    assert promotions.next(wanted={0, 1}) == 1
    assert promotions.next(wanted={0, 1, 2}) == 2
    del promotions.paused[2]
    assert promotions.arrive(2, 1, 0.0, wanted={0, 1, 2})  # alone at the highest rung with a trial


def test_the_baseline_is_never_paused_and_keeps_its_place_at_the_rung() -> None:
    promotions = Promotions(2, 2, maximize=True, baseline=0)
    assert promotions.arrive(0, 0, 0.2) and promotions.arrive(0, 1, 0.2) and not promotions.paused
    assert not promotions.arrive(1, 0, 0.1)  # the better of two is the baseline
    assert promotions.arrive(2, 0, 0.3) and promotions.paused == {1: 0}


def named(*losses: str, feasible: bool = True) -> dict[int, Candidate]:
    return {number: Candidate(loss, feasible) for number, loss in enumerate(losses)}


@pytest.mark.parametrize(
    ("needs", "paused", "running", "complete", "lacking"),
    [
        (Needs(), named("dpo", "ipo"), [], [], {0, 1}),
        (Needs(), named("dpo"), ["ipo"], [], set()),  # it may get there
        (Needs(), named("dpo"), [], [Candidate("ipo", True)], set()),
        (Needs(), named("dpo"), [], [Candidate("ipo", False)], {0}),
        (Needs(3), named("dpo"), ["dpo"], [Candidate("dpo", True)], {0}),
        (Needs(3), named("dpo"), ["dpo", "dpo"], [Candidate("dpo", True)], set()),
        (Needs(2, per_loss=1), named("dpo", "ipo"), [], [Candidate("dpo", True)], {1}),
        (Needs(2, per_loss=1), named("dpo", "dpo"), ["dpo"], [Candidate("dpo", True)], set()),
        (Needs(2, per_loss=2), named("dpo", "ipo"), ["dpo"], [], {0, 1}),
        (Needs(), named("dpo", feasible=False), [], [], {0}),  # one to tell of
        (Needs(), named("dpo", feasible=False), [], [Candidate("ipo", False)], set()),
        (Needs(2), named("dpo", feasible=False), ["ipo"], [], set()),
        (Needs(2), named("dpo", feasible=False) | {5: Candidate("ipo", True)}, [], [], {5}),
    ],
)
def test_a_search_needs_as_many_feasible_trials_of_each_loss_as_it_confirms(
    needs: Needs, paused: dict[int, Candidate], running: list[str], complete: list[Candidate], lacking: set[int]
) -> None:
    assert {*needs.lacking(paused, running, complete)} == lacking


@pytest.mark.parametrize(
    ("changed", "needs"),
    [
        ({}, [Needs()]),
        ({"search": {"num_trials": 2, "confirm": {"top": 3, "per_loss": 1}}}, [Needs(3, 1), Needs()]),
        ({"evaluation": JUDGED | {"when": "best", "best": 2}}, [Needs(2)]),
        ({"evaluation": JUDGED}, [Needs()]),
        (
            {"search": {"num_trials": 2, "confirm": {"top": 1}}, "evaluation": JUDGED | {"when": "best"}},
            [Needs(1), Needs(3)],
        ),
    ],
)
def test_a_search_is_for_what_is_confirmed_and_what_judges_examine(changed: dict[str, Any], needs: list[Needs]) -> None:
    assert needs_of(small_search(**changed)) == needs


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
        assert survives(value, recorded, factor, maximize=maximize) == expected
