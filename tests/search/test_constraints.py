"""Searches under constraints: bounds of held-out numbers that a trial must keep to."""

import math
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from made_search import Fate, MadeSearch
from made_search import make_config as made_config

from tune_dlrml.config import SearchConfig
from tune_dlrml.errors import InputError
from tune_dlrml.records import Report, State, TrialOutcome
from tune_dlrml.report.ranking import ranking, verdict
from tune_dlrml.search.confirm.finalists import finalists
from tune_dlrml.search.result import read_search
from tune_dlrml.search.tune.searcher import StudySearcher
from tune_dlrml.space import TrialSpec
from tune_dlrml.study.study import SearchStudy

Config = Callable[..., SearchConfig]
Open = Callable[..., SearchStudy]
KL_5 = {"eval_kl": {"max": 5.0}}
DPO = [{"name": "dpo", "beta": {"log_uniform": [0.01, 0.5]}}]


def stored(study: SearchStudy) -> list[optuna.trial.FrozenTrial]:
    trials: list[optuna.trial.FrozenTrial] = study.optuna_study.get_trials(deepcopy=False)
    return trials


def numbers(accuracy: float, kl: float) -> dict[str, float]:
    return {"eval_accuracy": accuracy, "eval_kl": kl}


def complete(study: SearchStudy, number: int, accuracy: float, kl: float) -> None:
    for step in (*study.rungs, study.full_steps):
        study.judge(number, step, numbers(accuracy, kl))
    study.finish(TrialOutcome(number, State.COMPLETE, "all steps done"), study.full_steps)


@pytest.mark.parametrize(
    ("constraints", "message"),
    [
        ({"eval_kl": {}}, r"search.constraints.eval_kl: needs `max`, `min` or both"),
        ({"eval_kl": {"min": 2.0, "max": 1.0}}, r"`min <= max` must hold, but got min=2.0, max=1.0"),
        ({"eval_lk": {"max": 1.0}}, r"search.constraints.eval_lk.*eval_kl"),
        ({"train_loss": {"max": 1.0}}, r"search.constraints.train_loss"),
        ({"eval_kl": {"max": math.nan}}, r"search.constraints.eval_kl.max"),
        ({}, r"search.constraints"),
    ],
)
def test_constraints_that_bound_nothing_known_are_refused(
    config_with: Config, constraints: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        config_with(constraints=constraints)


def test_an_infeasible_trial_is_never_the_best_and_the_study_says_by_how_much(
    config_with: Config, open_study: Open
) -> None:
    study = open_study(config_with(num_trials=3, scheduler=None, constraints={"eval_kl": {"max": 5.0, "min": 0.5}}))
    for number, (accuracy, kl) in enumerate([(0.6, 2.0), (0.9, 7.25), (0.8, 0.25)]):
        study.ask()
        complete(study, number, accuracy, kl)
    assert study.best() == 0
    assert [row.feasible for row in study.rows()] == [True, False, False]
    assert [row.stop_reason for row in study.rows()] == [
        "all steps done",
        "all steps done; infeasible: eval_kl <= 5 (7.25)",
        "all steps done; infeasible: eval_kl >= 0.5 (0.25)",
    ]
    assert [trial.constraints for trial in stored(study)] == [
        {"diverged": 0.0, "eval_kl <= 5": -3.0, "eval_kl >= 0.5": -1.5},
        {"diverged": 0.0, "eval_kl <= 5": 2.25, "eval_kl >= 0.5": -6.75},
        {"diverged": 0.0, "eval_kl <= 5": -4.75, "eval_kl >= 0.5": 0.25},
    ]


def test_only_the_last_evaluation_counts(config_with: Config, open_study: Open) -> None:
    study = open_study(config_with(num_trials=1, constraints=KL_5))
    study.ask()
    for step in (*study.rungs, study.full_steps):
        study.judge(0, step, numbers(0.6, 9.0 if step < study.full_steps else 4.0))
    study.finish(TrialOutcome(0, State.COMPLETE, "all steps done"), study.full_steps)
    assert study.row(0).feasible and study.best() == 0


def test_a_pruning_constraint_ends_a_trial_at_its_rung_which_does_not_count_it(
    config_with: Config, open_study: Open
) -> None:
    config = config_with(num_trials=3, constraints={"eval_kl": {"max": 5.0, "prune": True}})
    study = open_study(config)
    study.ask()
    assert study.judge(0, 5, numbers(0.99, 5.5)) == "prune"
    successor = open_study(config)
    assert successor.pruned_at(0) == 5
    assert successor.prune_reason(0, 5) == "search.constraints at step 5"
    row = successor.finish(TrialOutcome(0, State.PRUNED, successor.prune_reason(0, 5)), 5)
    assert row.state is State.PRUNED and not row.feasible
    successor.ask()
    assert successor.judge(1, 5, numbers(0.51, 4.5)) == "continue", "0.99 was no rival at the rung"


def test_without_prune_a_rung_looks_at_the_objective_alone(config_with: Config, open_study: Open) -> None:
    study = open_study(config_with(num_trials=3, constraints=KL_5))
    study.ask()
    assert study.judge(0, 5, numbers(0.9, 50.0)) == "continue"
    study.ask()
    assert study.judge(1, 5, numbers(0.6, 1.0)) == "prune"
    assert study.prune_reason(1, 5) == "successive halving at step 5"


def test_a_driver_that_died_before_the_end_leaves_what_the_next_needs(config_with: Config, open_study: Open) -> None:
    config = config_with(num_trials=1, scheduler=None, constraints=KL_5)
    study = open_study(config)
    study.ask()
    study.judge(0, 40, numbers(0.9, 6.0))
    successor = open_study(config)
    successor.reissue(0)
    assert not successor.finish(TrialOutcome(0, State.COMPLETE, "all steps done"), 40).feasible


def test_a_bounded_metric_that_is_not_finite_is_a_divergence(config_with: Config, open_study: Open) -> None:
    study = open_study(config_with(num_trials=1, constraints=KL_5), "memory")
    searcher = StudySearcher(
        study, SimpleNamespace(**dict.fromkeys(("on_start", "on_report", "on_end"), lambda *_: None))
    )
    searcher.suggest("a")
    report = Report(0, 5, 0, {"eval_accuracy": 0.7}, evaluated=True, rung=True)
    assert searcher.receive("a", {"number": 0, "reports": [report.as_json()]}) == "prune"
    searcher.on_trial_complete("a", None)
    assert (study.row(0).state, study.row(0).stop_reason) == (State.DIVERGED, "eval_kl is not finite at step 5")


def fate(spec: TrialSpec) -> Fate:
    """The fifth trial is the best, at too high a KL."""
    return Fate(accuracy=0.6 + 0.05 * spec.number, kl=9.0 if spec.number == 4 else 1.0 + spec.number)


@pytest.fixture
def made(tmp_path: Path) -> Iterator[MadeSearch]:
    config = made_config(
        DPO, num_trials=5, scheduler=None, constraints=KL_5, confirm={"top": 2, "seeds": 2}, baseline={"beta": 0.1}
    )
    made = MadeSearch(tmp_path, config, SimpleNamespace(now=1e9)).run(fate)
    yield made
    made.study.close()


def test_the_result_names_the_best_the_one_without_constraints_and_the_front(made: MadeSearch) -> None:
    result = read_search("planted", made.place)
    assert (result.best, result.best_infeasible) == (3, 4)
    assert result.front == (0, 1, 2, 3), "more accuracy at more KL, and trial 4 is infeasible"


def test_the_report_ranks_an_infeasible_trial_last_and_says_who_would_have_won(made: MadeSearch) -> None:
    data = made.read()
    lines = ranking(data)
    assert [(line.place, line.trial) for line in lines] == [(1, 3), (2, 2), (3, 1), (4, 0), (None, 4)]
    answer = verdict(data, lines, []).answer
    assert answer.startswith("Trial 3 (dpo") and "of 4 feasible complete trials: 0.750" in answer
    assert (
        "Without search.constraints it would be trial 4 (dpo) with 0.8, which is infeasible: eval_kl <= 5 (9)."
        in answer
    )


def test_a_best_that_is_compared_with_an_infeasible_baseline_says_so(tmp_path: Path) -> None:
    config = made_config(DPO, num_trials=2, scheduler=None, constraints=KL_5, baseline={"beta": 0.1})
    made = MadeSearch(tmp_path, config, SimpleNamespace(now=1e9))
    made.run(lambda spec: Fate(accuracy=0.7, kl=4.0) if spec.number else Fate(accuracy=0.72, kl=6.0))
    data = made.read()
    answer = verdict(data, ranking(data), []).answer
    made.study.close()
    assert "the only feasible complete trial" in answer
    assert "Its difference from the infeasible DPO baseline is -0.020 (" in answer


def test_an_infeasible_trial_is_not_confirmed(made: MadeSearch) -> None:
    chosen = finalists(made.config, made.study.rows())
    assert chosen is not None
    candidates, baseline = chosen
    assert 4 not in {baseline.trial, *(each.trial for each in candidates)}


def test_the_sampler_finds_the_best_inside_the_bound_where_it_would_end_outside_without(
    config_with: Config, open_study: Open
) -> None:
    """Accuracy rises as beta falls, and so does KL, which passes 5 at beta 0.1: the best that is feasible is there."""

    def best_beta(seed: int, constraints: dict[str, Any] | None) -> float:
        config = config_with(
            DPO, num_trials=40, seed=seed, scheduler=None, baseline=None, n_startup_trials=8, constraints=constraints
        )
        study = open_study(config, "memory")
        while (spec := study.ask()) is not None:
            beta = spec.params["dpo.beta"]
            complete(study, spec.number, 0.8 - 0.1 * math.log10(beta / 0.01), 0.5 / beta)
        best = study.best()
        assert best is not None
        return float(study.row(best).params["dpo.beta"])

    free = [best_beta(seed, None) for seed in range(5)]
    bound = [best_beta(seed, KL_5) for seed in range(5)]
    assert all(beta < 0.02 for beta in free)
    assert all(0.1 <= beta < 0.2 for beta in bound)
    assert statistics.median(bound) < 0.11
